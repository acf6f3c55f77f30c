"""``gradtf audit export``, ``import`` and ``rotate``: a ledger on its way to an auditor, back, and to another key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradtf_fl.cli.audit.files import ledger_file
from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.files import write_whole

if TYPE_CHECKING:
    from gradtf_fl.privacy import LedgerReading

FILE = click.Path(path_type=Path)


@click.command("export", short_help="Write a ledger as one text file.")
@click.option("--ledger", required=True, type=FILE, metavar="PATH", help="A ledger.sqlite, or a folder with one.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["signed", "dpevent"]),
    default="signed",
    show_default=True,
    help="dpevent: the history as dp-accounting's DpEvent in JSON, for other tools; it has no signatures.",
)
@click.option("--out", type=FILE, metavar="FILE", help="Write here instead of to stdout; an existing file is replaced.")
def export(ledger: Path, form: str, out: Path | None) -> None:
    """One portable text file with every signed row, for `verify`, `report` and `import` on any machine.

    It holds what the ledger holds: when training ran and at what noise, but no data. A broken ledger is not
    exported (exit 5). A ledger that another tool rewrote is exported if every row holds.

    \b
    Example:
        gradtf audit export --ledger org-1/ledger.sqlite --out org-1.jsonl
        gradtf audit verify --ledger org-1.jsonl
        gradtf audit export --ledger org-1 --format dpevent --out org-1.json
    """
    from gradtf_fl.privacy import export_text, history_of, history_text, ledger_rows

    path = ledger_file(ledger)
    reading = _sound(path)
    text = export_text(ledger_rows(path)) if form == "signed" else history_text(history_of(reading.content))
    if out is None:
        click.echo(text, nl=False)
        return
    write_whole(out, text)
    click.echo(f"wrote {out}", err=True)


@click.command("import", short_help="Make a ledger of an export.")
@click.argument("source", type=FILE, metavar="EXPORT")
@click.option(
    "--ledger", required=True, type=FILE, metavar="PATH", help="The ledger.sqlite to make; never overwritten."
)
@click.option("--identity-key", type=FILE, metavar="FILE", help="PEM of the key that signs a history of DpEvents.")
def import_(source: Path, ledger: Path, identity_key: Path | None) -> None:
    """Make a ledger of an export: the same rows bit for bit, with a head file alongside.

    The organization continues to charge to it. Two ledgers that both continue one export are a fork: whoever knows a
    head of each can see it. A history of DpEvents has no signatures: --identity-key signs new rows, and vouches for
    what they say.

    \b
    Example:
        gradtf audit import org-1.jsonl --ledger restored/ledger.sqlite
        gradtf audit import org-1.json --ledger new.sqlite --identity-key id.key
    """
    from gradtf_fl.privacy import import_history, import_ledger, ledger_rows, looks_like_history, read_history

    is_history = source.is_file() and looks_like_history(source.read_bytes())
    if is_history != (identity_key is not None):
        raise ConfigError(
            f"{source}: a history of DpEvents is signed again: --identity-key FILE is missing"
            if is_history
            else "--identity-key: only for a history of DpEvents; an export has its signatures"
        )
    if identity_key is not None:
        from gradtf_fl.secagg import Identity

        import_history(read_history(source), Identity.load(identity_key).private, ledger)
        click.echo(f"wrote {ledger}", err=True)
        return
    _sound(source)
    import_ledger(ledger_rows(source), ledger)
    click.echo(f"wrote {ledger}", err=True)


@click.command("rotate", short_help="Hand a ledger over to a new key.")
@click.option("--ledger", required=True, type=FILE, metavar="PATH", help="A ledger.sqlite, or a folder with one.")
@click.option("--identity-key", required=True, type=FILE, metavar="FILE", help="PEM of the key that signs it now.")
@click.option("--new-key", required=True, type=FILE, metavar="FILE", help="PEM of the key that takes over.")
def rotate(ledger: Path, identity_key: Path, new_key: Path) -> None:
    """Hand a ledger over to another identity key. Both keys sign; from then on only the new one can charge.

    \b
    Example:
        gradtf audit rotate --ledger org-1 --identity-key org-1/identity.key \\
            --new-key org-1/identity.next.key
    """
    from gradtf_fl.privacy import Ledger
    from gradtf_fl.secagg import Identity

    old, new = Identity.load(identity_key), Identity.load(new_key)
    path = ledger_file(ledger)
    if not path.is_file():
        raise ConfigError(f"ledger {path}: no such file")
    with Ledger(path, old.private) as opened:
        opened.rotate(new.private)
        click.echo(f"{path}: key {new.public.hex()} signs from here on, head {opened.head.hex()}")


def _sound(path: Path) -> LedgerReading:
    """The ledger at ``path``; raises `VerificationFailed` unless every row holds."""
    from gradtf_fl.privacy import BYTES_CHANGED, read_ledger

    reading = read_ledger(path)
    problems = [problem for problem in reading.problems if problem != BYTES_CHANGED]
    if problems:
        raise VerificationFailed([f"{path}: {problem}" for problem in problems])
    return reading
