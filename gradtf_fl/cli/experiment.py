"""``gradtf experiment``: the paper's tables and figures, each from its preset, and the page that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gradtf_fl.cli.options import emit_json, json_option

out_option = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of results; default: experiments/results of a checkout, else ./results.",
)
presets_option = click.option(
    "--presets",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of presets (TOML); default: those in the package.",
)


@click.group(epilog="Example: gradtf experiment run table1")
def experiment() -> None:
    """Tables and figures of the paper, measured on this machine."""


@experiment.command(
    "list", short_help="List presets and their results.", epilog="Example: gradtf experiment list --json"
)
@presets_option
@out_option
@json_option
def list_presets(presets: Path | None, out: Path | None, as_json: bool) -> None:
    """List presets, how long each takes, and whether it has results."""
    from experiments.measuring import default_out
    from experiments.paper import load_presets, state_of

    folder = out or default_out()
    rows = [
        {"name": preset.name, **preset.file.model_dump(include={"title", "question", "seeds", "minutes"})}
        | {"results": state_of(preset, folder)}
        for preset in load_presets(presets)
    ]
    if as_json:
        emit_json({"presets": rows})
    else:
        _print_list(rows)


@experiment.command(
    short_help="Run one preset.", epilog="Example: gradtf experiment run figure4 --seeds 1 --out build/results"
)
@click.argument("name")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Only the preset's first N seeds.")
@presets_option
@out_option
@json_option
def run(name: str, seeds: int | None, presets: Path | None, out: Path | None, as_json: bool) -> None:
    """Run preset NAME (see `list`). A killed run continues with the seeds that its results lack."""
    from gradtf_fl.reports import WorkProgress

    with WorkProgress(f"experiment {name}") as progress:
        from experiments.measuring import default_out
        from experiments.paper import load_preset, run_preset

        folder = out or default_out()
        document = run_preset(load_preset(name, presets), folder, seeds, progress.show)
    if as_json:
        emit_json(document)
    else:
        _print_results(document)
        click.echo(f"in {folder / name}.json; all of it as a page: gradtf experiment report")


@experiment.command(short_help="Write the page of all results.", epilog="Example: gradtf experiment report")
@presets_option
@out_option
@json_option
def report(presets: Path | None, out: Path | None, as_json: bool) -> None:
    """Write README.md and figures of all results, in the same folder."""
    from experiments.measuring import default_out
    from experiments.paper import write_report

    written = write_report(out or default_out(), presets)
    if as_json:
        emit_json({"written": [str(path) for path in written]})
    else:
        click.echo(f"{written[0]} and {len(written) - 1} figures")


LABEL_WIDTH, VALUE_WIDTH = 30, 17
"""Of a results table's columns, with the space and lines between them: ``-1.737 ± 1.337``."""


def _print_list(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False)
    for heading in ("name", "shows", "seeds", "minutes", "results"):
        table.add_column(heading, justify="right" if heading in ("seeds", "minutes") else "left", overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["title"], str(len(row["seeds"])), f"{row['minutes']:g}", row["results"])
    Console().print(table)


def _print_results(document: dict[str, Any]) -> None:
    """A table for each unit, and of its columns as many side by side as the terminal is wide for."""
    from rich.console import Console
    from rich.table import Table

    from experiments.paper import ResultsTable

    console = Console()
    beside = max(1, (console.width - LABEL_WIDTH) // VALUE_WIDTH)
    for results in ResultsTable.of(document).by_unit():
        for start in range(0, len(results.columns), beside):
            columns = results.columns[start : start + beside]
            table = Table(title=f"{document['title']} ({results.unit})", title_justify="left", show_edge=False)
            table.add_column(document["x"] or "", overflow="fold", max_width=LABEL_WIDTH - 3)
            for column in columns:
                table.add_column(results.heading(column), justify="right", overflow="fold")
            for row in results.rows:
                table.add_row(row, *(results.text(row, column) for column in columns))
            console.print(table)
            console.print()
