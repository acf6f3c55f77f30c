"""The LLM adapters that an organization keeps, and which one is in use.

ORG/current_adapter       link: the adapter in use. To newest_adapter, or straight to one that is pinned
ORG/newest_adapter        link: the latest delivery, moved by each
ORG/rounds/ROUND/llm_adapter, adapter.json
ORG/rounds/ROUND/earlier-.../llm_adapter, adapter.json    of another run, while a link still points there

A delivery never touches ``current_adapter`` once it is there, so it can't undo a pin, however the two interleave. Links
are relative and replaced in one step: a program that opens ORG/current_adapter finds a whole adapter at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from clients.adapters.statements import AdapterStatement, read_statement
from gradtf_fl.adapters import CONFIG, WEIGHTS
from gradtf_fl.errors import ConfigError, CorruptFile, VerificationFailed
from gradtf_fl.file_names import CURRENT_ADAPTER, LLM_ADAPTER, NEWEST_ADAPTER, ROUNDS, STATEMENT
from gradtf_fl.files import replace_link

EARLIER = "earlier-"
_PLACE = re.compile(rf"{ROUNDS}/([1-9][0-9]*)/({EARLIER}[0-9a-z]+/)?{LLM_ADAPTER}")


@dataclass(frozen=True)
class KeptAdapter:
    """A stored adapter.

    Attributes:
        path: PEFT folder. round: of its run. statement: the provider's; None where none was kept, or a damaged one.
    """

    path: Path
    round: int
    statement: AdapterStatement | None

    @property
    def earlier(self) -> bool:
        """Whether a later run stored another adapter of the same round."""
        return self.path.parent.name.startswith(EARLIER)

    def sha256(self) -> str:
        """SHA-256 (hex) of the safetensors file that PEFT loads; CorruptFile when it can't be read."""
        try:
            with open(self.path / WEIGHTS, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CorruptFile(f"{self.path / WEIGHTS}: cannot be read ({error.strerror})") from error

    def problems(self, provider_key: str) -> list[str]:
        """Why this is not what the provider (hex key) signed; empty when it is."""
        try:
            statement = read_statement(self.path.parent)
        except CorruptFile as error:
            return list(error.problems)
        if statement is None:
            return [f"{self.path}: no {STATEMENT} beside it, so nothing tells whether it is the delivered adapter"]
        return statement.problems(self.path, self.round, provider_key)

    def verify(self, provider_key: str) -> None:
        """Raises `VerificationFailed`, with all reasons and what to do, unless this is what the provider signed."""
        problems = self.problems(provider_key)
        if problems:
            remedy = f"do not use {self.path}: take another round, or have it delivered again"
            raise VerificationFailed([*problems, remedy])


def kept(folder: Path) -> list[KeptAdapter]:
    """Every whole adapter in an organization's folder, oldest delivery first."""
    places = [*folder.glob(f"{ROUNDS}/*/{LLM_ADAPTER}"), *folder.glob(f"{ROUNDS}/*/{EARLIER}*/{LLM_ADAPTER}")]
    found = [_adapter(folder, place) for place in places if _PLACE.fullmatch(place.relative_to(folder).as_posix())]
    return sorted((a for a in found if (a.path / CONFIG).is_file()), key=_order)


def newest(folder: Path) -> KeptAdapter:
    """The latest round of the run that delivered last; a round that was delivered again is as old as it was.

    Raises:
        ConfigError: no adapter is kept.
    """
    adapters = kept(folder)
    if not adapters:
        raise ConfigError(f"{folder}: no adapter was delivered yet ({ROUNDS}/ROUND/{LLM_ADAPTER} is missing)")
    last = adapters[-1]
    if last.statement is None:
        return last
    run = last.statement.run_id
    same = [a for a in adapters if a.statement is not None and a.statement.run_id == run and not a.earlier]
    return max(same, key=lambda adapter: adapter.round, default=last)


def of_round(folder: Path, round_number: int) -> KeptAdapter:
    """The adapter of a round, of the last run that had it.

    Raises:
        ConfigError: there is none; names those that are kept.
    """
    adapters = {adapter.round: adapter for adapter in kept(folder) if not adapter.earlier}
    if round_number not in adapters:
        rounds = ", ".join(map(str, sorted(adapters))) or "none"
        raise ConfigError(f"{folder}: no adapter of round {round_number} is kept; rounds kept: {rounds}")
    return adapters[round_number]


def current(folder: Path) -> KeptAdapter:
    """The adapter in use: the pinned one, else the newest.

    Raises:
        ConfigError: none is kept, or the link leads to nothing that is.
    """
    link = folder / CURRENT_ADAPTER
    if not os.path.lexists(link):
        return newest(folder)
    target = _target(folder, CURRENT_ADAPTER)
    if target == NEWEST_ADAPTER:
        target = _target(folder, NEWEST_ADAPTER)
    place = folder / target
    if not _PLACE.fullmatch(target) or not (place / CONFIG).is_file():
        raise ConfigError(f"{link}: leads to no adapter ({target or 'no link'}); run with --rollback ROUND or --unpin")
    return _adapter(folder, place)


def is_pinned(folder: Path) -> bool:
    """Whether the adapter in use stays the same when newer ones are delivered."""
    return os.path.lexists(folder / CURRENT_ADAPTER) and _target(folder, CURRENT_ADAPTER) != NEWEST_ADAPTER


def pin(folder: Path, round_number: int) -> KeptAdapter:
    """Use the adapter of a round until `unpin`; ConfigError when there is none."""
    chosen = of_round(folder, round_number)
    replace_link(folder / CURRENT_ADAPTER, chosen.path.relative_to(folder))
    _forget_unused(folder)
    return chosen


def unpin(folder: Path) -> KeptAdapter:
    """Use the newest adapter again, and each that comes; ConfigError when there is none."""
    chosen = newest(folder)
    replace_link(folder / NEWEST_ADAPTER, chosen.path.relative_to(folder))
    replace_link(folder / CURRENT_ADAPTER, NEWEST_ADAPTER)
    _forget_unused(folder)
    return chosen


def follow(folder: Path, round_number: int) -> None:
    """After the adapter of a round was stored: the newest one is in use, unless one is pinned."""
    of_round(folder, round_number)
    replace_link(folder / NEWEST_ADAPTER, newest(folder).path.relative_to(folder))
    with contextlib.suppress(FileExistsError):  # never replaced here: it may be a pin
        os.symlink(NEWEST_ADAPTER, folder / CURRENT_ADAPTER)
    _forget_unused(folder)


def set_aside(folder: Path, round_number: int) -> None:
    """Before another run's adapter takes a round's place: if the old one is in use, links move to a copy of it."""
    place = Path(ROUNDS) / str(round_number) / LLM_ADAPTER
    links = [name for name in (CURRENT_ADAPTER, NEWEST_ADAPTER) if _target(folder, name) == place.as_posix()]
    if not links or not (folder / place).is_dir():
        return
    parent = (folder / place).parent
    staging = Path(tempfile.mkdtemp(prefix=".earlier.", dir=parent))
    shutil.copytree(folder / place, staging / LLM_ADAPTER)
    if (parent / STATEMENT).is_file():
        shutil.copy2(parent / STATEMENT, staging / STATEMENT)
    digest = hashlib.sha256((staging / LLM_ADAPTER / WEIGHTS).read_bytes()).hexdigest()
    aside = parent / f"{EARLIER}{digest[:8]}"
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(staging, aside)
    for name in links:
        replace_link(folder / name, (aside / LLM_ADAPTER).relative_to(folder))


def next_delivery(folder: Path) -> int:
    """The number of the next delivery, 1 for the first."""
    return 1 + max((a.statement.delivery for a in kept(folder) if a.statement is not None), default=0)


def runs_kept(folder: Path) -> list[str]:
    """Runs whose adapters are kept, by their last delivery, oldest first."""
    runs = [a.statement.run_id for a in kept(folder) if a.statement is not None]
    return list(dict.fromkeys(reversed(runs)))[::-1]


def _adapter(folder: Path, place: Path) -> KeptAdapter:
    try:
        statement = read_statement(place.parent)
    except CorruptFile:
        statement = None  # told by `KeptAdapter.problems`
    return KeptAdapter(place, int(place.relative_to(folder).parts[1]), statement)


def _order(adapter: KeptAdapter) -> tuple[int, int, bool]:
    """Deliveries by their number; those from before statements were kept come first, by round."""
    return (adapter.statement.delivery if adapter.statement else 0, adapter.round, not adapter.earlier)


def _target(folder: Path, name: str) -> str:
    """Where a link leads, as it was written; "" for anything else."""
    try:
        return os.readlink(folder / name)
    except OSError:
        return ""


def _forget_unused(folder: Path) -> None:
    """Copies of earlier runs' adapters that no link leads to any more."""
    used = {_target(folder, name) for name in (CURRENT_ADAPTER, NEWEST_ADAPTER)}
    for place in folder.glob(f"{ROUNDS}/*/{EARLIER}*"):
        if (place / LLM_ADAPTER).relative_to(folder).as_posix() not in used:
            shutil.rmtree(place, ignore_errors=True)
    for stale in folder.glob(f"{ROUNDS}/*/.earlier.*"):
        shutil.rmtree(stale, ignore_errors=True)
