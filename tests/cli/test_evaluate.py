"""``gradtf evaluate`` on text tasks: what it reports, and what it refuses, all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gradtf_fl.adapters import AdapterSpec, attach, initial_state, save_adapter, set_adapter_state
from gradtf_fl.adapters.models import load_model
from gradtf_fl.tasks import Row, write_rows
from gradtf_fl.tasks.decoding import generate_greedily
from tests.benchmark_data import DATA, MODELS, needs_data, needs_models
from tests.cli.conftest import Files, gradtf

# In the embedded pair's vocabulary; the untrained pair never gets 40 new tokens right
TASK = """
name = "codes"
metric = "exact_match"
prompt = "{codes}"
answer = "{sum}"
max_new_tokens = 2
[fields]
codes = "codes"
sum = "sum"
[files]
train = "rows.jsonl"
test = "rows.jsonl"
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = [{"codes": f"[_][_][_]37?{n}=", "sum": str(37 + n)} for n in range(10, 30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "codes.toml").write_text(TASK)
    return tmp_path / "codes.toml"


def test_a_toml_task_is_generated_and_scored(files: Files, task: Path) -> None:
    result = gradtf("evaluate", "--model", files.tiny, "--task", task, "--json", "--floor", 0.5, "--ceiling", 1)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document == {
        "model": files.tiny,
        "adapter": None,
        "task": str(task),
        "split": "test",
        "rows": 20,
        "metric": "exact_match",
        "score": document["exact_match"],
        "exact_match": document["exact_match"],
        "skipped_rows": 0,
        "skipped": [],
        "truncated_prompts": 0,
        "unanswered_rows": document["unanswered_rows"],
        "pgr": pytest.approx(2 * document["exact_match"] - 1),
    }


def test_skipped_rows_are_counted_and_named(files: Files, task: Path) -> None:
    rows = task.parent / "rows.jsonl"
    rows.write_text(rows.read_text() + "{\n")
    arguments = ("evaluate", "--model", files.tiny, "--task", task, "--limit", 3)
    refused = gradtf(*arguments)
    assert refused.exit_code == 2
    assert f"gradtf: data {rows}, line 21: not JSON\n" in refused.stderr
    assert "1 of 21 rows are malformed, at most 1.00% may be" in refused.stderr
    allowed = gradtf(*arguments, "--max-malformed", 0.05)
    assert allowed.exit_code == 0, allowed.stderr
    assert "exact match" in allowed.stdout
    assert "on 3 rows (1 malformed rows skipped, 0 prompts lost their start" in allowed.stdout
    assert f"skipped: data {rows}, line 21: not JSON\n" in allowed.stderr
    document = json.loads(gradtf(*arguments, "--max-malformed", 0.05, "--json").stdout)
    assert (document["skipped_rows"], document["skipped"]) == (1, [f"data {rows}, line 21: not JSON"])


def test_data_split_and_limit_choose_the_rows(files: Files, task: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "validation.jsonl").write_text('{"codes": "[_][_][_]37?11=", "sum": "48"}\n' * 5)
    arguments = ("evaluate", "--model", files.tiny, "--task", task, "--data", other, "--json")
    assert json.loads(gradtf(*arguments).stdout)["rows"] == 5
    document = json.loads(gradtf(*arguments, "--split", "validation", "--limit", 2).stdout)
    assert (document["rows"], document["split"]) == (2, "validation")
    assert gradtf(*arguments, "--split", "train").exit_code == 2


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    adapter, empty = tmp_path / "adapter", tmp_path / "empty"
    result = gradtf(
        "evaluate", "--model", "/nowhere", "--adapter", adapter, "--task", "gsm8k", "--data", empty, "--floor", 0.5
    )
    assert result.exit_code == 2
    problems = result.stderr.splitlines()
    assert len(problems) == 4
    for wanted in ("--ceiling", "/nowhere", str(adapter), f"data {empty}: holds neither test.jsonl nor test.jsonl.gz"):
        assert any(wanted in problem for problem in problems), wanted


def test_options_of_text_tasks_are_refused_elsewhere(files: Files, tmp_path: Path) -> None:
    arguments = ("evaluate", "--model", files.tiny, "--task", "house-rules:zzz")
    result = gradtf(*arguments, "--data", tmp_path, "--max-new-tokens", 4)
    assert result.exit_code == 2
    assert "--data, --max-new-tokens: only for text tasks, which house-rules:zzz is not" in result.stderr
    assert "no House Rule is named 'zzz'" in result.stderr


@pytest.mark.parametrize("what", ["missing", "broken"])
def test_a_task_file_that_cannot_be_used_is_refused(what: str, files: Files, task: Path) -> None:
    if what == "broken":
        task.write_text(TASK.replace("{codes}", "{code}").replace('"exact_match"', '"bleu"'))
    else:
        task.unlink()
    result = gradtf("evaluate", "--model", files.tiny, "--task", task)
    assert result.exit_code == 2
    expected = {"missing": ["no such file"], "broken": ["prompt: {code} is not one of [fields]", "metric: "]}[what]
    assert all(f"{task}: {wanted}" in result.stderr for wanted in expected)


def test_too_many_new_tokens_are_refused(files: Files, task: Path) -> None:
    result = gradtf("evaluate", "--model", files.tiny, "--task", task, "--max-new-tokens", 100_000)
    assert result.exit_code == 2
    assert "give a smaller --max-new-tokens" in result.stderr


@needs_data
@needs_models
@pytest.mark.parametrize(("name", "metric"), [("drop", "exact_match"), ("dialogsum", "rouge1")])
def test_real_data_on_a_real_model(name: str, metric: str) -> None:
    arguments = ("--task", name, "--data", DATA / name, "--limit", 6, "--max-new-tokens", 16)
    result = gradtf("evaluate", "--model", MODELS / "stories260K", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["metric"] == metric
    assert document["score"] == document[metric]
    assert (document["score"] > 0) == (metric == "rouge1")
    assert document["truncated_prompts"] > 0


def test_the_adapter_is_what_is_scored(tmp_path: Path) -> None:
    model, tokenizer = load_model("embedded:llm")
    spec = AdapterSpec()
    torch.manual_seed(0)
    state = {name: value + 0.3 * torch.randn_like(value) for name, value in initial_state(model, spec).items()}
    save_adapter(tmp_path / "adapter", state, spec, "embedded:llm")
    adapted: Any = attach(model, spec)
    set_adapter_state(adapted, state)
    prompts = [f"[_][_][_]{n:02d}?{99 - n:02d}=" for n in range(40)]
    answers = [one.text for one in generate_greedily(adapted, tokenizer, prompts, 2)]
    rows = [Row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if len(answer) == 2]
    assert len(rows) > 20
    write_rows(tmp_path / "rows.jsonl", rows)
    given = ("--model", "embedded:llm", "--task", tmp_path / "rows.jsonl", "--json")
    with_it = gradtf("evaluate", *given, "--adapter", tmp_path / "adapter")
    assert json.loads(with_it.stdout)["exact_match"] == 1.0
    assert json.loads(gradtf("evaluate", *given).stdout)["exact_match"] < 0.5
