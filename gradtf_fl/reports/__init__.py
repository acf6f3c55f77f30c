"""What people read: terminal tables and progress, JSON documents, HTML pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.reports.adapter_card import federation_card, result_rows, signed_rows
    from gradtf_fl.reports.audit import LedgerReport, not_covered, read_for_report, report_all
    from gradtf_fl.reports.audit_formats import audit_environment, charted, to_csv, to_html, to_json, to_table
    from gradtf_fl.reports.audit_limits import report_each
    from gradtf_fl.reports.empirical import plan_line, print_audit
    from gradtf_fl.reports.holdings_chart import count_of, draw_holdings, largest_labels
    from gradtf_fl.reports.progress import WorkProgress
    from gradtf_fl.reports.server_status import status_report
    from gradtf_fl.reports.simulation import control_names, epsilon_covers, metric_name, model_names, print_report
    from gradtf_fl.reports.simulation_progress import SimulationEvent, SimulationProgress
    from gradtf_fl.reports.simulation_report import OrganizationResult, SimulationReport, State, gap_recovered
    from gradtf_fl.reports.statement import AuditStatement, Unreadable, file_names, make_statement
    from gradtf_fl.reports.statement_checks import Compared
    from gradtf_fl.reports.statement_html import to_page
    from gradtf_fl.reports.statement_pdf import check_pdf, to_pdf
    from gradtf_fl.reports.status_words import ServerWords, duration, server_words
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "AuditStatement",
    "Compared",
    "LedgerReport",
    "OrganizationResult",
    "ServerWords",
    "SimulationEvent",
    "SimulationProgress",
    "SimulationReport",
    "State",
    "Unreadable",
    "WorkProgress",
    "audit_environment",
    "charted",
    "check_pdf",
    "control_names",
    "count_of",
    "draw_holdings",
    "duration",
    "epsilon_covers",
    "federation_card",
    "file_names",
    "gap_recovered",
    "largest_labels",
    "make_statement",
    "metric_name",
    "model_names",
    "not_covered",
    "plan_line",
    "print_audit",
    "print_report",
    "read_for_report",
    "report_all",
    "report_each",
    "result_rows",
    "server_words",
    "signed_rows",
    "status_report",
    "to_csv",
    "to_html",
    "to_json",
    "to_page",
    "to_pdf",
    "to_table",
]
