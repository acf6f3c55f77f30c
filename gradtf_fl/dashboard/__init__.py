"""A web page on loopback that shows a server, an organization, ledgers or a simulation, live. Nothing loads torch
before a ledger's epsilon is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.dashboard.serve import DashboardServer
    from gradtf_fl.dashboard.sources import Sources
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["DashboardServer", "Sources"]
