"""``gradtf server status``: where a deployed run stands, live on a terminal, also while the server is down."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradtf_fl.cli.options import emit_json, json_option
from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

REFRESH_S = 0.5
OTHER_LINES = 24  # of the view, besides the organizations


@click.command(short_help="Show how far a run is.", epilog="Example: gradtf server status /srv/gradtf/server --once")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@json_option
@click.option("--once", is_flag=True, help="Print once.  [default unless stdout is a terminal]")
@click.option("--watch", is_flag=True, help="Refresh twice a second until Ctrl-C.  [default on a terminal]")
def status(folder: Path, as_json: bool, once: bool, watch: bool) -> None:
    """Show how far the run in DIR is: rounds, stage, organizations, refusals, bytes, the last adapter.

    Reads DIR only, so it works while the server is down. With --watch and no terminal, or with --json, every change
    is printed below the last one (one JSON document a line).
    """
    if once and watch:
        raise ConfigError("--once and --watch exclude each other")
    from rich.console import Console

    console = Console()
    live = watch or (not once and not as_json and console.is_terminal)
    if live:
        _watch(folder, console, as_json)
    elif as_json:
        from gradtf_fl.deployment import view_server

        emit_json(view_server(folder).to_json())
    else:
        from gradtf_fl.deployment import view_server
        from gradtf_fl.reports import status_report

        console.print(status_report(view_server(folder)), highlight=False)


def _watch(folder: Path, console: Console, as_json: bool) -> None:
    """Until Ctrl-C, which is the way out and no failure."""
    from gradtf_fl.deployment import view_server

    view = view_server(folder)
    try:
        if as_json or not console.is_terminal:
            _print_changes(folder, console, as_json)
        from rich.live import Live

        from gradtf_fl.reports import status_report

        with Live(console=console, screen=True, auto_refresh=False) as shown:
            while True:
                shown.update(status_report(view, max(5, console.height - OTHER_LINES)), refresh=True)
                time.sleep(REFRESH_S)
                view = view_server(folder)
    except KeyboardInterrupt:
        if not as_json and console.is_terminal:
            from gradtf_fl.reports import status_report

            console.print(status_report(view_server(folder)), highlight=False)


def _print_changes(folder: Path, console: Console, as_json: bool) -> None:
    """A printout or a line for each change of the run, for ever."""
    from gradtf_fl.deployment import view_server
    from gradtf_fl.reports import status_report

    last: object = None
    while True:
        view = view_server(folder)
        seen = (view.state, view.status and view.status.updated, len(view.records))
        if seen != last:
            last = seen
            if as_json:
                click.echo(json.dumps(view.to_json(), allow_nan=False))
            else:
                console.print(status_report(view), highlight=False)
        time.sleep(REFRESH_S)
