"""``gradtf check``: everything that is wrong with a project, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import click

from gradtf_fl.cli.finding_table import failures, findings_document, print_findings
from gradtf_fl.cli.options import config_option, configured, emit_json, json_option


@click.command(epilog="Example: gradtf check --config my-project/federation.toml")
@config_option
@json_option
def check(config_file: Path | None, as_json: bool) -> int:
    """Read the project's file, its models' tokenizers and all its rows. Exit code 2 when a finding stops it."""
    settings = configured(config_file, {})

    from gradtf_fl.preparation import check_project

    findings = check_project(settings)
    if as_json:
        emit_json(findings_document(findings))
    else:
        print_findings(findings)
    return 2 if failures(findings) else 0
