"""Page of the LLM adapters that an organization keeps, and the roll back to one: `gradtf org adapter` in a browser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from clients import KeptAdapter, current, is_pinned, kept, newest, pin, unpin
from gradtf_fl.adapters import CONFIG, WEIGHTS
from gradtf_fl.config import OrganizationConfig, load_toml
from gradtf_fl.errors import ConfigError, GradtfError, VerificationFailed
from gradtf_fl.file_names import MODEL_CARD, ORGANIZATION_CONFIG, STATEMENT

LONGEST_CARD = 64_000
"""Bytes of a model card that are shown."""


@dataclass(frozen=True)
class AdapterRow:
    """One adapter.

    Attributes:
        round: of its run.
        run_id, received: of the provider's statement; empty without one.
        sha256: of its weights, hex; empty where they can't be read.
        base_model: that it belongs on; empty where that can't be read.
        problems: why it is not what the provider signed; empty when it is.
        card: lines of its model card; empty without one.
        earlier: whether a later run stored another one of the same round.
        path: its folder.
    """

    round: int
    run_id: str
    received: str
    sha256: str
    base_model: str
    problems: tuple[str, ...]
    card: tuple[str, ...]
    earlier: bool
    path: Path


def adapters_context(folder: Path) -> Mapping[str, Any]:
    """Context of the page's part."""
    rows: tuple[AdapterRow, ...] = ()
    chosen, problem, newest_round = None, "", 0
    try:
        rows = read_adapters(folder)
        if rows:
            newest_round, used = newest(folder).round, current(folder).path
            chosen = next((row for row in rows if row.path == used), None)
    except (GradtfError, OSError) as error:
        problem = str(error)
    pinned = is_pinned(folder)
    state = "pinned" if pinned else "in use"
    return {
        "folder": folder,
        "adapters": rows[::-1],
        "chosen": chosen,
        "pinned": pinned,
        "newest_round": newest_round,
        "problem": problem,
        "spoken": "" if chosen is None else f"the adapter of round {chosen.round} is {state}",
    }


def choice(folder: Path, round_number: int) -> AdapterRow:
    """The adapter that a roll back to a round would use.

    Raises:
        ConfigError: none of that round is kept.
        VerificationFailed: it is not what the provider signed.
    """
    for row in read_adapters(folder):
        if row.round == round_number and not row.earlier:
            if row.problems:
                raise VerificationFailed(row.problems)
            return row
    raise ConfigError(f"no adapter of round {round_number} is kept")


def roll_back(folder: Path, round_number: int) -> None:
    """What `gradtf org adapter --rollback` does, for an adapter that is as the provider signed it.

    Raises:
        ConfigError: none of that round is kept.
        VerificationFailed: it is not what the provider signed.
    """
    choice(folder, round_number)
    pin(folder, round_number)


def follow_newest(folder: Path) -> None:
    """What `gradtf org adapter --unpin` does; ConfigError when no adapter is kept."""
    unpin(folder)


def read_adapters(folder: Path) -> tuple[AdapterRow, ...]:
    """Every whole adapter, oldest delivery first; files are hashed again only when one has changed."""
    return _read(folder, _marks(folder))


def _marks(folder: Path) -> tuple[object, ...]:
    marks: list[object] = []
    for adapter in kept(folder):
        files = [adapter.path / name for name in (WEIGHTS, CONFIG, MODEL_CARD)]
        for file in (*files, adapter.path.parent / STATEMENT):
            try:
                status = file.stat()
            except OSError:
                marks.append((file, None))
            else:
                marks.append((file, status.st_mtime_ns, status.st_size))
    return (*marks, (folder / ORGANIZATION_CONFIG).stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(folder: Path, marks: tuple[object, ...]) -> tuple[AdapterRow, ...]:
    key = load_toml(OrganizationConfig, folder / ORGANIZATION_CONFIG).secagg.provider_key
    return tuple(_row(adapter, key) for adapter in kept(folder))


def _row(adapter: KeptAdapter, key: str) -> AdapterRow:
    statement = adapter.statement
    return AdapterRow(
        round=adapter.round,
        run_id=statement.run_id if statement else "",
        received=statement.received if statement else "",
        sha256=adapter.sha256() if (adapter.path / WEIGHTS).is_file() else "",
        base_model=_base_model(adapter.path),
        problems=tuple(adapter.problems(key)),
        card=_card(adapter.path),
        earlier=adapter.earlier,
        path=adapter.path,
    )


def _base_model(path: Path) -> str:
    try:
        return str(json.loads((path / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _card(path: Path) -> tuple[str, ...]:
    try:
        with (path / MODEL_CARD).open("rb") as file:
            data = file.read(LONGEST_CARD)
    except OSError:
        return ()
    return tuple(data.decode("utf-8", "replace").splitlines())
