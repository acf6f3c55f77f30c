"""``gradtf audit statement``: a page on each ledger for an auditor to read, print and sign."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradtf_fl.cli.audit.files import compared_options, compared_with, ledger_files, ledger_options, read_each
from gradtf_fl.cli.options import emit_json, json_option
from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.files import PUBLIC, replace_file

if TYPE_CHECKING:
    from gradtf_fl.privacy import AdvertisedHeads, LedgerReading
    from gradtf_fl.reports import AuditStatement, Unreadable

FORMATS = {"both": ("html", "pdf"), "html": ("html",), "pdf": ("pdf",)}


@click.command(short_help="One page for each ledger, to print and sign.")
@ledger_options
@compared_options
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A new or empty folder: no statement is overwritten.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMATS)),
    default="both",
    show_default=True,
    help="Files to write for each ledger.",
)
@json_option
def statement(
    ledgers: tuple[Path, ...],
    paths: tuple[Path, ...],
    keys: tuple[bytes, ...],
    head: bytes | None,
    heads_file: Path | None,
    out: Path,
    form: str,
    as_json: bool,
) -> None:
    """One page for each ledger: who, whose data, what epsilon, by which method, verified how, what is not covered.

    The figures are those of `report`, the checks those of `verify`. A ledger that fails a check, or spent more than
    its budget, gets a page that refuses the statement of compliance and says why; the verb then exits with 5, after
    all pages are written. The auditor prints a page and signs it.

    \b
    Example:
        gradtf audit statement --ledger org-*/ledger.sqlite --out statements
        gradtf audit statement --ledger org-1 --heads march.json --out org-1-april
    """
    from gradtf_fl.privacy import load_libraries
    from gradtf_fl.reports import check_pdf

    files = ledger_files(ledgers, paths)
    advertised = compared_with(files, head, heads_file)
    _empty(out)
    if "pdf" in FORMATS[form]:
        check_pdf()
    read = partial(_read, public_keys=keys, advertised=advertised)
    readings = read_each("audit statement", files, read, load_libraries)
    statements = _statements(readings, len(keys), advertised)
    written = _write(statements, out, FORMATS[form])
    if as_json:
        emit_json({"statements": [one.to_json() | {"files": names} for one, names in written]})
    for one, names in written:
        click.echo(f"wrote {' and '.join(names)}: {one.verdict}", err=True)
    _fail_without_compliance(statements)


def _read(path: Path, public_keys: tuple[bytes, ...], advertised: AdvertisedHeads) -> LedgerReading | Unreadable:
    from gradtf_fl.privacy import read_ledger
    from gradtf_fl.reports import Unreadable

    try:
        return read_ledger(path, public_keys=public_keys, advertised=advertised)
    except VerificationFailed as error:
        return Unreadable(path, error.problems)


def _statements(
    readings: list[LedgerReading | Unreadable], keys: int, advertised: AdvertisedHeads
) -> list[AuditStatement]:
    from gradtf_fl.reports import Compared, Unreadable, make_statement, report_each

    made = datetime.now(UTC).isoformat(timespec="seconds")
    reports, costly = report_each([reading for reading in readings if not isinstance(reading, Unreadable)])
    found = []
    for reading in readings:
        organization = "" if isinstance(reading, Unreadable) else reading.content.genesis.organization
        not_computed = "; ".join(
            line.removeprefix(f"{reading.path}: ") for line in costly if line.startswith(f"{reading.path}: ")
        )
        found.append(
            make_statement(
                reading,
                [report for report in reports if report.reading.path == reading.path],
                compared=Compared(keys, len(advertised.of(organization))),
                made=made,
                not_computed=not_computed,
            )
        )
    return found


def _empty(out: Path) -> None:
    """ConfigError unless ``out`` is an empty folder or can become one."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: must be a new or an empty folder; statements are not overwritten")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.absolute().parent} does not exist")


def _write(
    statements: list[AuditStatement], out: Path, endings: tuple[str, ...]
) -> list[tuple[AuditStatement, list[str]]]:
    """Every page; each statement with the files it is in."""
    from gradtf_fl.reports import file_names, to_page, to_pdf

    draw = {"html": lambda one: to_page(one).encode(), "pdf": to_pdf}
    written = []
    try:
        out.mkdir(exist_ok=True)
        for one, name in zip(statements, file_names(statements), strict=True):
            places = [out / f"{name}.{ending}" for ending in endings]
            for place, ending in zip(places, endings, strict=True):
                replace_file(place, draw[ending](one), PUBLIC)
            written.append((one, [str(place) for place in places]))
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error
    return written


def _fail_without_compliance(statements: list[AuditStatement]) -> None:
    problems = [f"{one.path}: {reason}" for one in statements for reason in one.reasons]
    if problems:
        raise VerificationFailed(problems)
