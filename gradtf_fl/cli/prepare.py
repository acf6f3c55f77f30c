"""``gradtf prepare``: the provider's whole work for a project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradtf_fl.cli.options import asks, config_option, configured, console, emit_json, json_option
from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    from gradtf_fl.preparation import Estimate, Judgement


@click.command(epilog="Example: gradtf prepare --config my-project/federation.toml --yes")
@config_option
@click.option("--yes", is_flag=True, help="Begin without asking; required without a terminal.")
@click.option("--estimate", "only_estimate", is_flag=True, help="Only say what it would take.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that curate.")
@json_option
def prepare(config_file: Path | None, yes: bool, only_estimate: bool, workers: int, as_json: bool) -> None:
    """Curate shadow sets, train the Grad-Transformer, fit controls, tune the task library, and judge the result.

    It begins with an estimate of time, memory and disk, measured on this machine. A killed run continues where it was.
    """
    settings = configured(config_file, {})
    if not (yes or only_estimate or (asks() and not as_json)):
        raise ConfigError("--yes: required where nobody can be asked (--estimate only says what it would take)")

    from gradtf_fl.adapters import Place
    from gradtf_fl.preparation import ProviderWork, estimate
    from gradtf_fl.preparation import prepare as run
    from gradtf_fl.reports import WorkProgress

    work, place = ProviderWork.of(settings), Place.of(settings.compute)
    click.echo("measuring a shadow set and a training step on this machine ...", err=True)
    expected = estimate(work, place, workers)
    click.echo(_said(expected, str(place)), err=as_json or not only_estimate)
    if only_estimate:
        return emit_json({"estimate": vars(expected) | {"seconds": expected.seconds}}) if as_json else None
    if not yes and not click.confirm("Begin?", default=True):
        raise click.Abort
    with WorkProgress("prepare") as progress:
        made = run(work, progress.show, workers, place)
    if as_json:
        document: dict[str, Any] = {"transformer": str(work.checkpoint), "sha256": made.transformer.sha256}
        return emit_json(document | {"judgement": made.judgement.to_json(), "report": str(made.report)})
    _print(made.judgement)
    click.echo(f"{work.checkpoint}: Grad-Transformer; report {made.report}")
    if config_file is not None:
        click.echo(f"Next: gradtf simulate --config {config_file}")


def _said(expected: Estimate, place: str) -> str:
    parts = (
        ("shadow sets", expected.curation_s),
        ("training", expected.training_s),
        ("task library", expected.library_s),
        ("judging", expected.judging_s),
    )
    times = ", ".join(f"{what} {_time(seconds)}" for what, seconds in parts)
    return (
        f"about {_time(expected.seconds)} on {place}: {times}\n"
        f"one shadow set of both models takes {_time(expected.shadow_set_s)}; "
        f"{expected.shards_left} of {expected.shards} shards are left\n"
        f"{expected.peak_bytes / 1e9:.1f} GB of memory a process, {expected.disk_bytes / 1e6:,.0f} MB on disk\n"
        "Time is proportional to shadow_sets, pair_sets and training_steps in [provider]."
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _print(judgement: Judgement) -> None:
    from rich.table import Table

    table = Table(
        title=f"Held-out public rows ({judgement.test_rows} each): loss in nats a character, less is better",
        title_justify="left",
        show_edge=False,
    )
    for heading in ("", *judgement.organizations, "share of the LLM's own gain"):
        table.add_column(heading, justify="left" if not heading else "right")
    shares = judgement.shares
    for way, losses in judgement.losses.items():
        share = f"{shares[way]:.2f}" if way in shares else ""
        table.add_row(way, *(f"{loss:.3f}" for loss in losses), share)
    console().print(table)
    click.echo(judgement.verdict)
