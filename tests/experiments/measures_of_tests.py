"""Measures whose cells can be foretold, and a preset that names one of them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from experiments.measuring.cells import ROWS_LEAVE, Cell, Progress, measure
from gradtf_fl.config import Count, Section


class Doubled(Section):
    """``factor`` times the seed; ``wait`` seconds of work."""

    factor: Count
    wait: float = 0.0


@measure(Doubled)
def doubled(parameters: Doubled, seed: int, progress: Progress) -> list[Cell]:
    progress("doubling", 0, 1)
    time.sleep(parameters.wait)
    value = float(parameters.factor * seed)
    return [
        Cell("ours", "accuracy, seen", value),
        Cell("ours", "PGR, seen", value / 10),
        Cell("ours", ROWS_LEAVE, 0.0),
        Cell("tuned | floor", "accuracy, seen", 1.0),
    ]


@measure(Doubled)
def not_a_number(parameters: Doubled, seed: int, progress: Progress) -> list[Cell]:
    return [Cell("ours", "accuracy", float("nan"))]


@measure(Doubled)
def one_place_twice(parameters: Doubled, seed: int, progress: Progress) -> list[Cell]:
    return [Cell("ours", "accuracy", 1.0), Cell("ours", "accuracy", 2.0)]


@measure(Doubled)
def dies_at_the_second_seed(parameters: Doubled, seed: int, progress: Progress) -> list[Cell]:
    """As a process dies that nobody asked: nothing is flushed, no handler runs."""
    if seed == 1:
        os._exit(9)
    return [Cell("ours", "accuracy", float(seed))]


def write_preset(folder: Path, name: str = "small", **changes: object) -> Path:
    """A preset of `doubled` with three seeds; a value of None leaves the key out."""
    keys: dict[str, object] = {
        "title": '"Small"',
        "question": '"Does it double?"',
        "measure": '"tests.experiments.measures_of_tests:doubled"',
        "seeds": "[0, 1, 2]",
        "minutes": "1",
        "paper": '"It doubles."',
        "kind": '"table"',
        "unit": '"accuracy"',
        "parameters": "{ factor = 2 }",
    }
    lines = [f"{key} = {value}" for key, value in {**keys, **changes}.items() if value is not None]
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path
