"""Word tasks: rows are split without overlap, ways are measured once, twins are on one side."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from experiments.paper import agreement_tuning, word_tasks
from gradtf_fl.tasks import write_rows
from gradtf_fl.tasks.rows import Row
from gradtf_fl.training import PlainRecipe
from tests.benchmark_data import SHARED

TINY, LLM = SHARED / "models" / "stories260K", SHARED / "models" / "babyllama-tok361-1.0M"
WORDS = SHARED / "data" / "word_tasks"
needs_shared = pytest.mark.skipif(
    not TINY.is_dir() or not WORDS.is_dir(), reason=f"no {SHARED}: its models and word tasks"
)


@needs_shared
def test_no_unseen_task_has_a_seen_twin() -> None:
    def kind(task: str) -> str:
        name = task.partition(".")[2].rstrip("s")
        return name.removesuffix("_3").removesuffix("_5")

    assert not {kind(task) for task in word_tasks.UNSEEN} & {kind(task) for task in word_tasks.SEEN}
    assert len(word_tasks.UNSEEN) >= 10
    for task in (*word_tasks.UNSEEN, *word_tasks.SEEN):
        assert (WORDS / f"{task}.jsonl.gz").is_file(), task


def test_test_private_and_public_rows_are_apart(tmp_path: Path) -> None:
    write_rows(tmp_path / "task.jsonl", [Row(f"word {n}", f"answer {n}") for n in range(100)])
    split = word_tasks.TaskRows.read(tmp_path / "task.jsonl", 3)
    parts = [[row.prompt for row in part] for part in (split.test, split.private, split.public)]
    assert [len(part) for part in parts] == [25, 37, 38]
    assert len({prompt for part in parts for prompt in part}) == 100
    assert split.test[0].prompt.startswith("Input: word ")
    assert split.test[0].answer.endswith("\n")
    assert split != word_tasks.TaskRows.read(tmp_path / "task.jsonl", 4)


@needs_shared
def test_every_way_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = PlainRecipe(steps=2, batch=4, rate=1e-3)
    for name, value in {"LLM_RECIPE": quick, "TINY_RECIPE": quick, "TEST_ROWS": 8, "TUNED_ROWS": 24}.items():
        monkeypatch.setattr(word_tasks, name, value)
    out = tmp_path / "found.json"
    seen = ["fv.capitalize", "fv.prev_item", "fv.synonym"]
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "word_tasks",
            "--words",
            str(WORDS),
            "--tiny",
            str(TINY),
            "--llm",
            str(LLM),
            "--out",
            str(out),
            "--cache",
            str(tmp_path / "cache"),
            "--unseen",
            "fv.next_item",
            "--scored",
            "fv.prev_item",
            "--seen",
            *seen,
        ],
    )
    word_tasks.main()
    found = json.loads(out.read_text())
    assert [(run["task"], run["group"]) for run in found["runs"]] == [
        ("fv.next_item", "unseen"),
        ("fv.prev_item", "seen"),
    ]
    for run in found["runs"]:
        ways = set(run["scores"])
        assert {"TinyLM tuned", "LLM tuned (ceiling)", "mean", "nearest", "ridge"} <= ways
        assert {"in-context, TinyLM's answers", "weak-to-strong", "composed, tuned on agreement"} <= ways
        assert all(0 <= run["scores"][way] <= 1 for way in ways - {"nearest task"})
    assert set(found["summary"]) == {"seen", "unseen"}
    capsys.readouterr()
    word_tasks.main()
    assert capsys.readouterr().out == ""
    assert json.loads(out.read_text()) == found
    monkeypatch.setattr(word_tasks, "TUNED_ROWS", 16)
    with pytest.raises(SystemExit, match="measured with a different tuning; name another --out"):
        word_tasks.main()
    assert json.loads(out.read_text()) == found


def test_seeds_that_settings_were_chosen_on_stand_apart() -> None:
    runs = [
        {
            "kind": "unseen",
            "seed": seed,
            **{name: [0.1 * seed] for name in ("floor", "generated", "search", "refined", "ceiling")},
            "pgr": {name: float(seed) for name in ("generated", "search", "refined")},
        }
        for seed in range(8)
    ]
    chosen, fresh = agreement_tuning.summary(runs)
    assert (chosen["settings chosen on them"], chosen["seeds"], chosen["PGR, refined"][0]) == (True, 5, 2.0)
    assert (fresh["settings chosen on them"], fresh["seeds"], fresh["PGR, refined"][0]) == (False, 3, 6.0)
