"""``gradtf doctor``: what this machine has, what is wrong with it, and what to do about each finding."""

from __future__ import annotations

from pathlib import Path

import click

from gradtf_fl.cli.options import emit_json, json_option

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(epilog="Example: gradtf doctor --organization /srv/gradtf/org-1")
@click.option(
    "--organization",
    "organizations",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIR",
    help="Also check the keys, ledger and file modes of this organization's folder. Repeatable.",
)
@json_option
def doctor(organizations: tuple[Path, ...], as_json: bool) -> int:
    """Check versions, devices, file modes, clock, embedded files and offline switches.

    Exit code 2 when a finding stops gradtf from working, 0 otherwise (warnings included).
    """
    from gradtf_fl.cli.diagnosis import diagnose

    findings = diagnose(organizations)
    failed = sum(finding.level == "fail" for finding in findings)
    if as_json:
        document = [{"level": f.level, "what": f.what, "found": f.found, "do": f.remedy} for f in findings]
        emit_json({"ok": not failed, "findings": document})
        return 2 if failed else 0

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False)
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        level = Text(finding.level, style=STYLES[finding.level])
        table.add_row(level, Text(finding.what), Text(finding.found), Text(finding.remedy))
    console = Console()
    console.print(table)
    warned = sum(finding.level == "warn" for finding in findings)
    console.print(f"{len(findings)} checks, {failed} failed, {warned} warnings", highlight=False)
    return 2 if failed else 0
