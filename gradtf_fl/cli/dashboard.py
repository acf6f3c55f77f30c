"""``gradtf dashboard``: a live page on loopback about a server, an organization, ledgers or a simulation."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from gradtf_fl.cli.audit.files import ledger_file, ledger_options
from gradtf_fl.cli.options import emit_json, json_option

FOLDER = click.Path(path_type=Path)


@click.command(
    short_help="Show runs, budgets, adapters in a browser.",
    epilog="Example: gradtf dashboard --server /srv/gradtf/server\n\n"
    "gradtf dashboard --run out, while gradtf simulate --out out runs",
)
@click.option("--server", type=FOLDER, metavar="DIR", help="A server's folder: what server status shows, live.")
@click.option("--organization", type=FOLDER, metavar="DIR", help="An organization's: budget, adapters, log.")
@click.option("--run", type=FOLDER, metavar="DIR", help="A simulation's folder (simulate --out), also while it runs.")
@ledger_options
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of 127.0.0.1.  [default: a free one]")
@json_option
def dashboard(
    server: Path | None,
    organization: Path | None,
    run: Path | None,
    ledgers: tuple[Path, ...],
    paths: tuple[Path, ...],
    port: int,
    as_json: bool,
) -> None:
    """Show folders of this machine as live web pages, on this machine only.

    Prints a link that works once, in the browser that opens it first. Ctrl-C ends it. It reads files and changes none,
    but for the roll back to another adapter, which asks first.
    """
    files = tuple(dict.fromkeys(ledger_file(path) for path in (*ledgers, *paths)))
    if server is None and organization is None and run is None and not files:
        raise click.UsageError("name what to show: --server DIR, --organization DIR, --run DIR or --ledger PATH")
    from gradtf_fl.dashboard import DashboardServer, Sources

    served = DashboardServer(Sources(server, organization, files, run), port)
    if as_json:
        emit_json({"url": served.url, "port": served.port})
    else:
        click.echo(f"dashboard: {served.url}")
        click.echo("The link works once, on this machine. Ctrl-C ends the dashboard.", err=True)
    with suppress(KeyboardInterrupt):  # the way out, and no failure
        served.run()
    click.echo("dashboard: ended", err=True)
