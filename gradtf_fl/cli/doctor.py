"""``gradtf doctor``: what this machine has, what is wrong with it, and what to do about each finding."""

from __future__ import annotations

from pathlib import Path

import click

from gradtf_fl.cli.finding_table import failures, findings_document, print_findings
from gradtf_fl.cli.options import emit_json, json_option


@click.command(epilog="Example: gradtf doctor --organization /srv/gradtf/org-1")
@click.option(
    "--organization",
    "organizations",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIR",
    help="Also check this organization's folder, as gradtf org check --offline does. Repeatable.",
)
@json_option
def doctor(organizations: tuple[Path, ...], as_json: bool) -> int:
    """Check versions, devices, file modes, clock, embedded files and offline switches.

    Exit code 2 when a finding stops gradtf from working, 0 otherwise (warnings included).
    """
    from gradtf_fl.cli.diagnosis import diagnose

    findings = diagnose(organizations)
    if as_json:
        emit_json(findings_document(findings))
    else:
        print_findings(findings)
    return 2 if failures(findings) else 0
