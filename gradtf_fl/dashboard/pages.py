"""The pages of a dashboard: one for each thing that was named, in the order of the navigation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from gradtf_fl.dashboard.adapters_page import adapters_context
from gradtf_fl.dashboard.budgets_page import BudgetsContext
from gradtf_fl.dashboard.log_page import log_context, logs_of
from gradtf_fl.dashboard.run_page import RunContext
from gradtf_fl.dashboard.server_page import server_context
from gradtf_fl.dashboard.sources import Sources


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        name: its path, and the folder of its templates.
        title: in the navigation and above the page.
        parts: each the name of a template; what has changed of them is sent to an open page.
        context: what the parts show, read again at each call. Its ``spoken`` is the line that a screen reader is told
            when it changes. It may be called from any thread.
    """

    name: str
    title: str
    parts: tuple[str, ...]
    context: Callable[[], Mapping[str, Any]]


def pages_of(sources: Sources) -> tuple[Page, ...]:
    """The pages of what was named."""
    pages = []
    server, organization, run = sources.server, sources.organization, sources.run
    if server is not None:
        server_parts = ("state", "stages", "organizations", "facts")
        pages.append(Page("server", "Server", server_parts, partial(server_context, server)))
    if run is not None:
        run_parts = ("state", "accuracy", "epsilon", "holdings", "rounds", "organizations")
        pages.append(Page("run", "Simulation", run_parts, RunContext(run)))
    if organization is not None or sources.ledgers:
        pages.append(Page("budgets", "Budgets", ("budgets",), BudgetsContext(sources)))
    if organization is not None:
        pages.append(Page("adapters", "Adapters", ("adapters",), partial(adapters_context, organization)))
    if logs := logs_of(sources):
        pages.append(Page("log", "Log", ("log",), partial(log_context, logs)))
    return tuple(pages)
