"""``gradtf readiness``: are my rows near enough to the public ones? For an organization; its output stays there."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradtf_fl.cli.options import chosen, emit_json, json_option, row_form_options
from gradtf_fl.files import write_whole

if TYPE_CHECKING:
    from gradtf_fl.config import RowFormat
    from gradtf_fl.tasks import Row
    from gradtf_fl.theory import Readiness

SHOWN_ROWS, SHOWN_CHARACTERS = 5, 200
MEANING = {
    "near": "the public rows cover the words of yours; whether the tasks are the same, words cannot show",
    "some way off": "some of your rows have no like among the public ones: expect less, or ask for rows like them",
    "far": "a Grad-Transformer made from these public rows has not seen anything like your rows",
}


@click.command(epilog="Example: gradtf readiness --private my_rows.jsonl --public public_rows.jsonl")
@click.option("--private", type=click.Path(path_type=Path), required=True, metavar="ROWS", help="Your rows.")
@click.option(
    "--public", type=click.Path(path_type=Path), required=True, metavar="ROWS", help="The provider's public rows."
)
@row_form_options
@click.option("--show-rows", is_flag=True, help="Also print the farthest of your rows, on a terminal only.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Keep the figures here (JSON, mode 0600).")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of sampling and folds.  [default: 0]")
@json_option
def readiness(
    private: Path,
    public: Path,
    row_format: str | None,
    prompt: str | None,
    answer: str | None,
    window: int | None,
    show_rows: bool,
    out: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Compare your rows with the public ones, on this machine alone: near, some way off or far.

    Each is a file of rows (JSONL, JSON, CSV, Parquet) or a datasets folder. Templates are for the file whose rows have
    no form of their own; --format is for both. No row is printed unless you ask for it.
    The figures are computed from private rows without noise, so that no epsilon covers them: do not pass them on.
    """
    _check_output(show_rows, out, as_json)
    form = _form({"format": row_format, "prompt": prompt, "answer": answer, "window": window})
    rows, public_rows = _read(private, public, form)
    from gradtf_fl.theory import assess

    found = assess(rows, public_rows, seed)
    document = {"private": str(private), "public": str(public), "seed": seed, **found.to_json()}
    if out is not None:
        write_whole(out, json.dumps(document, indent=1, allow_nan=False) + "\n", 0o600)
    if as_json:
        emit_json(document)
        return
    click.echo("\n".join(_lines(found)))
    if show_rows:
        for number in found.farthest[:SHOWN_ROWS]:
            click.echo(f"  row {number + 1}: {_printable(rows[number])}")
    if out is not None:
        click.echo(f"{out}: the same figures")


def _check_output(show_rows: bool, out: Path | None, as_json: bool) -> None:
    from gradtf_fl.errors import ConfigError

    problems = []
    if show_rows and as_json:
        problems.append("--show-rows: rows never go into the JSON document; leave out --json")
    elif show_rows and not _on_a_terminal():
        problems.append("--show-rows: prints private rows, so standard output must be a terminal")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        problems.append(f"--out {out}: not a file in an existing folder")
    if problems:
        raise ConfigError(problems)


def _on_a_terminal() -> bool:
    return sys.stdout.isatty()


def _form(asked: Mapping[str, object]) -> RowFormat:
    """How the files are read, as far as options say."""
    from gradtf_fl.config import RowFormat, validate

    return validate(RowFormat, chosen(asked), lambda key: f"--{key}" if key else "--prompt, --answer")


def _read(private: Path, public: Path, form: RowFormat) -> tuple[list[Row], list[Row]]:
    from gradtf_fl.errors import ConfigError
    from gradtf_fl.tasks import read_rows, told_form

    sides, problems = [], []
    for option, path in (("--private", private), ("--public", public)):
        try:
            has_own = form.format == "auto" and told_form(path, form.without_templates()).format != "auto"
            sides.append(read_rows(path, None, form.without_templates() if has_own else form))
        except ConfigError as error:
            problems += [f"{option}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return sides[0], sides[1]


def _lines(found: Readiness) -> list[str]:
    from gradtf_fl.theory import KEEP_LOCAL

    share, divergence = found.without_near, found.divergence
    auc, kl = divergence.auc, divergence.kl
    lines = [
        f"{found.verdict}: {MEANING[found.verdict]}",
        f"  compared: {found.compared[0]} of your {found.given[0]} rows with {found.compared[1]} of {found.given[1]} "
        f"public ones; {found.identical} of yours are public rows word for word",
        f"  rows without a near public row: {share.value:.0%} ({share.low:.0%} to {share.high:.0%}; 5 % of public rows "
        "have none either)",
        f"  lonelier than a public row: {found.lonelier:.2f} (.50: the same, 1: always)",
        f"  a classifier tells them apart: AUC {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f}; .5: it cannot)",
    ]
    if divergence.saturated:
        lines.append(
            f"  KL(private || public): beyond what so few rows can show (over about {kl.low:.1f} nats); read the AUC"
        )
    else:
        lines.append(f"  KL(private || public): at least {kl.value:.2f} nats ({kl.low:.2f} to {kl.high:.2f})")
    if found.kinds and found.verdict != "near":
        lines.append("  kinds of rows that are more frequent among yours, and how many of them lack a near public row:")
        lines += [f"    {kind.share:4.0%} {kind.what}: {kind.without_near:.0%} lack one" for kind in found.kinds]
    return [*lines, KEEP_LOCAL]


def _printable(row: Row) -> str:
    """One line; control characters of a row never reach the terminal."""
    text = json.dumps(f"{row.prompt} -> {row.answer}", ensure_ascii=False)
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ..."
