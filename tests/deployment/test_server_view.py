"""The view of a server's folder for people and for health, on values made by hand."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gradtf_fl.deployment.run_status import NodeStatus, PlanStatus, RunStatus
from gradtf_fl.deployment.server_files import Traffic
from gradtf_fl.deployment.server_view import LATE, OrganizationView, ServerView, health
from gradtf_fl.reports.server_status import status_report
from gradtf_fl.reports.status_words import duration, size

PLAN = PlanStatus(organizations=3, rounds=5, epsilon=8.0, delta=1e-5, deadline_s=600.0, join_s=300.0)
STATUS = RunStatus(PLAN, round=1, stage="advertise", expected=3, stage_started=1000.0, updated=1000.0)


def rendered(view: ServerView, width: int = 120, most: int | None = None) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(status_report(view, most))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def view(alive: bool = True, status: RunStatus | None = STATUS, **values: Any) -> ServerView:
    return ServerView(Path("server"), alive, status, None if status is None else 1.0, **values)


def now(**values: Any) -> RunStatus:
    """A status whose stage began a moment ago."""
    return replace(STATUS, stage_started=time.time(), updated=time.time(), **values)


def test_health() -> None:
    assert health(view(status=now()))["status"] == "ok"
    assert health(view(status=now(dropped=1)))["status"] == "degraded"
    assert health(view(status=now(), organizations=(OrganizationView("a", in_last_sum=False),)))["status"] == "degraded"
    assert health(view(status=now(), organizations=(OrganizationView("a", in_last_sum=None),)))["status"] == "ok"
    late = replace(now(), stage_started=now().updated - LATE * 600 - 10)
    assert health(view(status=late))["status"] == "degraded"
    joining = replace(now(), stage_started=now().updated - LATE * 300 - 10)  # late to connect, not to train
    assert health(view(status=joining))["status"] == "ok"
    assert health(view(status=replace(joining, stage="connect")))["status"] == "degraded"
    for state in ("aborted", "rejected", "failed"):
        assert health(view(alive=False, status=now(state=state)))["status"] == "failed"
        assert health(view(alive=True, status=now(state=state)))["status"] == "ok"  # it was started again
    assert health(view(alive=False, status=now(state="completed")))["status"] == "ok"
    assert json.dumps(health(view()), allow_nan=False)


@pytest.mark.parametrize(
    ("node", "status", "told"),
    [
        (None, STATUS, "not seen yet"),
        (NodeStatus(1, "a", "advertise", "waiting"), STATUS, "waiting for advertise"),
        (NodeStatus(1, "a", "advertise", "answered"), STATUS, "answered advertise"),
        (NodeStatus(1, "a", "advertise", "policy", refusal="policy", refused_in=1), STATUS, "refuses: policy"),
        (NodeStatus(1, "a", "mask", "silent"), STATUS, "lost at mask: no answer"),
        (NodeStatus(1, "a"), STATUS, "not connected"),
        (NodeStatus(1, "a", refusal="policy", refused_in=3), STATUS, "not connected; refused round 3 (policy)"),
        (NodeStatus(1, "a", refusal="data", refused_in=3), replace(STATUS, stage="connect"), "refused round 3 (data)"),
    ],
)
def test_what_is_said_of_an_organization(node: NodeStatus | None, status: RunStatus, told: str) -> None:
    text = rendered(view(status=status, organizations=(OrganizationView("a" * 64, now=node),)))
    row = next(line for line in text.splitlines() if "a" * 16 in line)
    assert row.rstrip().endswith(told)


def test_bytes_are_of_this_attempt_else_of_the_last() -> None:
    past = (Traffic(1, 0, 1000, 2000, True), Traffic(2, 0, 3000, 4000, True))
    asked_now, not_asked = NodeStatus(1, "a", "mask", "waiting", 5000, 6000), NodeStatus(1, "a")
    for node, told in ((asked_now, "5.0 kB 6.0 kB"), (not_asked, "3.0 kB 4.0 kB"), (None, "3.0 kB 4.0 kB")):
        text = rendered(view(organizations=(OrganizationView("a" * 64, now=node, traffic=past),)))
        assert told in " ".join(text.split())


def test_of_many_organizations_the_troubled_come_first() -> None:
    good = NodeStatus(1, "a", "mask", "answered")
    many = [OrganizationView(f"{n:064x}", f"org-{n}", True, now=good) for n in range(100)]
    many[97] = replace(many[97], in_last_sum=False)
    many[98] = replace(many[98], now=NodeStatus(98, "b", "mask", "silent"))
    text = rendered(view(organizations=tuple(many)), most=5)
    rows = [line.split()[0] for line in text.splitlines() if line.strip().startswith("org-")]
    assert rows == ["org-97", "org-98", "org-0", "org-1", "org-2"]
    assert "and 95 more" in text
    assert "more" not in rendered(view(organizations=tuple(many)))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (2740, "2.7 kB"), (31_400, "31 kB"), (999_600, "1.0 MB"), (5 * 10**9, "5.0 GB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (12.4, "12 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (7440, "2 h 4 min"),
        (86400 * 3 + 3600 * 4, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_name_is_no_markup() -> None:
    text = rendered(view(organizations=(OrganizationView("a" * 64, "[red]x[/red]"),)))
    assert "[red]x[/red]" in text
