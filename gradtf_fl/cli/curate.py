"""``gradtf curate``: the provider's first phase, public data -> update-vector tuples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradtf_fl.cli.options import (
    chosen,
    config_option,
    configured,
    emit_json,
    json_option,
    place_given,
    place_of,
    place_options,
)
from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    from gradtf_fl.config import PlaceSection
    from gradtf_fl.curation import Curation, CurationConfig, TaskCuration

RULE_OPTIONS = (
    "rules",
    "single_groups",
    "extra_singles",
    "mixture_groups",
    "plain_singles",
    "plain_mixtures",
    "pair_singles",
    "pair_mixtures",
)
TEXT_TRAINING = "--objective mse-then-functional --steps 1000 --groups 16 --rows 1"
"""A row of text costs far more than one of House Rules: smaller batches, fewer steps."""
TASK_OPTIONS = ("data", "window", "shadow_sets", "pair_sets", "mixtures", "mechanisms")
ADAPTER_OPTIONS = ("rank", "alpha", "targets")
TUNING_OPTIONS = ("steps", "batch", "rate")
IN_PROJECT = {
    **{name: name for name in ("tiny", "llm", "seed", "rank", "targets")},
    **{name: f"provider.{name}" for name in ("shadow_sets", "pair_sets", "mixtures", "mechanisms", "stack")},
    **{name: f"provider.tuning_{name}" for name in TUNING_OPTIONS},
    "alpha": "lora_alpha",
    "rows": "provider.shadow_rows",
}
"""Option -> what of a project it stands for, with ``--config``."""


class WorkersType(click.ParamType[int | str]):
    """A number of processes, or ``ray``."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "ray":
            return "ray"
        number: int = click.IntRange(min=1).convert(value, param, ctx)
        return number


@click.command(
    epilog="Example: gradtf curate --out build/tuples --seed 0\n\nExample: gradtf curate --out build/text --tiny ./a "
    "--llm ./b --tasks gsm8k,text/shakespeare --data ./data\n\n"
    "Example: gradtf curate --config my-project/federation.toml"
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Tuple store to fill.  [default: --config's]"
)
@config_option
@click.option("--seed", type=click.IntRange(min=0), help="Seed of shadow sets and training.  [default: 0]")
@click.option("--tiny", metavar="M", help="TinyLM.  [default: embedded:tiny]")
@click.option("--llm", metavar="M", help="LLM.  [default: embedded:llm]")
@click.option("--rows", type=click.IntRange(min=64), help="Rows in a shadow set.  [default: 1024; tasks: 256]")
@click.option("--rules", type=click.IntRange(3, 64), help="Public rules used; fewer make a trial.  [default: 64]")
@click.option("--single-groups", type=click.IntRange(min=1), help="DP shadow federations for each rule.")
@click.option("--extra-singles", type=click.IntRange(min=0), help="More of one member for each rule, at epsilon 1.")
@click.option("--mixture-groups", type=click.IntRange(min=0), help="DP shadow federations on mixtures.")
@click.option("--plain-singles", type=click.IntRange(min=1), help="Plain TinyLM shadow sets for each rule.")
@click.option("--plain-mixtures", type=click.IntRange(min=0), help="Plain TinyLM shadow sets on mixtures.")
@click.option("--pair-singles", type=click.IntRange(min=1), help="Shadow sets of both models for each rule.")
@click.option("--pair-mixtures", type=click.IntRange(min=0), help="Shadow sets of both models on mixtures.")
@click.option(
    "--tasks",
    metavar="NAME[,NAME...]",
    help="Instead of House Rules: tasks beneath --data (a folder with a train file of rows, or a text file without "
    "its .txt), or an own task's TOML file. Any two models.",
)
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Tasks: where their files are.")
@click.option(
    "--window",
    type=click.IntRange(min=0),
    metavar="N",
    help="Tasks: characters of a window of plain text; 0 for prompts and answers.  [default: 128]",
)
@click.option("--shadow-sets", type=click.IntRange(min=1), help="Tasks: TinyLM shadow sets of each.  [default: 16]")
@click.option("--pair-sets", type=click.IntRange(min=1), help="Tasks: shadow sets of both models.  [default: 4]")
@click.option("--mixtures", type=click.IntRange(min=0), help="Tasks: TinyLM shadow sets on mixtures.  [default: 0]")
@click.option(
    "--mechanism",
    "mechanisms",
    type=click.Choice(["adamw", "sgld", "dp-sgd"]),
    multiple=True,
    help="Tasks: how the TinyLM learns; several share the shadow sets.  [default: adamw]",
)
@click.option("--rank", type=click.IntRange(min=1), help="Rank of both models' adapters.  [default: 2]")
@click.option("--alpha", type=click.FloatRange(0, min_open=True), help="LoRA alpha of both adapters.  [default: 4]")
@click.option("--targets", metavar="NAME[,NAME...]", help="Layers to train, by last name.  [default: q_proj,v_proj]")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Optimizer steps of a shadow set without DP, of both models.  [default: 150; tasks: 60]",
)
@click.option("--batch", type=click.IntRange(min=1), help="Rows in such a step.  [default: 32, LLM 12; tasks: 8]")
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True),
    help="Learning rate of such steps.  [default: 0.01, LLM 0.015; tasks: 0.005]",
)
@click.option(
    "--stack",
    type=click.IntRange(min=1),
    help="Shadow sets tuned at once: memory, and what a kill loses.  [default: 32; tasks: 8]",
)
@place_options
@click.option(
    "--workers",
    type=WorkersType(),
    metavar="N|ray",
    help="Processes, one thread each, or Ray tasks over processes and machines.  [default: one per core; 1 on cuda]",
)
@json_option
def curate(
    out: Path | None,
    config_file: Path | None,
    workers: Any,
    device: str,
    precision: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Fine-tune on public shadow sets and store the update vectors: TinyLM alone, and pairs with the LLM's.

    A killed run resumes: finished shards are verified and kept. Only unfinished shards are lost, one for each worker.
    """
    options = {name: value for name, value in chosen(given).items() if value != ()}
    curation: Curation
    if config_file is not None:
        from gradtf_fl.adapters import Place

        work = _of_project(config_file, options | place_given({"device": device, "precision": precision}))
        curation, out, place = work[0], out or work[1], Place.of(work[2])
    else:
        if out is None:
            raise ConfigError("--out: required without --config")
        _check(options)
        place, curation = place_of(device, precision), _curation(dict(options))
    if workers is None and place.device.type != "cpu":
        workers = 1  # several would each hold both models there

    from gradtf_fl.curation import curate as run
    from gradtf_fl.reports import WorkProgress

    with WorkProgress("curate") as progress:
        store = run(curation, out, progress.show, workers, place)
    document = {"out": str(out), "shards": len(store.names), "header": store.header}
    if as_json:
        emit_json(document)
    else:
        text = f" {TEXT_TRAINING}" if "tasks" in options else ""
        how = f"--tuples {out}{text}" if config_file is None else f"--config {config_file}"
        click.echo(f"{out}: {len(store.names)} shards; next: gradtf train {how}")


def _of_project(config_file: Path, options: dict[str, Any]) -> tuple[Curation, Path, PlaceSection]:
    """Curation, store and place of a project, overlaid with options; ConfigError where it has no work, and for options
    that no project has."""
    strange = [name for name in (*RULE_OPTIONS, "tasks", "data", "window") if name in options]
    if strange:
        raise ConfigError([f"{_option(name)}: only without --config, whose [task] says the rows" for name in strange])
    from gradtf_fl.preparation import ProviderWork

    settings = configured(config_file, {IN_PROJECT.get(name, name): value for name, value in options.items()})
    work = ProviderWork.of(settings)
    return work.curation, work.tuples, settings.compute


def _check(options: dict[str, Any]) -> None:
    """Options of the other kind of curation are refused, all at once."""
    for_tasks = "tasks" in options
    strange = RULE_OPTIONS if for_tasks else TASK_OPTIONS
    why = "only for House Rules, and --tasks is given" if for_tasks else "only with --tasks"
    problems = [f"{_option(name)}: {why}" for name in strange if name in options]
    wanted = ("tiny", "llm", "data") if for_tasks else ()
    problems += [f"{_option(name)}: required with --tasks" for name in wanted if name not in options]
    if problems:
        raise ConfigError(problems)


def _option(name: str) -> str:
    return "--mechanism" if name == "mechanisms" else "--" + name.replace("_", "-")


def _curation(options: dict[str, Any]) -> Curation:
    adapter = {name: options.pop(name) for name in ADAPTER_OPTIONS if name in options}
    tuning = {name: options.pop(name) for name in TUNING_OPTIONS if name in options}
    curation = _untuned(options)
    if "targets" in adapter:
        adapter["targets"] = tuple(name for name in str(adapter["targets"]).split(",") if name)
    plain = replace(curation.plain, **tuning)
    return replace(
        curation,
        spec=replace(curation.spec, **adapter),
        plain=plain,
        llm_recipe=replace(curation.llm_recipe, **tuning),
        snapshots=same_shares(curation.snapshots, curation.plain.steps, plain.steps),
    )


def same_shares(snapshots: Sequence[int], steps: int, now: int) -> tuple[int, ...]:
    """Steps of a training of ``now`` steps at the shares of it where ``snapshots`` lie in one of ``steps``."""
    return tuple(sorted({max(1, round(snapshot * now / steps)) for snapshot in snapshots}))


def _untuned(options: dict[str, Any]) -> CurationConfig | TaskCuration:
    from gradtf_fl.config import WINDOW, TaskSection, validate
    from gradtf_fl.curation import CurationConfig, TaskCuration

    if "tasks" not in options:
        return replace(CurationConfig(), **options)
    tasks = (name for name in str(options.pop("tasks")).split(",") if name)
    data, window = Path(options.pop("data")), options.pop("window", WINDOW)
    sources = tuple(name if name.endswith(".toml") else str(data / name) for name in tasks)
    values = {"format": "text", "window": window} if window else {}
    how = validate(TaskSection, values, lambda key: f"--{key}")
    return TaskCuration(sources=sources, task=how, **options)
