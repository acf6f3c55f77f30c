"""The organization's side in Flower: the ClientApp, its stages, the node that runs it, and the adapters it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from clients.adapters.export import export_merged, refuse_occupied
    from clients.adapters.gguf_export import export_gguf, refuse_existing
    from clients.adapters.kept import KeptAdapter, current, is_pinned, kept, newest, of_round, pin, unpin
    from clients.charging import refused_for_budget
    from clients.client_app import app
    from clients.kept_update import take_back_attempt
    from clients.node.checks import check_organization
    from clients.node.metrics import LedgerFigures, node_metrics
    from clients.node.run import NodeRun, describe
    from clients.node.setup import join_federation, make_organization
    from clients.organization import load_organization
    from clients.stages import example_weight
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "KeptAdapter",
    "LedgerFigures",
    "NodeRun",
    "app",
    "check_organization",
    "current",
    "describe",
    "example_weight",
    "export_gguf",
    "export_merged",
    "is_pinned",
    "join_federation",
    "kept",
    "load_organization",
    "make_organization",
    "newest",
    "node_metrics",
    "of_round",
    "pin",
    "refuse_existing",
    "refuse_occupied",
    "refused_for_budget",
    "take_back_attempt",
    "unpin",
]
