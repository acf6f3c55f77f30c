"""A run on disk: what has to survive a killed server, written so that it is there whole or not at all.

OUT/federation.json             run id, pair, transformer, last (round, attempt), rounds delivered, records
OUT/roster.txt                  pinned Ed25519 keys of the organizations, one hex key a line
OUT/provider.key                signs LLM adapters (0600), unless the plan names another file
OUT/rounds/ROUND/
    round.json                  record, hashes and signature
    global_update.safetensors   "global_update" float32 and "mean" float64, both [blocks, block_dim]
    llm_adapter/                PEFT folder

A round's folder appears by one rename after everything in it was synced. An aborted round has no folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.errors import CorruptFile
from gradtf_fl.file_names import GLOBAL_UPDATE, ROSTER, ROUND_RECORD, ROUNDS
from gradtf_fl.files import PUBLIC, replace_file, sync_folder
from gradtf_fl.flower import RoundKey, RoundRecord, read_run, save_run
from gradtf_fl.secagg import Floats


@dataclass(frozen=True)
class Checkpoint:
    """A finished round: its number, U after it (float32 [blocks, block_dim]), and its record."""

    round: int
    global_update: NDArray[np.float32]
    record: RoundRecord


def interrupted_attempt(out: Path) -> RoundKey | None:
    """The attempt that was sent out and that no finished round came of; None without one."""
    state = read_run(out)
    if state is None:
        return None
    last = last_checkpoint(out)
    if state.last == (0, 0) or (last is not None and state.last[0] <= last.round):
        return None
    return RoundKey(state.run_id, *state.last)


def forget_attempt(out: Path, key: RoundKey) -> None:
    """Of a simulation alone: the next attempt is ``key`` itself, with the same nonce, and it has no record yet.

    Everything that it sent out was in the process that died (the organizations take it back first), so a round that is
    played again is the same round. The adapter of the round before goes out with it again.
    """
    state = read_run(out)
    assert state is not None
    records = tuple(one for one in state.records if (one.round, one.attempt) != (key.round, key.attempt))
    before = (key.round, key.attempt - 1) if key.attempt else (key.round - 1, 0)
    delivered = min(state.delivered, max(0, key.round - 2))
    save_run(out, replace(state, last=before, delivered=delivered, records=records))


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


def write_update(folder: Path, global_update: NDArray[np.float32], mean: Floats) -> None:
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
