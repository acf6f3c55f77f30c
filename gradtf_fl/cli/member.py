"""``gradtf member``: an organization in secure averages of any Flower app."""

from __future__ import annotations

from pathlib import Path

import click

from gradtf_fl.cli.options import emit_json, json_option
from gradtf_fl.file_names import POLICY, ROSTER


@click.group()
def member() -> None:
    """Take part in secure averages of a Flower app: a key, and a policy that no server can change.

    \b
    Example:
        gradtf member new /srv/ward
    """


@member.command(short_help="Make a key and a policy.", epilog="Example: gradtf member new /srv/ward")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@json_option
def new(folder: Path, as_json: bool) -> None:
    """Make DIR/identity.key and DIR/policy.toml (0600), and print the public key.

    An existing member is never overwritten. The public keys of all members make the roster: exchange
    them without the server.
    """
    from gradtf_fl.flower import new_member

    key = new_member(folder)
    if as_json:
        return emit_json({"policy": str(folder / POLICY), "public_key": key})
    click.echo(key)
    click.echo(
        f"Next: write the keys of all members, this one's too, into {folder / ROSTER}, one a line. Read "
        f'{folder / POLICY}; the app names it: ClientApp(mods=[secagg_mod("{folder.absolute() / POLICY}")])',
        err=True,
    )
