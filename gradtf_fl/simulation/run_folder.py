"""A simulation's folder: claimed for a new run, or taken up after the run was interrupted.

OUT/simulation.toml     what the run was started with, written before all else
OUT/organizations/      one folder each; written again from the start until OUT/federation.json is there
OUT/federation.json     the server's state: from here on something may be trained (`strategies.checkpoints`)
OUT/report.json         written last: the run is over

A killed process leaves this at every moment, so Ctrl-C does nothing else than to end the process.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clients import take_back_attempt
from gradtf_fl.config import SimulationConfig, load_toml, located, to_toml
from gradtf_fl.deployment import held
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.file_names import (
    FEDERATION,
    LEDGER,
    ORGANIZATIONS,
    PROMPTS,
    PROVIDER_KEY,
    REPORT,
    ROUNDS,
    SIMULATION,
    SIMULATION_LOCK,
)
from gradtf_fl.files import PUBLIC, empty_folder, replace_file
from gradtf_fl.simulation.setup import FederationFolders
from gradtf_fl.tasks import FederationData
from strategies import checkpoints

RUN_MARKERS = (REPORT, ORGANIZATIONS, ROUNDS, SIMULATION)
SET_UP = (ORGANIZATIONS, PROVIDER_KEY, PROMPTS)
"""What is written again where a run was interrupted before its first round."""


@contextmanager
def new_run(config: SimulationConfig) -> Iterator[Path]:
    """``config.out`` as a folder that holds ``config`` and nothing else, None for a temporary one; it is as it was
    found where the run ends by an error before anything was charged.

    Raises:
        ConfigError: ``out`` cannot be written or holds anything already.
    """
    made = config.out is None or not config.out.exists()
    out = Path(tempfile.mkdtemp(prefix="gradtf-")) if config.out is None else config.out.absolute()
    claim_out(out)
    try:
        with _held(out):
            replace_file(out / SIMULATION, to_toml(config.model_copy(update={"out": out})).encode(), PUBLIC)
            yield out
    except Exception:
        if not any(out.glob(f"{ORGANIZATIONS}/*/{LEDGER}")):
            empty_folder(out)
            if made:
                out.rmdir()
        raise


def claim_out(out: Path) -> None:
    """Make ``out``; ConfigError when it cannot be written or holds anything already."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        occupied = sorted(path.name for path in out.iterdir())
        probe = out / ".gradtf-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error
    if occupied:
        ours = set(occupied) & set(RUN_MARKERS)
        what, more = ("holds another run", ", --resume continues it") if ours else ("is not empty", "")
        raise ConfigError(f"--out {out}: {what} ({', '.join(occupied[:3])}); name a new folder or remove it{more}")


@contextmanager
def interrupted_run(out: Path) -> Iterator[SimulationConfig]:
    """The configuration of the run in ``out``, whose unfinished round may be asked for once more.

    Raises:
        ConfigError: no run is there, or another process runs it.
        CorruptFile: a file of it can't be read.
    """
    config = read_run(out)
    with _held(out):
        attempt = checkpoints.interrupted_attempt(out)
        if attempt is not None:
            for folder in sorted((out / ORGANIZATIONS).iterdir()):
                take_back_attempt(folder, attempt)
            checkpoints.forget_attempt(out, attempt)  # last: until then, the same is done again
        elif not (out / FEDERATION).exists():
            _clear_set_up(out)
        yield config


def read_run(out: Path) -> SimulationConfig:
    """What the run in ``out`` was started with; ConfigError without one."""
    if not (out / SIMULATION).is_file():
        raise ConfigError(f"--resume {out}: holds no simulation that can be continued (no {SIMULATION})")
    return load_toml(SimulationConfig, out / SIMULATION).model_copy(update={"out": out.absolute()})


def finished_report(out: Path) -> dict[str, Any] | None:
    """The document of a run that is over; None of one that is not. CorruptFile where it can't be read."""
    path = out / REPORT
    if not path.exists():
        return None
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{path}: cannot be read ({type(error).__name__})") from error
    return document


def rounds_kept(out: Path) -> int:
    """Finished rounds in ``out``."""
    return len([path for path in (out / ROUNDS).glob("[0-9]*") if path.name.isdecimal()])


def folders_of(config: SimulationConfig, data: FederationData, out: Path) -> FederationFolders | None:
    """The folders of a run whose server has started; None before that, when they may be incomplete."""
    if not (out / FEDERATION).exists():
        return None
    organizations = tuple(out / ORGANIZATIONS / organization.name for organization in data.organizations)
    prompts = out / PROMPTS
    return FederationFolders(out, organizations, out / PROVIDER_KEY, prompts if prompts.exists() else None)


def placed(config: SimulationConfig) -> SimulationConfig:
    """``config`` with paths that mean the same from every folder."""
    return located(config, Path.cwd())


def _clear_set_up(out: Path) -> None:
    for name in SET_UP:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def _held(out: Path) -> Iterator[None]:
    with held(out / SIMULATION_LOCK, f"{out}: another process runs this simulation"):
        yield
