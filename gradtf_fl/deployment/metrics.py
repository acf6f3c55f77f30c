"""What a server's health endpoint tells Prometheus: numbers and states of `gradtf server status`, in OpenMetrics.

Labels take values from fixed lists alone (stages, outcomes, refusal codes); anything else counts as ``other``. So no
stranger's text gets into a label, and no series appears that is not on those lists. No organization is named: who was
missing, and who refused, stands in `gradtf server status`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

from gradtf_fl.deployment.opened_sums import identifiability_of
from gradtf_fl.deployment.run_status import RunState, RunStatus
from gradtf_fl.deployment.server_view import ServerView
from gradtf_fl.round_messages import STAGES, Refusal

if TYPE_CHECKING:
    from prometheus_client import Metric

OTHER = "other"
RUN_STAGES: tuple[str, ...] = ("connect", *STAGES, "generate", "deliver", "between")
RUN_STATES: tuple[str, ...] = ("not started", "idle", "died", *get_args(RunState))
OUTCOMES: tuple[str, ...] = ("waiting", "answered", "silent", "unusable", "refused", "not asked", OTHER)
REFUSALS: tuple[str, ...] = (*map(str, Refusal), OTHER)
EPSILON_OF_PLAN = (
    "Epsilon that the plan lets each organization spend in all rounds together. Unit: one row or one person, as each "
    "organization counts; adjacency: add or remove one; sampler: Poisson; accountant: PRV. What was spent, and what "
    "the noise came from, stands in each organization's ledger."
)


def exposition(families: Iterable[Metric]) -> bytes:
    """OpenMetrics 1.0 text of ``families``."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.openmetrics.exposition import generate_latest

    class Once:
        def collect(self) -> Iterable[Metric]:
            return families

    registry = CollectorRegistry()
    registry.register(Once())  # type: ignore[arg-type]
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text


def gauge(name: str, about: str, value: float | None) -> Metric:
    """One number; without a sample where it is None."""
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, about, value=value)


def by_label(
    name: str, about: str, label: str, values: Mapping[str, float], known: Collection[str], *, counter: bool = False
) -> Metric:
    """A number for each value of one label, those not ``known`` added up as ``other``. Counts are told when 0, too."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    total: Counter[str] = Counter()
    for value, number in values.items():
        total[value if value in known else OTHER] += number  # type: ignore[assignment]
    family = (CounterMetricFamily if counter else GaugeMetricFamily)(name, about, labels=[label])
    for value in (*known, *([OTHER] if OTHER not in known and OTHER in total else [])):
        family.add_metric([value], total[value])
    return family


def states(name: str, about: str, now: str, known: Collection[str]) -> Metric:
    """Which of a fixed list of states holds; none of them for a state that is not on it."""
    from prometheus_client.core import StateSetMetricFamily

    return StateSetMetricFamily(name, about, value={state: state == now for state in known})


def server_metrics(view: ServerView, processes: Mapping[str, Any]) -> Iterator[Metric]:
    """Of a server's folder and its processes (`ServerRun.state`)."""
    from prometheus_client.core import CounterMetricFamily

    yield states("gradtf_server_state", "State of the run.", view.state, RUN_STATES)
    up = {name: float(processes.get(name) == "up") for name in ("superlink", "superexec")}
    yield by_label("gradtf_server_process_up", "Whether a process of the server lives.", "process", up, tuple(up))
    restarts = int(processes.get("restarts", 0))
    yield CounterMetricFamily("gradtf_server_restarts", "Processes that died and were started again.", value=restarts)
    ended = Counter(str(record["state"]) for record in view.records)
    attempts = "Attempts at a round, by how they ended."
    yield by_label("gradtf_server_attempts", attempts, "state", ended, ("completed", "aborted"), counter=True)
    refused = "Organizations that declined an attempt, by refusal code."
    yield by_label("gradtf_server_refusals", refused, "code", view.refused, REFUSALS, counter=True)
    missing = sum(one.in_last_sum is False for one in view.organizations)
    yield gauge("gradtf_server_organizations_missing", "Organizations that are not in the last sum.", missing)
    identified = len(identifiability_of(view.records).identified)
    yield gauge("gradtf_server_identified", "Organizations whose update follows from the opened sums.", identified)
    yield gauge("gradtf_server_problems", "Files of the run that could not be read.", len(view.problems))
    if view.completed:
        last = view.completed[-1]
        sizes = {way: float(last.get(f"bytes_{way}_per_client", 0)) for way in ("up", "down")}
        about = "Payload of the last completed round, mean over the organizations asked."
        yield by_label("gradtf_server_round_bytes", about, "direction", sizes, ("up", "down"))
        seconds = {part: float(value) for part, value in last.get("seconds", {}).items()}
        about = "Wall time of the last completed round, by part."
        yield by_label("gradtf_server_round_seconds", about, "part", seconds, ("train", "aggregate", "generate"))
    if view.status is not None:
        yield from _run_metrics(view, view.status)


def _run_metrics(view: ServerView, status: RunStatus) -> Iterator[Metric]:
    """Of the round under way or last tried."""
    plan = status.plan
    yield gauge("gradtf_server_rounds_planned", "Rounds of the plan.", plan.rounds)
    yield gauge("gradtf_server_organizations_planned", "Organizations of the plan.", plan.organizations)
    yield gauge("gradtf_server_plan_epsilon", EPSILON_OF_PLAN, plan.epsilon)
    yield gauge("gradtf_server_plan_delta", "Delta of that epsilon.", plan.delta)
    yield gauge("gradtf_server_round", "Number of the round under way or last tried.", status.round)
    yield gauge("gradtf_server_attempt", "Number of its attempt.", status.attempt)
    yield states("gradtf_server_stage", "Stage of that round.", status.stage or "between", RUN_STAGES)
    yield gauge("gradtf_server_stage_seconds", "How long that stage has lasted.", view.stage_seconds or 0.0)
    yield gauge("gradtf_server_dropped", "Organizations lost in that attempt.", status.dropped)
    yield gauge("gradtf_server_status_age_seconds", "Since the last sign of life of the rounds.", view.age)
    exchanges = {one.stage: one.seconds for one in status.exchanges}
    yield by_label("gradtf_server_exchange_seconds", "Wall time of its exchanges.", "stage", exchanges, STAGES)
    answered = {one.stage: float(one.answered) for one in status.exchanges}
    yield by_label("gradtf_server_answered", "Organizations that answered, by stage.", "stage", answered, STAGES)
    stand = Counter(_outcome(one.stage, one.outcome) for one in status.nodes)
    yield by_label("gradtf_server_organizations", "Organizations by how they stand now.", "outcome", stand, OUTCOMES)
    sizes = {"up": sum(one.bytes_up for one in status.nodes), "down": sum(one.bytes_down for one in status.nodes)}
    yield by_label("gradtf_server_attempt_bytes", "Payload of that attempt.", "direction", sizes, ("up", "down"))


def _outcome(stage: str, outcome: str) -> str:
    if not stage:
        return "not asked"
    return "refused" if outcome in REFUSALS else outcome
