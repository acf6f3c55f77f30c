"""``gradtf evaluate``: exact match of a model on a task, with or without an adapter, and PGR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gradtf_fl.cli.options import emit_json, json_option


@click.command(
    epilog="Example: gradtf evaluate --model embedded:llm --adapter build/run/rounds/3/llm_adapter "
    "--task build/run/organizations/org-1/test.jsonl --floor .70 --ceiling .95"
)
@click.option("--model", required=True, metavar="M", help="embedded:tiny, embedded:llm, a folder or a hub id.")
@click.option("--adapter", type=click.Path(path_type=Path), metavar="DIR", help="PEFT LoRA folder for this model.")
@click.option(
    "--task",
    required=True,
    metavar="T",
    help='A JSONL file of {"prompt", "answer"} lines, or house-rules:RULE with three tag letters, e.g. afk.',
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows.")
@click.option("--floor", type=click.FloatRange(0, 1), help="Score of the tuned TinyLM, for PGR.")
@click.option("--ceiling", type=click.FloatRange(0, 1), help="Score of the LLM tuned on the rows, for PGR.")
@json_option
def evaluate(
    model: str,
    adapter: Path | None,
    task: str,
    limit: int | None,
    floor: float | None,
    ceiling: float | None,
    as_json: bool,
) -> None:
    """Score a model by exact match; with --floor and --ceiling also the performance gap recovered."""
    from gradtf_fl.errors import ConfigError
    from gradtf_fl.reports.simulation_report import gap_recovered

    if (floor is None) != (ceiling is None):
        raise ConfigError("PGR needs both --floor and --ceiling")
    rows = _rows(task, limit)
    score = _score(model, adapter, rows)
    pgr = gap_recovered({"llm_generated": score, "tiny_tuned": floor, "llm_ceiling": ceiling})
    if as_json:
        document: dict[str, Any] = {
            "model": model,
            "adapter": str(adapter) if adapter else None,
            "task": task,
        }
        emit_json(document | {"rows": len(rows), "exact_match": score, "pgr": pgr})
        return
    click.echo(f"exact match {score:.4f} on {len(rows)} rows" + ("" if pgr is None else f", PGR {pgr:.3f}"))


def _rows(task: str, limit: int | None) -> list[Any]:
    from gradtf_fl.errors import ConfigError
    from gradtf_fl.tasks import read_rows

    if not task.startswith("house-rules:"):
        if not Path(task).is_file():
            raise ConfigError(f"--task {task}: no such file (a JSONL file, or house-rules:RULE)")
        return read_rows(task)[:limit]

    import numpy as np

    from gradtf_fl.tasks.federation import HiddenTask, tokens_to_rows
    from gradtf_fl.tasks.house_rules import code_pairs, rule_named

    try:
        rule = rule_named(task.removeprefix("house-rules:"))
    except ValueError as error:
        raise ConfigError(f"--task: {error}") from None
    count = min(limit or len(code_pairs("test")), len(code_pairs("test")))
    return tokens_to_rows(HiddenTask((rule,)).draw(np.random.default_rng(0), count, "test"))


def _score(model_name: str, adapter: Path | None, rows: list[Any]) -> float:
    from gradtf_fl.adapters import attach, load_adapter, set_adapter_state
    from gradtf_fl.cli.base_model import check_base
    from gradtf_fl.models import load_model, model_folder
    from gradtf_fl.tasks import encode_rows, exact_match

    model_folder(model_name)
    loaded: Any = None
    if adapter is not None:
        loaded = load_adapter(adapter)
        check_base(f"--adapter {adapter}", loaded[2], model_name)
    model: Any
    model, tokenizer = load_model(model_name)
    if loaded is not None:
        state, spec, _ = loaded
        model = attach(model, spec)
        set_adapter_state(model, state)
    return exact_match(model, encode_rows(rows, tokenizer))
