"""A run's memory at the server: what has to survive a killed one, so that no attempt's number is ever used twice.

OUT/federation.json    run id, what a continued run must share with its start, last (round, attempt), records
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from gradtf_fl.deployment import held
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.file_names import FEDERATION, LOCK
from gradtf_fl.files import PUBLIC, replace_file
from gradtf_fl.flower.records import RoundRecord


@dataclass(frozen=True)
class RunState:
    """``federation.json``.

    Attributes:
        run_id: made at the first start; every later start continues under it.
        origin: what a continued run must share with the first start (models, transformer, roster), as hashes.
        last: highest (round, attempt) ever sent out.
        delivered: rounds whose adapter was sent out.
    """

    run_id: str
    origin: Mapping[str, str]
    last: tuple[int, int] = (0, 0)
    delivered: int = 0
    records: tuple[RoundRecord, ...] = field(default_factory=tuple)

    def recorded(self, record: RoundRecord) -> RunState:
        """With one more record."""
        return replace(self, records=(*self.records, record))


@contextmanager
def locked_run(out: Path) -> Iterator[None]:
    """Hold ``out`` for this process; ConfigError when another one has it."""
    out.mkdir(parents=True, exist_ok=True)
    with held(out / LOCK, f"{out}: another server is running there"):
        yield


def open_run(out: Path, origin: Mapping[str, str], run_id: str) -> RunState:
    """The state of the run in ``out``; a new one, named ``run_id``, without one.

    Raises:
        ConfigError: the run there was started with other models, another transformer or another roster.
        CorruptFile: unreadable.
    """
    state = read_run(out)
    if state is None:
        return RunState(run_id, dict(origin))
    differing = sorted(key for key in origin if state.origin.get(key) != origin[key])
    if differing:
        raise ConfigError(f"{out}: the run there was started with another {', '.join(differing)}; name a new folder")
    return state


def read_run(out: Path) -> RunState | None:
    """The state of the run in ``out``, None without one; `CorruptFile` where it cannot be read."""
    path = out / FEDERATION
    if not path.exists():
        return None
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


def read_records(out: Path) -> list[RoundRecord]:
    """Records of every attempt in ``out``, aborted ones too; empty when no run was started there."""
    path = out / FEDERATION
    if not path.exists():
        return []
    try:
        return [RoundRecord.from_json(r) for r in json.loads(path.read_text(encoding="utf-8"))["records"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{path}: cannot be read ({type(error).__name__})") from error
