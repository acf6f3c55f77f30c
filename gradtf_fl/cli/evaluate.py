"""``gradtf evaluate``: a model's score on a task, with or without an adapter, and PGR.

House Rules and files of rows are scored by exact match of the whole answer, without generating. Text tasks (the paper's
six data sets, own ones by TOML) are generated greedily and scored by their own metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradtf_fl.cli.options import (
    config_option,
    configured,
    emit_json,
    json_option,
    place_of,
    place_options,
    row_form_options,
)
from gradtf_fl.config import RowFormat, validate
from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from gradtf_fl.adapters import AdapterSpec, Place
    from gradtf_fl.config import SimulationConfig
    from gradtf_fl.tasks import LoadedTask, Row, TextTask

    Adapter = tuple[dict[str, torch.Tensor], AdapterSpec]

HOUSE_RULES = "house-rules:"
METRIC_WORDS = {"exact_match": "exact match", "rouge1": "ROUGE-1 F"}


@click.command(
    epilog="Example: gradtf evaluate --model embedded:llm --adapter build/run/rounds/3/llm_adapter "
    "--task build/run/organizations/org-1/test.jsonl --floor .70 --ceiling .95"
)
@config_option
@click.option(
    "--model", metavar="M", help="embedded:tiny, embedded:llm, a folder or hub id.  [default: the project's LLM]"
)
@click.option("--adapter", type=click.Path(path_type=Path), metavar="DIR", help="PEFT LoRA folder for this model.")
@click.option(
    "--task",
    metavar="T",
    help="A file of rows (JSONL, JSON, CSV, Parquet) or a datasets folder; house-rules:RULE with three tag letters, "
    "e.g. afk; aqua_rat, gsm8k, commonsense_qa, drop, samsum or dialogsum; or a TOML file that describes a task.  "
    "[default: the project's test rows]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Text tasks: folder with train, validation, test files of rows.  [default: the hub or the TOML's files]",
)
@click.option(
    "--split", type=click.Choice(["train", "validation", "test"]), help="Text tasks: rows to use.  [default: test]"
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Text tasks: longest generated answer.  [default: the task's own]",
)
@click.option(
    "--max-malformed",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Text tasks: share of malformed rows that may be skipped.  [default: 0.01]",
)
@row_form_options
@click.option("--max-tokens", type=click.IntRange(min=2), metavar="N", help="Files of rows: tokens of a row.")
@click.option("--max-cut", type=click.FloatRange(0, 1), metavar="SHARE", help="Files of rows: share of longer ones.")
@click.option(
    "--end/--no-end",
    default=None,
    help="Files of rows: whether the answer's end counts.  [default: --end, for the embedded models --no-end]",
)
@click.option("--floor", type=click.FloatRange(0, 1), help="Score of the tuned TinyLM, for PGR.")
@click.option("--ceiling", type=click.FloatRange(0, 1), help="Score of the LLM tuned on the rows, for PGR.")
@place_options
@json_option
def evaluate(
    config_file: Path | None,
    model: str | None,
    adapter: Path | None,
    task: str | None,
    data: Path | None,
    split: str | None,
    limit: int | None,
    max_new_tokens: int | None,
    max_malformed: float | None,
    row_format: str | None,
    prompt: str | None,
    answer: str | None,
    window: int | None,
    max_tokens: int | None,
    max_cut: float | None,
    end: bool | None,
    floor: float | None,
    ceiling: float | None,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Score a model by the task's metric; with --floor and --ceiling also the performance gap recovered."""
    from gradtf_fl.reports import gap_recovered

    problems, place, loaded = _Problems(), None, None
    with problems:
        place = place_of(device, precision)
    project = configured(config_file, {}) if config_file is not None else None
    model = _wanted_model(model, task, project)
    if (floor is None) != (ceiling is None):
        problems.add("PGR needs both --floor and --ceiling")
    with problems:
        loaded = _adapter_for(model, adapter)
    scored = _Scored(model, loaded, place)
    told = {"model": model, "adapter": str(adapter) if adapter else None}
    if task is None:
        assert project is not None
        problems.raise_all()
        _tell_project(_of_project(project, scored, limit), told, as_json)
        return
    of_rows = {
        "format": row_format,
        "prompt": prompt,
        "answer": answer,
        "window": window,
        "max_tokens": max_tokens,
        "max_cut": max_cut,
        "end": end,
    }
    of_text = {"--data": data, "--split": split, "--max-new-tokens": max_new_tokens, "--max-malformed": max_malformed}
    form = RowFormat()
    with problems:
        form = _form(of_rows, model)
    work: list[Row] | LoadedTask = []
    with problems:
        text_task = _text_task(task)
        problems.add_needless(task, of_rows, of_text, text_task)
        work = _rows(task, form, limit) if text_task is None else _loaded(text_task, data, split, max_malformed)
    problems.raise_all()

    if isinstance(work, list):
        result = _score_rows(scored, task, work, form, limit)
        score, said = result["exact_match"], _row_sentence(result)
    else:
        result = _score_text(scored, work, limit, max_new_tokens)
        score, said = result["score"], _text_sentence(result)
        if not as_json and work.skipped:
            click.echo("\n".join(f"skipped: {row}" for row in work.skipped_rows), err=True)
    pgr = gap_recovered({"llm_generated": score, "tiny_tuned": floor, "llm_ceiling": ceiling})
    if as_json:
        emit_json(told | {"task": task} | result | {"pgr": pgr})
        return
    click.echo(said + ("" if pgr is None else f", PGR {pgr:.3f}"))


@dataclass(frozen=True)
class _Scored:
    """The model that is scored, by name: it is loaded when all that was asked is known to be right."""

    name: str
    adapter: Adapter | None
    place: Place | None

    def load(self) -> tuple[Any, Any]:
        """(model with its adapter, tokenizer)."""
        from gradtf_fl.adapters import AdaptedModel, load_model

        if self.adapter is None:
            return load_model(self.name, self.place)
        state, spec = self.adapter
        adapted = AdaptedModel.load(self.name, spec, self.place)
        return adapted.attach(state), adapted.tokenizer


def _wanted_model(model: str | None, task: str | None, project: SimulationConfig | None) -> str:
    """The model's name: the option's, or the project's."""
    found = model or (project.adapted_model if project is not None else None)
    if found is None or (task is None and project is None):
        missing = [name for name, value in (("--model", found), ("--task", task)) if value is None]
        raise ConfigError(f"{', '.join(missing)}: required, or a project that sets it (--config)")
    return found


def _of_project(project: SimulationConfig, scored: _Scored, limit: int | None) -> dict[str, Any]:
    """Score and loss per character on each source's test rows, which nobody trains on."""
    from gradtf_fl.tasks import loss_per_character, read_task_rows, score_task

    task = project.task
    if task.is_house_rules:
        raise ConfigError(
            "the project's task is house-rules, whose rows are drawn: name a rule (--task house-rules:afk)"
        )
    read = [read_task_rows(source, task, project.by, project.test) for source in task.source]
    model, tokenizer = scored.load()
    found: dict[str, Any] = {}
    for part in read:
        examples = part.test[: limit or project.test_rows or None]
        loss = loss_per_character(model, tokenizer, [one.row for one in examples], task.max_tokens)
        found[part.name] = {"rows": len(examples), "loss_per_character": loss}
        if part.task is not None and task.metric != "loss":
            score = score_task(model, tokenizer, part.task, examples)
            found[part.name] |= {"metric": score.metric, score.metric: score.value}
    return found


def _tell_project(found: dict[str, Any], told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json(told | {"sources": found})
        return
    for source, one in found.items():
        metric = one.get("metric")
        score = f"{METRIC_WORDS[metric]} {one[metric]:.4f}, " if metric else ""
        click.echo(f"{source}: {score}{one['loss_per_character']:.4f} nats per character on {one['rows']} rows")


class _Problems:
    """Collects the problems of several checks, so that all are told at once. Each ``with`` is one check."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def add(self, problem: str) -> None:
        self._found.append(problem)

    def add_needless(
        self, task: str, of_rows: Mapping[str, object], of_text: Mapping[str, object], text_task: TextTask | None
    ) -> None:
        """Options about rows without a file, and about a text task without one."""
        if text_task is None and (needless := [name for name, value in of_text.items() if value is not None]):
            self.add(f"{', '.join(needless)}: only for text tasks, which {task} is not")
        if text_task is None and not task.startswith(HOUSE_RULES):
            return
        needless = ["--" + name.replace("_", "-") for name, value in of_rows.items() if value is not None]
        if needless:
            self.add(f"{', '.join(needless)}: only for files of rows, which {task} is not")

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, ConfigError):
            return False
        self._found += error.problems
        return True

    def raise_all(self) -> None:
        if self._found:
            raise ConfigError(self._found)


def _adapter_for(name: str, adapter: Path | None) -> Adapter | None:
    """The adapter of model ``name``; says what can be known to be wrong with either without loading the model."""
    from gradtf_fl.adapters import check_base, load_adapter, model_folder

    problems = _Problems()
    with problems:
        model_folder(name)
    loaded: Adapter | None = None
    if adapter is not None:
        with problems:
            state, spec, base = load_adapter(adapter)
            check_base(f"--adapter {adapter}", base, name)
            loaded = state, spec
    problems.raise_all()
    return loaded


def _text_task(task: str) -> TextTask | None:
    """The text task that ``--task`` names, None for House Rules and files of rows."""
    from gradtf_fl.tasks import PAPER_TASKS, load_own_task

    if task.endswith(".toml"):
        return load_own_task(Path(task))
    return PAPER_TASKS.get(task)


def _loaded(task: TextTask, data: Path | None, split: Any, max_malformed: float | None) -> LoadedTask:
    from gradtf_fl.tasks import MAX_MALFORMED, FolderSource, load_task

    source = FolderSource(data) if data else None
    share = MAX_MALFORMED if max_malformed is None else max_malformed
    return load_task(task, split or "test", source, share)


def _form(asked: Mapping[str, object], model: str) -> RowFormat:
    """How a file's rows are read: what was asked for, the rest by default."""
    from gradtf_fl.adapters import EMBEDDED

    given = {"end": model not in EMBEDDED} | {name: value for name, value in asked.items() if value is not None}
    return validate(RowFormat, given, lambda key: f"--{key.replace('_', '-')}" if key else "--task")


def _rows(task: str, form: RowFormat, limit: int | None) -> list[Row]:
    from gradtf_fl.tasks import PAPER_TASKS, read_rows

    if not task.startswith(HOUSE_RULES):
        if not Path(task).exists():
            raise ConfigError(
                f"--task {task}: no such file "
                f"(house-rules:RULE, {', '.join(PAPER_TASKS)}, a file of rows or a TOML file)"
            )
        return read_rows(task, None, form)[:limit]

    import numpy as np

    from gradtf_fl.tasks import HiddenTask, code_pairs, rule_named, tokens_to_rows

    try:
        rule = rule_named(task.removeprefix(HOUSE_RULES))
    except ValueError as error:
        raise ConfigError(f"--task: {error}") from None
    count = min(limit or len(code_pairs("test")), len(code_pairs("test")))
    return tokens_to_rows(HiddenTask((rule,)).draw(np.random.default_rng(0), count, "test"))


def _score_rows(scored: _Scored, task: str, rows: list[Row], form: RowFormat, limit: int | None) -> dict[str, Any]:
    """Exact match and loss; of a file also what was cut."""
    from gradtf_fl.tasks import answer_scores, encode_rows, read_tokens

    model, tokenizer = scored.load()
    cut: dict[str, Any] = {}
    if task.startswith(HOUSE_RULES):
        tokens = encode_rows(rows, tokenizer)
    else:
        read = read_tokens(task, tokenizer, form, model.config, limit=limit)
        tokens, cut = read.tokens, {"format": read.form.format, "cut_rows": read.counts.cut}
    scores = answer_scores(model, tokens)
    loss = scores.nats / sum(len(row.answer) for row in rows)
    return {"rows": len(rows), "exact_match": scores.exact_match, "loss_per_character": loss} | cut


def _row_sentence(result: Mapping[str, Any]) -> str:
    cut = f", {result['cut_rows']} of them cut" if result.get("cut_rows") else ""
    figures = f"exact match {result['exact_match']:.4f}, {result['loss_per_character']:.4f} nats per character"
    return f"{figures} on {result['rows']} rows{cut}"


def _score_text(scored: _Scored, work: LoadedTask, limit: int | None, max_new_tokens: int | None) -> dict[str, Any]:
    """The task's own metric of generated answers."""
    from gradtf_fl.reports import WorkProgress
    from gradtf_fl.tasks import score_task

    model, tokenizer = scored.load()
    with WorkProgress("evaluate") as shown:

        def progress(done: int, total: int) -> None:
            shown.show("prompts", done, total)

        examples = work.examples[:limit]
        score = score_task(model, tokenizer, work.task, examples, max_new_tokens, progress=progress)
    return {
        "split": work.split,
        "rows": score.rows,
        "metric": score.metric,
        "score": score.value,
        score.metric: score.value,
        "skipped_rows": work.skipped,
        "skipped": list(work.skipped_rows),
        "truncated_prompts": score.truncated,
        "unanswered_rows": score.unanswered,
    }


def _text_sentence(result: dict[str, Any]) -> str:
    return (
        f"{METRIC_WORDS[result['metric']]} {result['score']:.4f} on {result['rows']} rows "
        f"({result['skipped_rows']} malformed rows skipped, {result['truncated_prompts']} prompts lost their start to "
        f"the model's context, {result['unanswered_rows']} rows without an answer)"
    )
