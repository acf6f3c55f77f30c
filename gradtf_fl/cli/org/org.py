"""``gradtf org``: an organization's node, from its keys to its adapters. Only the worker imports torch."""

from __future__ import annotations

from pathlib import Path

import click

from gradtf_fl.cli.options import asks, config_option, configured, emit_json, json_option
from gradtf_fl.cli.org.adapter import adapter
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import ENROLMENT
from gradtf_fl.shown import shown

FOLDER = click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")


@click.group()
def org() -> None:
    """Run an organization's node.

    \b
    Example:
        gradtf org init org-1 --data rows.jsonl --budget 8
        gradtf org join org-1 invitation.json
        gradtf org check org-1
        gradtf org run org-1
    """


@org.command(
    short_help="Make keys and a local policy.", epilog="Example: gradtf org init org-1 --data rows.jsonl --budget 8"
)
@FOLDER
@click.option("--name", help="What the others call you (default: the folder's name).")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="File of rows or datasets folder.")
@click.option("--test", type=click.Path(path_type=Path), help="File of rows to score each round's models on, at home.")
@click.option("--budget", type=float, required=True, help="Lifetime epsilon of these rows, over all runs.")
@click.option("--delta", type=float, default=1e-5, show_default=True)
@click.option("--declare", type=int, help="Rows (persons) to make public.  [default: those there are, rounded down]")
@click.option("--unit", metavar="FIELD", help="Field of a row that says whose it is: epsilon is then a person's.")
@config_option
@click.option("--tiny", help="TinyLM: folder or name.  [default: embedded:tiny, or the project's]")
@click.option("--llm", help="LLM: folder or name.  [default: embedded:llm, or the project's]")
@json_option
def init(
    folder: Path,
    name: str | None,
    data: Path,
    test: Path | None,
    budget: float,
    delta: float,
    declare: int | None,
    unit: str | None,
    config_file: Path | None,
    tiny: str | None,
    llm: str | None,
    as_json: bool,
) -> None:
    """Make keys and a local policy with safe defaults in DIR; print the fingerprint to exchange out of band.

    --config takes the pair, the form of rows, the unit and [compute] from the project's file. Nothing else in it counts
    here.
    """
    from clients import make_organization

    project = configured(config_file, {"tiny": tiny, "llm": llm})
    known = config_file is not None and not project.task.is_house_rules
    enrolment = make_organization(
        folder,
        name or folder.absolute().name,
        data,
        test,
        budget,
        delta,
        project.tiny,
        project.adapted_model,
        project.task if known else None,
        project.compute,
        declare,
        unit or project.unit,
    )
    if as_json:
        return emit_json(
            {
                "folder": str(folder),
                "name": enrolment.name,
                "fingerprint": enrolment.fingerprint,
                "enrolment": str(folder / ENROLMENT),
            }
        )
    click.echo(f"organization {enrolment.name} in {folder}: keys (0600), organization.toml, enrolment.json")
    click.echo(f"fingerprint {enrolment.fingerprint}")
    click.echo(f"Next: send {folder / ENROLMENT} to the server's operator (nothing in it is secret); read the")
    click.echo(
        f"fingerprint to them by telephone. They answer with an invitation: gradtf org join {folder} invitation.json"
    )


@org.command(
    short_help="Pin who takes part.", epilog="Example: gradtf org join org-1 invitation.json --fingerprint '3f2a ...'"
)
@FOLDER
@click.argument("invitation", type=click.Path(path_type=Path))
@click.option(
    "--fingerprint", help="The invitation's fingerprint, as the other organizations read it to you; else you are asked."
)
@json_option
def join(folder: Path, invitation: Path, fingerprint: str | None, as_json: bool) -> None:
    """Pin who takes part, as the invitation says, after you compared its fingerprint with everybody else.

    The server could put a key of its own into your invitation. Then your fingerprint differs from the others'.
    """
    from clients import join_federation
    from gradtf_fl.deployment import read_invitation, same_fingerprint

    document = read_invitation(invitation)
    if not as_json:
        for organization in document.organizations:
            click.echo(f"  {organization.name:<24} {organization.fingerprint}")
        click.echo(f"  provider's key           {document.provider_key[:16]}...")
        click.echo(f"invitation to {document.server}: fingerprint {document.fingerprint}")
    if fingerprint is None:
        if as_json or not asks():
            raise ConfigError("--fingerprint: missing; compare the invitation's with the other organizations first")
        click.confirm("Do the other organizations read the same fingerprint to you?", abort=True)
    elif not same_fingerprint(fingerprint, document.fingerprint):
        raise ConfigError(
            "--fingerprint: fingerprint mismatch: do not join; ask the other organizations who changed the invitation"
        )
    changed: list[str] = join_federation(folder, document)
    if as_json:
        return emit_json(
            {
                "folder": str(folder),
                "server": document.server,
                "fingerprint": document.fingerprint,
                "changed": changed,
            }
        )
    for difference in changed:
        click.echo(f"note: {difference}; confirm that this change is intended")
    if changed:
        click.echo("a running node uses the new address and authority after a restart")
    click.echo(f"joined; next: gradtf org check {folder}")


@org.command(short_help="Check whether the node can work.", epilog="Example: gradtf org check org-1")
@FOLDER
@click.option("--offline", is_flag=True, help="Skip the checks that ask the server.")
@json_option
def check(folder: Path, offline: bool, as_json: bool) -> int:
    """Test keys, policy, data, budget, disk, and the server's TLS, clock and registration; say what to do.

    Exit code 2 when a finding stops the node from working, 0 otherwise.
    """
    from clients import check_organization
    from gradtf_fl.cli.finding_table import failures, findings_document, print_findings

    findings = check_organization(folder, offline)
    if as_json:
        emit_json(findings_document(findings))
    else:
        print_findings(findings)
    return 2 if failures(findings) else 0


@org.command(short_help="Run the node until SIGTERM.", epilog="Example: gradtf org run org-1")
@FOLDER
@click.option("--health-port", type=click.IntRange(0, 65535), help="Serve http://127.0.0.1:PORT/health and /metrics.")
@click.option(
    "--budget-metrics", is_flag=True, help="Add the ledger's epsilons to /metrics: all local accounts can read them."
)
@click.option("--stage-seconds", type=float, default=120.0, show_default=True, help="Grace for a stage at SIGTERM.")
def run(folder: Path, health_port: int | None, budget_metrics: bool, stage_seconds: float) -> None:
    """Serve the federation until SIGTERM, and restart whatever dies.

    No code of the server is run: its app bundle is not even unpacked.
    """
    from contextlib import ExitStack

    from clients import LedgerFigures, NodeRun, describe, load_organization, node_metrics
    from gradtf_fl.deployment import HealthServer, exposition

    if budget_metrics and health_port is None:
        raise ConfigError("--budget-metrics: only with --health-port")
    organization = load_organization(folder.absolute())
    node = NodeRun(
        organization, lambda line: click.echo(f"{organization.config.name}: {shown(line)}", err=True), stage_seconds
    )
    with ExitStack() as stack:
        if health_port is not None:
            ledger = LedgerFigures(organization.folder) if budget_metrics else None

            def metrics() -> bytes:
                return exposition(node_metrics(describe(node.state()), node.answers, ledger))

            health = stack.enter_context(HealthServer(health_port, lambda: describe(node.state()), metrics))
            click.echo(f"{organization.config.name}: health at http://127.0.0.1:{health.port}/health", err=True)
        click.echo(f"{organization.config.name}: serving; SIGTERM ends it", err=True)
        node.run()


org.add_command(adapter)
