"""Deployment at organizations: certificates, keys, enrolment, processes, logs, health. Nothing here imports Flower."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.deployment.certificate_checks import check
    from gradtf_fl.deployment.certificates import fingerprint, init_authority, issue_server
    from gradtf_fl.deployment.enrolment import (
        Enrolment,
        Invitation,
        canonical,
        changed_keys,
        enrol,
        read_enrolment,
        read_invitation,
        same_fingerprint,
    )
    from gradtf_fl.deployment.findings import Finding, Level
    from gradtf_fl.deployment.folders import Occupied, filled, held
    from gradtf_fl.deployment.health_endpoint import LOOPBACK, LOOPBACK_HOST, HealthServer
    from gradtf_fl.deployment.json_logs import JsonLog, last_lines, read_lines
    from gradtf_fl.deployment.metrics import REFUSALS, by_label, exposition, gauge, server_metrics, states
    from gradtf_fl.deployment.node_key import public_of, write_node_key
    from gradtf_fl.deployment.opened_sums import identifiability_document, identifiability_in_words
    from gradtf_fl.deployment.processes import (
        MAX_LOG_BYTES,
        ChildProcess,
        FlowerFailed,
        FlowerSilent,
        direct_to,
        end_with_parent,
        environment,
        free_port,
        going_direct,
        last_line,
        trusting_nobody,
    )
    from gradtf_fl.deployment.run_status import ExchangeStatus, NodeStatus, PlanStatus, RunState, RunStatus
    from gradtf_fl.deployment.server_config import OURS, ListenSection, Server, load_server
    from gradtf_fl.deployment.server_files import holds_lock, read_federation
    from gradtf_fl.deployment.server_view import NOT_KNOWN, OrganizationView, ServerView, health, view_server
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "LOOPBACK",
    "LOOPBACK_HOST",
    "MAX_LOG_BYTES",
    "NOT_KNOWN",
    "OURS",
    "REFUSALS",
    "ChildProcess",
    "Enrolment",
    "ExchangeStatus",
    "Finding",
    "FlowerFailed",
    "FlowerSilent",
    "HealthServer",
    "Invitation",
    "JsonLog",
    "Level",
    "ListenSection",
    "NodeStatus",
    "Occupied",
    "OrganizationView",
    "PlanStatus",
    "RunState",
    "RunStatus",
    "Server",
    "ServerView",
    "by_label",
    "canonical",
    "changed_keys",
    "check",
    "direct_to",
    "end_with_parent",
    "enrol",
    "environment",
    "exposition",
    "filled",
    "fingerprint",
    "free_port",
    "gauge",
    "going_direct",
    "health",
    "held",
    "holds_lock",
    "identifiability_document",
    "identifiability_in_words",
    "init_authority",
    "issue_server",
    "last_line",
    "last_lines",
    "load_server",
    "public_of",
    "read_enrolment",
    "read_federation",
    "read_invitation",
    "read_lines",
    "same_fingerprint",
    "server_metrics",
    "states",
    "trusting_nobody",
    "view_server",
    "write_node_key",
]
