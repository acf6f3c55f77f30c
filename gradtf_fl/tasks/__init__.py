"""Tasks: rows of prompt and answer, their encoding and metric, and the embedded benchmark House Rules."""

from gradtf_fl.tasks.federation import OrganizationData, house_rules_federation
from gradtf_fl.tasks.rows import IGNORED, Row, TokenRows, encode_rows, exact_match, read_rows, write_rows

__all__ = [
    "IGNORED",
    "OrganizationData",
    "Row",
    "TokenRows",
    "encode_rows",
    "exact_match",
    "house_rules_federation",
    "read_rows",
    "write_rows",
]
