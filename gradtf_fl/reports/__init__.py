"""What people read: terminal tables and progress, JSON documents, HTML pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.reports.adapter_card import federation_card, result_rows, signed_rows
    from gradtf_fl.reports.audit import read_for_report, report_all
    from gradtf_fl.reports.audit_formats import to_csv, to_html, to_json, to_table
    from gradtf_fl.reports.audit_limits import report_each
    from gradtf_fl.reports.empirical import plan_line, print_audit
    from gradtf_fl.reports.holdings_chart import draw_holdings
    from gradtf_fl.reports.progress import WorkProgress
    from gradtf_fl.reports.server_status import status_report
    from gradtf_fl.reports.simulation import print_report
    from gradtf_fl.reports.simulation_progress import SimulationEvent, SimulationProgress
    from gradtf_fl.reports.simulation_report import OrganizationResult, SimulationReport, State, gap_recovered
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "OrganizationResult",
    "SimulationEvent",
    "SimulationProgress",
    "SimulationReport",
    "State",
    "WorkProgress",
    "draw_holdings",
    "federation_card",
    "gap_recovered",
    "plan_line",
    "print_audit",
    "print_report",
    "read_for_report",
    "report_all",
    "report_each",
    "result_rows",
    "signed_rows",
    "status_report",
    "to_csv",
    "to_html",
    "to_json",
    "to_table",
]
