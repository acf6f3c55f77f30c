"""Runs a preset seed by seed; what is finished is in its file, so a killed run continues where it stopped."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.measuring import PACKAGES, Cell, Progress, machine, revision
from experiments.paper.preset import Preset, differing
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.files import write_whole


def read_results(path: Path) -> dict[str, Any] | None:
    """A preset's results; None when there are none, CorruptFile when the file is damaged."""
    if not path.exists():
        return None
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
        cells_by_seed(document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFile(
            f"results {path}: damaged or no results of an experiment ({error!r}); move it away"
        ) from error
    return document


def cells_by_seed(document: Mapping[str, Any]) -> dict[int, list[Cell]]:
    """Each finished seed's cells."""
    return {int(run["seed"]): [Cell(*cell) for cell in run["cells"]] for run in document["runs"]}


def run_preset(preset: Preset, out: Path, seeds: int | None, progress: Progress) -> dict[str, Any]:
    """Measure the first ``seeds`` seeds (all unless given) that are not in ``out/NAME.json`` yet.

    Returns:
        The document in that file.

    Raises:
        ConfigError: fewer seeds than asked for, or a file made with other parameters. CorruptFile: a damaged one.
    """
    wanted = preset.file.seeds[:seeds]
    if seeds is not None and len(wanted) < seeds:
        raise ConfigError(f"--seeds {seeds}: {preset.name} has {len(wanted)}")
    path = out / f"{preset.name}.json"
    document = read_results(path)
    if document is not None:
        refuse_other_parameters(preset, document, path)
    missing = [seed for seed in wanted if document is None or seed not in cells_by_seed(document)]
    if not missing and document is not None:
        return document
    _make_folder(out)
    code, described = revision(), machine(PACKAGES)
    for number, seed in enumerate(missing):

        def show(what: str, done: int, total: int, before: int = number, seed: int = seed) -> None:
            progress(f"seed {seed}: {what}", before * total + done, len(missing) * total)

        began = time.monotonic()
        cells = preset.function(preset.file.parameters, seed, show)
        _refuse_bad_cells(preset.name, seed, cells)
        seconds = round(time.monotonic() - began, 1)
        run = {"seed": seed, "seconds": seconds, "revision": code, "machine": described, "cells": cells}
        others = _finished(path, besides=seed)
        _refuse_other_cells(path, cells, others)
        finished = sorted([*others, run], key=lambda run: run["seed"])
        write_whole(path, _text({**preset.document(), "revision": code, "machine": described, "runs": finished}))
    document = read_results(path)
    assert document is not None
    return document


def _finished(path: Path, besides: int) -> list[dict[str, Any]]:
    """Runs that are in the file by now: another process may have finished some meanwhile."""
    document = read_results(path)
    return [run for run in document["runs"] if run["seed"] != besides] if document is not None else []


def state_of(preset: Preset, out: Path) -> str:
    """What there is of ``preset`` in ``out``, in words."""
    path = out / f"{preset.name}.json"
    document = read_results(path)
    if document is None:
        return "none"
    try:
        refuse_other_parameters(preset, document, path)
    except ConfigError:
        return "of other parameters"
    done = cells_by_seed(document).keys() & set(preset.file.seeds)
    return f"{len(done)} of {len(preset.file.seeds)} seeds"


def refuse_other_parameters(preset: Preset, document: Mapping[str, Any], path: Path) -> None:
    """ConfigError when ``document`` was not measured as the preset says now."""
    found = differing(_made_with(document), _made_with(preset.document()))
    if found:
        raise ConfigError(
            [f"results {path}: measured with {line}" for line in found]
            + [f"results {path}: move it away, or give another folder with --out"]
        )


def _made_with(document: Mapping[str, Any]) -> dict[str, Any]:
    fixed = {key: document[key] for key in ("measure", "checkpoint_sha256") if key in document}
    return {**fixed, **document.get("parameters", {})}


def _refuse_bad_cells(name: str, seed: int, cells: Sequence[Cell]) -> None:
    bad = [cell for cell in cells if not math.isfinite(cell.value)]
    if bad:
        raise ConfigError([f"{name}, seed {seed}: {cell.row}, {cell.column} is {cell.value}" for cell in bad])
    if not cells or len({(cell.row, cell.column) for cell in cells}) < len(cells):
        raise ConfigError(f"{name}, seed {seed}: the measure gave no cells, or two for one place")


def _refuse_other_cells(path: Path, cells: Sequence[Cell], others: Sequence[Mapping[str, Any]]) -> None:
    """The measure's code changed since the others ran: means over seeds would be of different tables.

    PGR is left out: a seed without a gap between floor and ceiling has none.
    """
    here = {(cell.row, cell.column) for cell in cells if not cell.column.startswith("PGR")}
    found = {(row, column) for run in others for row, column, _ in run["cells"] if not column.startswith("PGR")}
    if others and here != found:
        row, column = min(here ^ found)
        raise ConfigError(f"results {path}: of a measure that gave other cells, e.g. {row}, {column}; move it away")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: can't be made ({error.strerror})") from error
    if not os.access(out, os.W_OK):
        raise ConfigError(f"--out {out}: can't be written")


def _text(document: Mapping[str, Any]) -> str:
    """JSON, one line for each cell: results are read in diffs."""
    runs = document["runs"]
    head = json.dumps({**document, "runs": []}, indent=1, allow_nan=False).removesuffix("[]\n}")
    lines = []
    for run in runs:
        cells = ",\n    ".join(json.dumps(cell, allow_nan=False) for cell in run["cells"])
        rest = json.dumps({key: value for key, value in run.items() if key != "cells"}, allow_nan=False)
        lines.append(f'  {rest[:-1]}, "cells": [\n    {cells}]}}')
    return head + "[\n" + ",\n".join(lines) + "]\n}\n"
