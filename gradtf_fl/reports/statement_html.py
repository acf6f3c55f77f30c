"""The auditor's statement as a self-contained page, to be read on a screen and printed on one sheet."""

from __future__ import annotations

from gradtf_fl.reports.statement import AuditStatement

TONES = {"holds": "good", "FAILED": "bad"}
"""How cells with these words are coloured."""


def to_page(statement: AuditStatement) -> str:
    """HTML: no scripts, no fonts, nothing fetched."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gradtf_fl", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("statement.html").render(statement=statement, tones=TONES) + "\n"
