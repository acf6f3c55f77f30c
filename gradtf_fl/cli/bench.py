"""``gradtf bench``: what the parts cost, compared with other code and with this machine's limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from gradtf_fl.cli.options import console, emit_json, json_option


@click.group(epilog="Example: gradtf bench secagg --json > secagg.json")
def bench() -> None:
    """Measure against peers and this machine's limits, in one run. Close other programs first."""


@bench.command(
    short_help="Secure aggregation: seconds, bytes.",
    epilog="Example: gradtf bench secagg --quick\n\nThe whole of it takes three to eight minutes.",
)
@click.option("--quick", is_flag=True, help="Small sizes: a first look in ten seconds.")
@click.option("--sizes", is_flag=True, help="Only vectors of 10^6 to 1.5 * 10^9: memory, 14 GB of disk.")
@json_option
def secagg(quick: bool, sizes: bool, as_json: bool) -> None:
    """Secure aggregation: CPU seconds of client and server, Flower's own functions, bytes, limits."""
    from gradtf_fl.reports import WorkProgress

    with WorkProgress("bench secagg") as progress:
        if sizes:
            from experiments.bench import ALL_SIZES, QUICK_SIZES, bench_sizes

            document = bench_sizes(QUICK_SIZES if quick else ALL_SIZES, progress.show)
        else:
            from experiments.bench import FULL_SECAGG, QUICK_SECAGG, bench_secagg  # imports flwr

            document = bench_secagg(QUICK_SECAGG if quick else FULL_SECAGG, progress.show)
    if as_json:
        emit_json(document)
    else:
        print_rows(document)


@bench.command(
    short_help="Private training: seconds, memory.",
    epilog="Example: gradtf bench dp --model ./my-model --json > dp.json\n\nFour minutes for each model.",
)
@click.option("--model", "models", multiple=True, metavar="NAME", help="A further model: folder or hub id.")
@click.option("--quick", is_flag=True, help="One batch size, few steps: a first look.")
@json_option
def dp(models: tuple[str, ...], quick: bool, as_json: bool) -> None:
    """A private step by either sampler, compared with a plain step, stock Opacus, ghost clipping, torch.func."""
    from gradtf_fl.reports import WorkProgress

    with WorkProgress("bench dp") as progress:
        from experiments.bench import FULL_DP, QUICK_DP, bench_dp  # imports torch

        document = bench_dp(("embedded:tiny", *models), QUICK_DP if quick else FULL_DP, progress.show)
    if as_json:
        emit_json(document)
    else:
        print_rows(document)


@bench.command(
    short_help="Exchanges of real processes: seconds.",
    epilog="Example: gradtf bench federation --json > federation.json\n\nSix to ten minutes.",
)
@click.option("--quick", is_flag=True, help="One measured round each: a first look.")
@json_option
def federation(quick: bool, as_json: bool) -> None:
    """Seconds of an exchange between server and organizations, and of Flower's process per message."""
    from gradtf_fl.reports import WorkProgress

    with WorkProgress("bench federation") as progress:
        from experiments.bench import FULL_FEDERATION, QUICK_FEDERATION, bench_federation  # imports flwr

        document = bench_federation(QUICK_FEDERATION if quick else FULL_FEDERATION, progress.show)
    if as_json:
        emit_json(document)
    else:
        print_rows(document)


def print_rows(document: Mapping[str, Any]) -> None:
    """The rows as a table, the machine below it."""
    from rich.table import Table

    table = Table(show_edge=False)
    table.add_column("what", ratio=3, overflow="fold")
    table.add_column("size", ratio=2, overflow="fold")
    for heading in ("ours", "theirs", "ratio", "limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in document["rows"]:
        size = " ".join(f"{name}={value:g}" for name, value in row["size"].items())
        figures = [_figure(row[name]) for name in ("ours", "theirs", "ratio", "limit")]
        table.add_row(f"{row['what']}, {row['unit']}", size, *figures)
        if "server_ours" in row:
            ours, theirs = row["server_ours"], row["server_theirs"]
            table.add_row("  the server of that round, CPU s", "", *map(_figure, (ours, theirs, theirs / ours, None)))
    terminal = console()
    terminal.print(table)
    peers = sorted({row["peer"] for row in document["rows"] if row["peer"]})
    terminal.print(f"theirs: {', '.join(peers) or 'nobody'}; --json adds how each figure came about", highlight=False)
    terminal.print(", ".join(f"{name} {value}" for name, value in document["machine"].items()), highlight=False)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
