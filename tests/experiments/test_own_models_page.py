"""docs/own-models-and-data.md cannot rot: its commands are run, in order, and what they print is what it shows.

The fast test leaves out the blocks marked ``slow``, which take minutes; the slow one runs all of them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from experiments.demos.guide_output import Stage, differences
from experiments.demos.page_blocks import OWN_MODELS, REPOSITORY, Block, blocks
from gradtf_fl.config import read_project
from tests.benchmark_data import SHARED, needs_data, needs_models

TEXT = OWN_MODELS.text
BLOCKS = blocks(TEXT)
CONSOLE = [block for block in BLOCKS if block.kind == "console"]
RESULTS = REPOSITORY / "experiments" / "results"

STORED = ("store", "paper_scale", "paper_scale_gpu")

# Blocks that no test runs: [compute], the deployment, the paper's own run
NOT_RUN = {"toml": 2, "sh": 2, "text": 1}


def run(chosen: Iterable[Block]) -> None:
    with Stage(OWN_MODELS, SHARED) as stage:
        found = differences(chosen, stage)
    again = "python -m experiments.demos.guide_output own-models writes the output again"
    assert not found, "\n\n".join([*found, again])


@pytest.mark.long
@needs_data
@needs_models
def test_commands_that_take_seconds() -> None:
    chosen = [block for block in CONSOLE if not block.slow]
    assert sum(len(block.commands) for block in chosen) >= 12
    run(chosen)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_data
@needs_models
def test_every_command() -> None:
    run(CONSOLE)


def test_no_block_is_left_out_silently() -> None:
    assert Counter(block.kind for block in BLOCKS if block.kind != "console") == NOT_RUN
    known = re.compile(r"slow|exit=\d+")
    assert all(known.fullmatch(option) for block in CONSOLE for option in block.options)
    assert TEXT.count("```") == 2 * len(BLOCKS)
    silent = re.compile(r" > \S+$|^python - <<")
    assert [c.text for b in CONSOLE for c in b.commands if not c.shown and not silent.search(c.text)] == []


def test_the_tables_of_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    tables = [line for block in BLOCKS if block.kind == "toml" for line in block.lines]
    path.write_text("\n".join(['[task]\nsource = ["wards.jsonl"]', *tables]))
    project = read_project(path)
    assert (project.compute.device, project.unit) == ("cuda", "patient")


def test_figures_of_the_papers_run_are_the_results() -> None:
    store, cpu, gpu = (json.loads((RESULTS / f"{name}.json").read_text()) for name in STORED)
    table = TEXT.partition("## The paper's own run")[2]
    rows = {row.split(" | ")[0].strip("| "): row for row in table.splitlines() if row.startswith("| ")}
    tuples, sets, steps = 60_000, 6 * 300, round(0.95 * 60_000 * 30 / 32)
    size = store["store_bytes"] / store["tuples"]
    tiny, llm = (4 * layers * width for layers, width in (store["shapes"]["tiny"], store["shapes"]["llm"]))
    full, bf16 = gpu["runs"]
    (step,) = [one["shipped_s"] for one in full["beside_plain_loop"] if one["batch"] == 32]
    (slow,) = cpu["runs"]
    said = {
        "a tuple on disk": (
            f"{size / 1e6:.2f} MB",
            f"{tuples * size / 1e9:.0f} GB",
            f"{sets * (4 * tiny + llm) / 1e9:.0f} GB",
        ),
        "memory to train on a store": (
            f"{store['training']['anonymous_beyond_start_bytes'] / 1e9:.1f} GB",
            f"{store['store_bytes'] / 1e9:.1f} GB of tuples",
            f"{store['sampling']['mapped_against_memory']:.2f}".lstrip("0"),
        ),
        "a training step by `mse`, batch of 32": (f"{step:.3f} s".lstrip("0"), f"{steps * step / 3600:.1f} hours"),
        "the same, batch of 2": (f"{slow['step_s']:.0f} s", f"{steps * slow['step_s'] / 86400:.0f} days"),
        "memory of that step, batch of 2": (
            f"{slow['peak_gib']['step']:.1f} GiB",
            f"{full['peak_gib']['step']:.1f} GiB",
        ),
        "a step by `functional`, 2 rows of 128 tokens": (
            f"{bf16['functional']['step_s']:.2f} s",
            f"{1000 * bf16['functional']['step_s'] / 3600:.1f} hour",
        ),
        "an LLM update from the sum, once a round": (
            f"{full['generation_s']:.1f} s".lstrip("0"),
            f"{slow['generation_s']:.0f} s",
        ),
        "the Grad-Transformer's file": (f"{gpu['bytes']['checkpoint_float16'] / 1e9:.2f} GB",),
        "a shadow set of both models": (f"{sets * 9 / 60:.0f} to {sets * 32 / 60:.0f} hours",),
    }
    assert f"training_steps = {steps}" in table
    for part, figures in said.items():
        assert [figure for figure in figures if figure not in rows[part]] == [], part
    assert set(said) == set(rows) - {"part", "---"}
