"""``gradtf audit``: privacy budgets from ledgers, and whether those ledgers can be believed."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradtf_fl.cli.audit.empirical import empirical
from gradtf_fl.cli.audit.files import compared_options, compared_with, ledger_files, ledger_options, read_each
from gradtf_fl.cli.audit.statement import statement
from gradtf_fl.cli.audit.transfer import export, import_, rotate
from gradtf_fl.cli.audit.what_if import what_if
from gradtf_fl.cli.options import console
from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.files import write_whole
from gradtf_fl.shown import shown

if TYPE_CHECKING:
    from gradtf_fl.privacy import AdvertisedHeads, LedgerReading


@click.group()
def audit() -> None:
    """Report and verify privacy ledgers.

    \b
    Example:
        gradtf audit report --ledger org-* --format html --out audit.html
        gradtf audit verify --ledger org-*
        gradtf audit statement --ledger org-* --out statements
    """


@audit.command(short_help="Epsilon spent, by three accountants.")
@ledger_options
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "html", "csv"]),
    default="table",
    show_default=True,
    help="html is one self-contained page with charts.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write here instead of to stdout.")
def report(ledgers: tuple[Path, ...], paths: tuple[Path, ...], form: str, as_json: bool, out: Path | None) -> None:
    """Epsilon spent, by three accountants, with its unit, adjacency, delta, sampler and noise generator.

    Checks what the figures rest on: every row's hash, the head, and the signatures of the last row and of each key
    rotation. `verify` checks all signatures. Exits with 5 after the report when a ledger is broken, cannot be read, or
    holds figures that no audit can compute. The other ledgers are reported, and that one is named.

    \b
    Example:
        gradtf audit report --ledger out/organizations/*/ledger.sqlite
    """
    files = ledger_files(ledgers, paths)
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.absolute().parent} does not exist")
    from gradtf_fl.privacy import load_libraries
    from gradtf_fl.reports import read_for_report, report_each, to_csv, to_html, to_json, to_table

    unread: list[str] = []
    readings = read_each("audit report", files, read_for_report, load_libraries, unread)
    reports, costly = report_each(readings)
    if not reports:
        raise VerificationFailed([*unread, *costly])
    chosen = "json" if as_json else form
    if chosen == "table":
        _print_table(to_table(reports), out)
    else:
        text = {"json": to_json, "html": to_html, "csv": to_csv}[chosen](reports)
        write_whole(out, text) if out is not None else click.echo(text, nl=False)
    if out is not None:
        click.echo(f"wrote {out}", err=True)
    _fail_on_breaks(readings, [*unread, *costly])


@audit.command(short_help="Check hashes, signatures and heads.")
@ledger_options
@compared_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def verify(
    ledgers: tuple[Path, ...],
    paths: tuple[Path, ...],
    keys: tuple[bytes, ...],
    head: bytes | None,
    heads_file: Path | None,
    as_json: bool,
) -> None:
    """Check every row's hash and signature, the order, the file's structure and its head file.

    A ledger that was rolled back together with its head file looks as sound as it once was. Only a head that was
    announced later and kept elsewhere reveals it (--head, --heads). Exits with 5 on any break and names the row.

    \b
    Example:
        gradtf audit verify --ledger org-1/ledger.sqlite --public-key 9f3c...
        gradtf audit verify --ledger org-*/ledger.sqlite --heads last-month.json
    """
    from gradtf_fl.privacy import read_ledger

    files = ledger_files(ledgers, paths)
    advertised = compared_with(files, head, heads_file)
    read = partial(read_ledger, public_keys=keys, advertised=advertised)
    readings = read_each("audit verify", files, read)
    if as_json:
        click.echo(json.dumps({"ledgers": [_verdict(reading, advertised) for reading in readings]}, indent=1))
    else:
        for reading in readings:
            if not reading.problems:
                click.echo(_line(reading, advertised if advertised.announcements else None))
    _fail_on_breaks(readings)


def _line(reading: LedgerReading, advertised: AdvertisedHeads | None) -> str:
    organization, key = reading.content.genesis.organization, reading.keys[-1].hex()
    seen = "" if advertised is None else f", {len(advertised.of(organization))} announced heads on the chain"
    head = reading.head.hex()
    return shown(f"{reading.path}: sound; {organization}, {reading.rows} rows{seen}, head {head}, key {key}")


def _verdict(reading: LedgerReading, advertised: AdvertisedHeads) -> dict[str, Any]:
    organization = reading.content.genesis.organization
    return {
        "ledger": str(reading.path),
        "organization": organization,
        "ok": not reading.problems,
        "rows": reading.rows,
        "head": reading.head.hex(),
        "public_key": reading.keys[-1].hex(),
        "earlier_keys": [key.hex() for key in reading.keys[:-1]],
        "announced_heads": len(advertised.of(organization)),
        "problems": [{"row": problem.row, "what": problem.what} for problem in reading.problems],
    }


for command in (statement, export, import_, rotate, empirical, what_if):
    audit.add_command(command)


def _fail_on_breaks(readings: list[LedgerReading], others: Sequence[str] = ()) -> None:
    breaks = [f"{reading.path}: {problem}" for reading in readings for problem in reading.problems] + [*others]
    if breaks:
        raise VerificationFailed(breaks)


def _print_table(table: Any, out: Path | None) -> None:
    from rich.console import Console

    if out is None:
        console().print(table)
        return
    page = Console(record=True, width=120, file=io.StringIO())
    page.print(table)
    write_whole(out, page.export_text())
