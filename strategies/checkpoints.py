"""A run on disk: what has to survive a killed server, written so that it is there whole or not at all.

OUT/federation.json                               run id, pair and transformer, last (round, attempt), rounds
                                                  delivered, records
OUT/roster.txt                                    pinned Ed25519 keys of the organizations, one hex key a line
OUT/provider.key                                  signs LLM adapters (0600), unless the plan names another file
OUT/rounds/ROUND/round.json                       record, hashes and signature
OUT/rounds/ROUND/global_update.safetensors        "global_update" float32 and "mean" float64, both [blocks, block_dim]
OUT/rounds/ROUND/llm_adapter/                     PEFT folder

A round's folder appears by one rename after everything in it was synced. An aborted round has no folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.deployment import held
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.file_names import FEDERATION, GLOBAL_UPDATE, LOCK, ROSTER, ROUND_RECORD, ROUNDS
from gradtf_fl.files import PUBLIC, replace_file, sync_folder
from gradtf_fl.flower import RoundKey, RoundRecord


@dataclass(frozen=True)
class RunState:
    """``federation.json``.

    Attributes:
        run_id: made at the first start; every later start goes on under it.
        origin: what a continued run must share with the first start (models, transformer, roster), as hashes.
        last: highest (round, attempt) ever sent out. delivered: rounds whose adapter was sent out.
    """

    run_id: str
    origin: Mapping[str, str]
    last: tuple[int, int] = (0, 0)
    delivered: int = 0
    records: tuple[RoundRecord, ...] = field(default_factory=tuple)

    def recorded(self, record: RoundRecord) -> RunState:
        """With one more record."""
        return replace(self, records=(*self.records, record))


@dataclass(frozen=True)
class Checkpoint:
    """A finished round: its number, U after it (float32 [blocks, block_dim]), and its record."""

    round: int
    global_update: NDArray[np.float32]
    record: RoundRecord


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold ``out`` for this process; ConfigError when another one has it."""
    out.mkdir(parents=True, exist_ok=True)
    with held(out / LOCK, f"{out}: another server is running there"):
        yield


def open_run(out: Path, origin: Mapping[str, str], run_id: str) -> RunState:
    """The state of the run in ``out``; a new one, named ``run_id``, where there is none.

    Raises:
        ConfigError: the run there was started with other models, another transformer or another roster.
        CorruptFile: unreadable.
    """
    path = out / FEDERATION
    if not path.exists():
        return RunState(run_id, dict(origin))
    state = _read_run(path)
    differing = sorted(key for key in origin if state.origin.get(key) != origin[key])
    if differing:
        raise ConfigError(f"{out}: the run there was started with another {', '.join(differing)}; name a new folder")
    return state


def _read_run(path: Path) -> RunState:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return RunState(
            run_id=str(document["run_id"]),
            origin=dict(document["origin"]),
            last=(int(document["last"][0]), int(document["last"][1])),
            delivered=int(document["delivered"]),
            records=tuple(RoundRecord.from_json(record) for record in document["records"]),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CorruptFile(f"{path}: cannot be read ({type(error).__name__})") from error


def save_run(out: Path, state: RunState) -> None:
    """Replace ``federation.json`` atomically."""
    document = {
        "version": 1,
        "run_id": state.run_id,
        "origin": dict(state.origin),
        "last": list(state.last),
        "delivered": state.delivered,
        "records": [record.to_json() for record in state.records],
    }
    replace_file(out / FEDERATION, json.dumps(document, indent=1).encode(), PUBLIC)


def interrupted_attempt(out: Path) -> RoundKey | None:
    """The attempt that was sent out and that no finished round came of; None where there is none."""
    if not (out / FEDERATION).exists():
        return None
    state = _read_run(out / FEDERATION)
    last = last_checkpoint(out)
    if state.last == (0, 0) or (last is not None and state.last[0] <= last.round):
        return None
    return RoundKey(state.run_id, *state.last)


def forget_attempt(out: Path, key: RoundKey) -> None:
    """Of a simulation alone: the next attempt is ``key`` itself, with the same nonce, and it has no record yet.

    Everything that it sent out was in the process that died (the organizations take it back first), so a round that is
    played again is the same round. The adapter of the round before goes out with it again.
    """
    state = _read_run(out / FEDERATION)
    records = tuple(one for one in state.records if (one.round, one.attempt) != (key.round, key.attempt))
    before = (key.round, key.attempt - 1) if key.attempt else (key.round - 1, 0)
    delivered = min(state.delivered, max(0, key.round - 2))
    save_run(out, replace(state, last=before, delivered=delivered, records=records))


def read_records(out: Path) -> list[RoundRecord]:
    """Records of every attempt in ``out``, aborted ones too; empty when no run was started there."""
    path = out / FEDERATION
    if not path.exists():
        return []
    try:
        return [RoundRecord.from_json(r) for r in json.loads(path.read_text(encoding="utf-8"))["records"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{path}: cannot be read ({type(error).__name__})") from error


def round_folder(out: Path, round_number: int) -> Path:
    """``OUT/rounds/ROUND``."""
    return out / ROUNDS / str(round_number)


@contextmanager
def new_round(out: Path, round_number: int) -> Iterator[Path]:
    """A folder to fill; it becomes ``OUT/rounds/ROUND`` when the body ends well and vanishes otherwise."""
    rounds = out / ROUNDS
    rounds.mkdir(parents=True, exist_ok=True)
    staging = rounds / f".{round_number}.new"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        for path in staging.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        os.rename(staging, round_folder(out, round_number))
        sync_folder(rounds)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_update(folder: Path, global_update: NDArray[np.float32], mean: NDArray[np.float64]) -> None:
    """Write U and this round's mean into a round's folder."""
    from safetensors.numpy import save_file

    save_file({"global_update": global_update, "mean": mean}, folder / GLOBAL_UPDATE)


def write_record(folder: Path, record: RoundRecord, proof: Mapping[str, str]) -> None:
    """Write ``round.json``: the record, the update file's hash, and ``proof`` (hex hashes and signature)."""
    sums = {"global_update_sha256": hashlib.sha256((folder / GLOBAL_UPDATE).read_bytes()).hexdigest()}
    document: dict[str, Any] = {"record": record.to_json(), **proof, **sums}
    replace_file(folder / ROUND_RECORD, json.dumps(document, indent=1).encode(), PUBLIC)


def last_checkpoint(out: Path) -> Checkpoint | None:
    """The last finished round.

    Raises:
        CorruptFile: a round is missing in between, or its files do not match their hash.
    """
    found = sorted(int(path.name) for path in (out / ROUNDS).glob("[0-9]*") if path.name.isdigit())
    if not found:
        return None
    if found != list(range(1, len(found) + 1)):
        raise CorruptFile(f"{out / 'rounds'}: rounds {found} are not one run 1..{found[-1]}")
    return checkpoint(out, found[-1])


def checkpoint(out: Path, round_number: int) -> Checkpoint:
    """A finished round; CorruptFile when its files are missing, unreadable or do not match their hash."""
    folder = round_folder(out, round_number)
    try:
        from safetensors.numpy import load

        document = json.loads((folder / ROUND_RECORD).read_text(encoding="utf-8"))
        data = (folder / GLOBAL_UPDATE).read_bytes()
        if hashlib.sha256(data).hexdigest() != document["global_update_sha256"]:
            raise CorruptFile(f"{folder / GLOBAL_UPDATE}: does not match the hash in {ROUND_RECORD}")
        return Checkpoint(round_number, load(data)["global_update"], RoundRecord.from_json(document["record"]))
    except CorruptFile:
        raise
    except Exception as error:
        raise CorruptFile(f"{folder}: cannot be read ({type(error).__name__})") from error


def write_roster(out: Path, keys: Sequence[bytes]) -> None:
    """Write ``OUT/roster.txt``."""
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / ROSTER, "".join(key.hex() + "\n" for key in keys).encode(), PUBLIC)


def read_roster(out: Path) -> tuple[bytes, ...]:
    """Keys of ``OUT/roster.txt``; ConfigError names what is wrong with it."""
    path = out / ROSTER
    try:
        lines = [line.strip() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
        return tuple(bytes.fromhex(line) for line in lines)
    except OSError as error:
        raise ConfigError(f"{path}: the organizations' keys cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not one hex Ed25519 key a line") from error
