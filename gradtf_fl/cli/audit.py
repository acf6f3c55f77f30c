"""``gradtf audit``: privacy budgets from ledgers, and whether those ledgers can be believed."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gradtf_fl.errors import ConfigError, VerificationFailed

if TYPE_CHECKING:
    from gradtf_fl.privacy.reading import LedgerReading

Command = TypeVar("Command", bound=Callable[..., Any])
Result = TypeVar("Result")


@click.group()
def audit() -> None:
    """Report and verify privacy ledgers.

    \b
    Example:
        gradtf audit report --ledger out/organizations/*/ledger.sqlite --format html --out audit.html
        gradtf audit verify --ledger org-1/ledger.sqlite
    """


def ledger_options(command: Command) -> Command:
    """``--ledger PATH``, repeatable, and further paths after it, as a shell expands a pattern."""
    command = click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path))(command)
    return click.option(
        "--ledger",
        "ledgers",
        multiple=True,
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="A ledger.sqlite, or a folder with one. Repeatable; further paths may follow.",
    )(command)


@audit.command()
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
    """Epsilon spent, by three accountants, with everything it needs to mean something.

    Exits with 5 after the report when a ledger's chain is broken.

    \b
    Example:
        gradtf audit report --ledger out/organizations/*/ledger.sqlite
    """
    files = _files(ledgers, paths)
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.absolute().parent}")
    from gradtf_fl.reports.audit import report_ledger
    from gradtf_fl.reports.audit_formats import to_csv, to_html, to_json, to_table

    reports = _each(files, report_ledger)
    chosen = "json" if as_json else form
    if chosen == "table":
        _print_table(to_table(reports), out)
    else:
        text = {"json": to_json, "html": to_html, "csv": to_csv}[chosen](reports)
        _write(out, text) if out is not None else click.echo(text, nl=False)
    if out is not None:
        click.echo(f"wrote {out}", err=True)
    _fail_on_breaks([r.reading for r in reports])


@audit.command()
@ledger_options
@click.option("--public-key", "keys", multiple=True, metavar="HEX", help="Key the ledger must be signed with.")
@click.option("--head", metavar="HEX", help="A head once announced in a signed advert; it must be on the chain.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def verify(
    ledgers: tuple[Path, ...], paths: tuple[Path, ...], keys: tuple[str, ...], head: str | None, as_json: bool
) -> None:
    """Check every row's hash and signature, the order, the file's structure and the head kept beside it.

    Exits with 5 on any break and names the row.

    \b
    Example:
        gradtf audit verify --ledger org-1/ledger.sqlite --public-key 9f3c...
    """
    files = _files(ledgers, paths)
    if head is not None and len(files) > 1:
        raise ConfigError("--head belongs to one ledger; verify them one at a time")
    public_keys = [_bytes32("--public-key", key) for key in keys]
    advertised = _bytes32("--head", head) if head is not None else None
    from gradtf_fl.privacy.reading import read_ledger

    def read(path: Path) -> LedgerReading:
        return read_ledger(path, public_keys=public_keys, advertised=advertised)

    readings = _each(files, read)
    if as_json:
        click.echo(json.dumps({"ledgers": [_verdict(reading) for reading in readings]}, indent=1))
    else:
        for reading in readings:
            if not reading.problems:
                owner = reading.content.genesis
                click.echo(f"{reading.path}: sound; {owner.organization}, {reading.rows} rows, ", nl=False)
                click.echo(f"head {reading.head.hex()}, key {owner.public_key.hex()}")
    _fail_on_breaks(readings)


def _verdict(reading: LedgerReading) -> dict[str, Any]:
    return {
        "ledger": str(reading.path),
        "organization": reading.content.genesis.organization,
        "ok": not reading.problems,
        "rows": reading.rows,
        "head": reading.head.hex(),
        "public_key": reading.content.genesis.public_key.hex(),
        "problems": [{"row": problem.row, "what": problem.what} for problem in reading.problems],
    }


def _files(ledgers: tuple[Path, ...], paths: tuple[Path, ...]) -> list[Path]:
    """The named ledger files, each once; a folder stands for the ledger in it."""
    named = [path / "ledger.sqlite" if path.is_dir() else path for path in (*ledgers, *paths)]
    if not named:
        raise click.UsageError("name at least one ledger: --ledger PATH")
    return list(dict.fromkeys(named))


def _each(files: list[Path], read: Callable[[Path], Result]) -> list[Result]:
    """``read`` for every file; all unreadable ones are named at once."""
    found: list[Result] = []
    unusable: list[str] = []
    damaged: list[str] = []
    for path in files:
        try:
            found.append(read(path))
        except ConfigError as error:
            unusable.extend(error.problems)
        except VerificationFailed as error:
            damaged.append(str(error))
    if damaged:
        raise VerificationFailed("\n".join([*damaged, *unusable]))
    if unusable:
        raise ConfigError(unusable)
    return found


def _fail_on_breaks(readings: list[LedgerReading]) -> None:
    breaks = [f"{reading.path}: {problem}" for reading in readings for problem in reading.problems]
    if breaks:
        raise VerificationFailed("\n".join(breaks))


def _bytes32(option: str, text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 32:
        raise ConfigError(f"{option} {text}: 64 hexadecimal digits are wanted")
    return value


def _print_table(table: Any, out: Path | None) -> None:
    from rich.console import Console

    if out is None:
        Console().print(table)
        return
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(table)
    _write(out, console.export_text())


def _write(out: Path, text: str) -> None:
    """The file appears whole or not at all."""
    staging = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        staging.write_text(text, encoding="utf8")
        os.replace(staging, out)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise ConfigError(f"--out {out}: can't be written ({error.strerror})") from error
