"""What an organization's own health endpoint tells Prometheus, in OpenMetrics; it listens on loopback alone.

Processes and messages always; what its ledger has spent and has left only where ``gradtf org run --budget-metrics``
asks for it. Whoever scrapes that knows how much the organization could still be made to spend. A server that knew it
could choose plans by it, so such a scraper must not be the server's.

`gradtf audit report` computes the ledger's figures in a process of its own, once for each change of the file: the
accountants would keep torch in the memory of the node's first process for good.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradtf_fl.deployment import REFUSALS, by_label, gauge, states
from gradtf_fl.file_names import LEDGER
from gradtf_fl.round_messages import DELIVER_TYPE, MESSAGE_TYPES

if TYPE_CHECKING:
    from prometheus_client import Metric

OTHER = "other"
TYPES = (*MESSAGE_TYPES.values(), DELIVER_TYPE)
ENDS = ("answered", "failed", *REFUSALS)
SUPERNODE = ("up", "connecting", "down")
REPORT_SECONDS = 300.0
MEANING = ("unit", "adjacency", "delta", "sampler", "accountant", "noise_generator")
"""What gives an epsilon its meaning, as `gradtf audit report` names it."""
ACCOUNTANTS = ("prv", "pld", "rdp")
SPENT = "Epsilon spent of the dataset's rows or persons in all runs, composed jointly; gradtf_node_epsilon says whose."


class Answers:
    """Messages that were answered, by type and by how that ended, and the seconds that they took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[tuple[str, str], tuple[int, float]] = {}

    def note(self, message_type: str, outcome: str, seconds: float) -> None:
        """One message more; what is on no list counts as ``other``."""
        key = message_type if message_type in TYPES else OTHER, outcome if outcome in ENDS else OTHER
        with self._lock:
            count, total = self._found.get(key, (0, 0.0))
            self._found[key] = count + 1, total + seconds

    def metrics(self) -> Iterator[Metric]:
        """Counts by type and outcome, and a summary of seconds by type."""
        from prometheus_client.core import CounterMetricFamily, SummaryMetricFamily

        with self._lock:
            found = dict(self._found)
        counts = CounterMetricFamily("gradtf_node_messages", "Messages of the server.", labels=["type", "outcome"])
        seconds = SummaryMetricFamily("gradtf_node_message_seconds", "Time to answer them.", labels=["type"])
        for (kind, outcome), (count, _) in sorted(found.items()):
            counts.add_metric([kind, outcome], count)
        for kind in (*TYPES, OTHER):
            own = [value for key, value in found.items() if key[0] == kind]
            if own:
                seconds.add_metric([kind], sum(count for count, _ in own), sum(total for _, total in own))
        yield counts
        yield seconds


@dataclass(frozen=True)
class _Seen:
    """A ledger's file as it was, and what `gradtf audit report` said of it."""

    mark: tuple[int, int]
    accounts: tuple[Mapping[str, Any], ...]


class LedgerFigures:
    """The newest figures of an organization's ledger, computed in the background when its file has changed."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER
        self._seen = _Seen((0, 0), ())
        self._lock = threading.Lock()

    def accounts(self) -> tuple[Mapping[str, Any], ...]:
        """One document for each dataset, as `gradtf audit report` has it; of the last state that was computed."""
        mark = self._mark()
        if mark != self._seen.mark and self._lock.acquire(blocking=False):
            threading.Thread(target=self._renew, args=(mark,), name="ledger figures", daemon=True).start()
        return self._seen.accounts

    def wait(self) -> None:
        """Until nothing is being computed."""
        with self._lock:
            pass

    def _mark(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return 0, 0
        return status.st_size, status.st_mtime_ns

    def _renew(self, mark: tuple[int, int]) -> None:
        try:
            self._seen = _Seen(mark, _reported(self._path))
        finally:
            self._lock.release()


def ledger_metrics(accounts: tuple[Mapping[str, Any], ...]) -> Iterator[Metric]:
    """Spent, budget and remaining by dataset, and all that gives these epsilons a meaning."""
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    meaning = InfoMetricFamily("gradtf_node_epsilon", "What the epsilons of a dataset mean.", labels=["dataset"])
    spent = GaugeMetricFamily("gradtf_node_epsilon_spent", SPENT, labels=["dataset", "accountant"])
    budget = GaugeMetricFamily("gradtf_node_epsilon_budget", "Its lifetime limit, by PRV.", labels=["dataset"])
    left = GaugeMetricFamily("gradtf_node_epsilon_remaining", "Budget less spent, by PRV.", labels=["dataset"])
    for account in accounts:
        name = str(account["dataset"])
        meaning.add_metric([name], {key: str(account[key]) for key in MEANING})
        for accountant in ACCOUNTANTS:
            spent.add_metric([name, accountant], _number(account["epsilon"][accountant]))
        budget.add_metric([name], _number(account["budget"]))
        left.add_metric([name], _number(account["remaining"]))
    yield from (meaning, spent, budget, left)


def node_metrics(state: Mapping[str, Any], answers: Answers, ledger: LedgerFigures | None) -> Iterator[Metric]:
    """Of a node: ``state`` is `NodeState` as JSON."""
    from prometheus_client.core import CounterMetricFamily

    connection = "How the SuperNode stands to its server."
    yield states("gradtf_node_supernode", connection, str(state["supernode"]), SUPERNODE)
    yield gauge("gradtf_node_worker_up", "Whether the process lives that holds the models.", state["worker"] == "up")
    busy = {kind: float(kind == state["stage"]) for kind in TYPES}
    yield by_label("gradtf_node_busy", "The message in hand.", "type", busy, TYPES)
    restarts = "SuperNodes that ended and were started again."
    yield CounterMetricFamily("gradtf_node_restarts", restarts, value=int(state["restarts"]))
    yield from answers.metrics()
    if ledger is not None:
        yield from ledger_metrics(ledger.accounts())


def _number(value: object) -> float:
    """A figure of a report; null stands for infinity."""
    return float(value) if isinstance(value, int | float) else math.inf


def _reported(path: Path) -> tuple[Mapping[str, Any], ...]:
    """What `gradtf audit report` says of a ledger; nothing of one that is damaged or not there yet."""
    command = [sys.executable, "-m", "gradtf_fl.cli.main", "audit", "report", "--ledger", str(path), "--json"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=REPORT_SECONDS, check=True)
        return tuple(json.loads(done.stdout)["ledgers"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return ()
