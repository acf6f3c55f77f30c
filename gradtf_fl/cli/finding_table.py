"""Findings as a table for people and as a list for JSON."""

from __future__ import annotations

from collections.abc import Sequence

from gradtf_fl.cli.options import console
from gradtf_fl.deployment import Finding
from gradtf_fl.shown import shown

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def findings_document(findings: Sequence[Finding]) -> dict[str, object]:
    """``{"ok", "findings": [{"level", "what", "found", "do"}]}``; ok means that nothing failed."""
    listed = [{"level": f.level, "what": f.what, "found": f.found, "do": f.remedy} for f in findings]
    return {"ok": not failures(findings), "findings": listed}


def failures(findings: Sequence[Finding]) -> int:
    """How many findings stop something from working."""
    return sum(finding.level == "fail" for finding in findings)


def _lines(text: str) -> str:
    """Several problems stand below each other; each is one harmless line."""
    return "\n".join(shown(line) for line in text.split("\n"))


def print_findings(findings: Sequence[Finding]) -> None:
    """A table and a line of totals on stdout."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False)
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        level = Text(finding.level, style=STYLES[finding.level])
        table.add_row(level, *(Text(_lines(text)) for text in (finding.what, finding.found, finding.remedy)))
    terminal = console()
    terminal.print(table)
    warned = sum(finding.level == "warn" for finding in findings)
    warnings = f"{warned} warning{'' if warned == 1 else 's'}"
    terminal.print(f"{len(findings)} checks, {failures(findings)} failed, {warnings}", highlight=False)
