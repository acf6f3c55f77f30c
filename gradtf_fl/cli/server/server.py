"""``gradtf server``: the provider's side of a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradtf_fl.cli.options import chosen, config_option, configured, emit_json, json_option
from gradtf_fl.cli.server.status import status
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import INVITATION, SERVER_CONFIG
from gradtf_fl.shown import shown

if TYPE_CHECKING:
    from gradtf_fl.flower import RoundEvent

FOLDER = click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
PEM = click.Path(path_type=Path)


@click.group()
def server() -> None:
    """Run the server of a federation.

    \b
    Example:
        gradtf server init server --enrolment org-*/enrolment.json \\
            --address fl.example.org:9092 --ca ca/ca.crt \\
            --certificate tls/server.crt --key tls/server.key --rounds 3
        gradtf server run server
        gradtf server status server
    """


@server.command(short_help="Make a server's folder and invitation.", epilog="Example: see gradtf server --help")
@FOLDER
@click.option("--enrolment", "enrolments", multiple=True, required=True, type=PEM, help="From org init. Repeatable.")
@click.argument("more", nargs=-1, type=PEM, metavar="[ENROLMENT]...")
@click.option("--address", required=True, help="HOST:PORT where the organizations reach this server.")
@click.option("--listen", help="HOST:PORT to bind (default: all interfaces, the port of --address).")
@click.option("--ca", required=True, type=PEM, help="PEM of the authority of the certificate.")
@click.option("--certificate", required=True, type=PEM, help="PEM of the server's certificate.")
@click.option("--key", required=True, type=PEM, help="PEM of its key.")
@config_option
@click.option("--rounds", type=int, help="Rounds of the run.")
@click.option("--epsilon", type=float, help="Epsilon that all rounds together spend at each organization.")
@click.option("--delta", type=float)
@click.option("--deadline-s", type=float, help="Seconds that a stage waits for organizations.")
@click.option("--join-s", type=float, help="Seconds that a round waits for the organizations to be connected.")
@json_option
def init(
    folder: Path,
    enrolments: tuple[Path, ...],
    more: tuple[Path, ...],
    address: str,
    listen: str | None,
    ca: Path,
    certificate: Path,
    key: Path,
    config_file: Path | None,
    as_json: bool,
    **plan: Any,
) -> None:
    """Make DIR: the plan, the key that signs LLM adapters, and the invitation for every organization."""
    from gradtf_fl.config import PolicySection, plan_values
    from gradtf_fl.deployment import load_server
    from strategies import make_server

    values = plan_values(configured(config_file, {name: plan.pop(name) for name in ("rounds", "epsilon", "delta")}))
    values |= chosen(plan)
    files = {"ca": ca, "certificate": certificate, "key": key}
    invitation = make_server(folder, [*enrolments, *more], address, listen, files, values)
    asked, default = load_server(folder).plan, PolicySection()
    beyond = default.broken_by_adapter(asked.adapter, asked.rank, asked.lora_alpha) + default.broken_by(
        clip=asked.clip, rate=asked.rate, steps=asked.steps, weight_rule=asked.weight_rule, groups=asked.groups
    )
    if as_json:
        return emit_json(
            {
                "folder": str(folder),
                "beyond_default_policy": beyond,
                "invitation": str(folder / INVITATION),
                "fingerprint": invitation.fingerprint,
                "organizations": {o.name: o.fingerprint for o in invitation.organizations},
            }
        )
    for organization in invitation.organizations:
        click.echo(f"  {organization.name:<24} {organization.fingerprint}")
    click.echo(
        f"server for {len(invitation.organizations)} organizations in {folder}: server.toml, provider.key (0600)"
    )
    click.echo(f"invitation {folder / INVITATION}: fingerprint {invitation.fingerprint}")
    if beyond:
        click.echo("note: organizations refuse this plan until their [policy] permits it: " + "; ".join(beyond))
    click.echo(
        "Next: compare each fingerprint above with its organization, send the invitation to all of them (nothing in"
    )
    click.echo(f"it is secret), and run: gradtf server run {folder}")


@server.command(short_help="Run all rounds of the plan.", epilog="Example: gradtf server run server --resume")
@FOLDER
@click.option("--resume", is_flag=True, help="Continue the run that was started in DIR.")
@click.option("--health-port", type=click.IntRange(0, 65535), help="Serve http://127.0.0.1:PORT/health and /metrics.")
@json_option
def run(folder: Path, resume: bool, health_port: int | None, as_json: bool) -> None:
    """Start SuperLink and ServerApp and keep them going until all rounds are done.

    After a kill at any moment, --resume continues after the last finished round. No round is released twice, and no
    attempt's number is used twice.
    """
    import signal
    import sys
    import time
    from contextlib import ExitStack

    from gradtf_fl.deployment import HealthServer, exposition, load_server, server_metrics, view_server
    from strategies import ServerRun, progress

    loaded = load_server(folder.absolute())
    done = progress(loaded.plan.out)
    if done is not None and not resume:
        raise ConfigError(f"{folder}: holds a run with {done[0]} finished rounds; --resume continues it")
    if done is not None and done[0] >= loaded.plan.rounds and done[2] >= loaded.plan.rounds:
        click.echo(
            f"server: all {loaded.plan.rounds} rounds are done; more: set rounds in {folder / SERVER_CONFIG}", err=True
        )
        return emit_json(_document(loaded.plan.out, 0.0)) if as_json else None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.time()
    run = ServerRun(loaded, _print_round, lambda line: click.echo(f"server: {shown(line)}", err=True))
    with ExitStack() as stack:
        if health_port is not None:
            health = stack.enter_context(
                HealthServer(
                    health_port,
                    lambda: _health(loaded.folder, run.state()),
                    lambda: exposition(server_metrics(view_server(loaded.folder), run.state())),
                )
            )
            click.echo(f"server: health at http://127.0.0.1:{health.port}/health", err=True)
        click.echo(f"server: listening on {loaded.listen.listen}, {loaded.plan.rounds} rounds", err=True)
        run.run()
    if as_json:
        return emit_json(_document(loaded.plan.out, time.time() - started))
    click.echo(f"{loaded.plan.rounds} rounds done; adapters in {folder / 'rounds'}")


def _document(out: Path, seconds: float) -> dict[str, Any]:
    from gradtf_fl.flower import read_records

    return {"wall_s": round(seconds, 3), "rounds": [one.to_json() for one in read_records(out)], "out": str(out)}


def _health(folder: Path, processes: dict[str, Any]) -> dict[str, Any]:
    """How the run stands, and whether its processes are there: the worse of the two."""
    from gradtf_fl.deployment import health, view_server

    run, order = health(view_server(folder)), ("ok", "degraded", "failed")
    return {**processes, **run, "status": max(processes["status"], run["status"], key=order.index)}


def _print_round(event: RoundEvent) -> None:
    record = event.record
    if record is None:
        return
    seconds = sum(record.seconds.values())
    lost = f", lost {dict(record.dropped)}" if record.dropped else ""
    click.echo(
        f"server: round {record.round}.{record.attempt} {record.state}: {record.joined} joined, {record.masked} in the "
        f"sum{lost}, {seconds:.1f} s",
        err=True,
    )


server.add_command(status)
