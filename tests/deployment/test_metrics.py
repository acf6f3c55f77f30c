"""Metrics in OpenMetrics: what a server and a node tell, that labels are of fixed lists, and the files in deploy/."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from clients.node.metrics import Answers, LedgerFigures, ledger_metrics, node_metrics
from clients.node.run import NodeState
from gradtf_fl.deployment import HealthServer
from gradtf_fl.deployment.metrics import OUTCOMES, REFUSALS, exposition, server_metrics
from gradtf_fl.deployment.run_status import ExchangeStatus, NodeStatus, PlanStatus, RunStatus
from gradtf_fl.deployment.server_view import OrganizationView, ServerView
from gradtf_fl.privacy import DpEvent, Ledger, Unit, epsilon_prv
from gradtf_fl.round_messages import STAGES
from gradtf_fl.secagg import Identity
from tests.cli.conftest import gradtf

DEPLOY = Path(__file__).parents[2] / "deploy" / "metrics"
HOSTILE = 'evil"} 1\n# EOF\ngradtf_server_rounds 9'
PROCESSES = {"status": "ok", "superlink": "up", "superexec": "down", "attempts": 2, "restarts": 3}
RECORDS: tuple[Mapping[str, Any], ...] = (
    {"round": 1, "attempt": 0, "state": "aborted", "included": [], "llm_adapter_sha256": ""},
    {
        "round": 1,
        "attempt": 1,
        "state": "completed",
        "included": ["a", "b", "c"],
        "llm_adapter_sha256": "0" * 64,
        "bytes_up_per_client": 2000,
        "bytes_down_per_client": 3000,
        "seconds": {"train": 1.5, "aggregate": 0.5, "generate": 0.25},
    },
)
STATUS = RunStatus(
    PlanStatus(organizations=4, rounds=5, epsilon=8.0, delta=1e-5, deadline_s=600.0, join_s=300.0),
    round=2,
    attempt=1,
    stage="mask",
    stage_started=1000.0,
    updated=1060.0,
    dropped=1,
    exchanges=(ExchangeStatus("advertise", 4, 4, 12.5),),
    nodes=(
        NodeStatus(1, "a", "mask", "answered", 100, 200),
        NodeStatus(2, "b", "mask", "waiting", 10, 20),
        NodeStatus(3, "c", "advertise", "policy", 1, 2, refusal="policy", refused_in=2),
        NodeStatus(4, "d"),
    ),
)
VIEW = ServerView(
    Path("server"),
    alive=False,
    status=STATUS,
    age=4.0,
    records=RECORDS,
    organizations=tuple(OrganizationView(key, key.upper(), in_last_sum=key != "d") for key in "abcd"),
    refused={"policy": 2, "stale": 1},
)
STATE = NodeState("up", "up", "train.mask", 7, 1, "the connection to the server broke")
ACCOUNT = {
    "dataset": "train",
    "unit": Unit().text,
    "adjacency": "add or remove one row",
    "delta": 1e-5,
    "sampler": Unit().sampler,
    "accountant": "PRV",
    "noise_generator": ["a CSPRNG"],
    "epsilon": {"prv": 1.25, "pld": 1.24, "rdp": 1.5, "replace_one_pld": 2.4},
    "budget": 12.0,
    "remaining": 10.75,
}


class Known(LedgerFigures):
    """Figures that are there at once."""

    def accounts(self) -> tuple[Mapping[str, Any], ...]:
        return (ACCOUNT,)


def answers() -> Answers:
    found = Answers()
    found.note("train.begin", "answered", 2.0)
    found.note("train.begin", "policy", 0.5)
    return found


def server_text(view: ServerView = VIEW) -> str:
    return exposition(server_metrics(view, PROCESSES)).decode()


def node_text() -> str:
    return exposition(node_metrics(asdict(STATE), answers(), Known(Path("org-1")))).decode()


def parsed(text: str) -> dict[str, float]:
    """Value of each sample, as ``name{label=value}``, by Prometheus' own parser of OpenMetrics."""
    found = {}
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def names(text: str) -> set[str]:
    return {key.partition("{")[0] for key in parsed(text)}


def test_a_server_tells_what_server_status_shows() -> None:
    found = parsed(server_text())
    wanted = {
        "gradtf_server_state{gradtf_server_state=died}": 1,
        "gradtf_server_state{gradtf_server_state=running}": 0,
        "gradtf_server_stage{gradtf_server_stage=mask}": 1,
        "gradtf_server_stage_seconds": 60,
        "gradtf_server_process_up{process=superlink}": 1,
        "gradtf_server_process_up{process=superexec}": 0,
        "gradtf_server_restarts_total": 3,
        "gradtf_server_attempts_total{state=completed}": 1,
        "gradtf_server_attempts_total{state=aborted}": 1,
        "gradtf_server_refusals_total{code=policy}": 2,
        "gradtf_server_refusals_total{code=adapter}": 0,
        "gradtf_server_organizations_missing": 1,
        "gradtf_server_organizations_planned": 4,
        "gradtf_server_organizations{outcome=answered}": 1,
        "gradtf_server_organizations{outcome=waiting}": 1,
        "gradtf_server_organizations{outcome=refused}": 1,
        "gradtf_server_organizations{outcome=not asked}": 1,
        "gradtf_server_rounds_planned": 5,
        "gradtf_server_round": 2,
        "gradtf_server_attempt": 1,
        "gradtf_server_dropped": 1,
        "gradtf_server_exchange_seconds{stage=advertise}": 12.5,
        "gradtf_server_answered{stage=advertise}": 4,
        "gradtf_server_attempt_bytes{direction=up}": 111,
        "gradtf_server_round_bytes{direction=down}": 3000,
        "gradtf_server_round_seconds{part=train}": 1.5,
        "gradtf_server_plan_epsilon": 8,
        "gradtf_server_plan_delta": 1e-5,
        "gradtf_server_status_age_seconds": 4,
        "gradtf_server_problems": 0,
    }
    assert {key: found.get(key) for key in wanted} == wanted


def test_a_server_without_a_run_tells_what_there_is() -> None:
    view = ServerView(Path("server"), alive=False, status=None, age=None)
    found = parsed(server_text(view))
    assert found["gradtf_server_state{gradtf_server_state=not started}"] == 1
    assert "gradtf_server_round" not in found


def test_no_label_is_a_strangers_text_and_no_series_is_unbounded() -> None:
    """Names, keys, and codes that are on no list: the same series as ever."""
    nodes = [NodeStatus(n, HOSTILE, HOSTILE, f"{HOSTILE} {n}") for n in range(50)]
    exchanges = tuple(ExchangeStatus(f"{HOSTILE} {n}", 1, 1, 1.0) for n in range(50))
    records = [{**RECORDS[0], "state": f"{HOSTILE} {n}"} for n in range(50)]
    hostile = replace(
        VIEW,
        status=replace(STATUS, nodes=tuple(nodes), exchanges=exchanges, stage=HOSTILE, error=HOSTILE),
        records=(*records, RECORDS[1]),
        organizations=tuple(OrganizationView(HOSTILE, HOSTILE) for _ in range(3)),
        refused={f"{HOSTILE} {n}": 1 for n in range(50)},
    )
    text = server_text(hostile)
    assert "evil" not in text
    found = parsed(text)
    assert found["gradtf_server_organizations{outcome=other}"] == 50
    assert found["gradtf_server_refusals_total{code=other}"] == 50
    assert found["gradtf_server_exchange_seconds{stage=other}"] == 50
    extra = {key for key in set(found) - set(parsed(server_text())) if "=other" not in key}
    assert extra == set()


def test_labels_are_the_lists() -> None:
    found = parsed(server_text())

    def values(name: str, label: str) -> set[str]:
        return {re.sub(r".*=(.*)}", r"\1", key) for key in found if key.startswith(f"{name}{{{label}=")}

    assert values("gradtf_server_refusals_total", "code") == set(REFUSALS)
    assert values("gradtf_server_organizations", "outcome") == set(OUTCOMES)
    assert values("gradtf_server_exchange_seconds", "stage") == set(STAGES)


def test_a_node_tells_its_processes_and_messages() -> None:
    found = parsed(exposition(node_metrics(asdict(STATE), answers(), None)).decode())
    assert found["gradtf_node_supernode{gradtf_node_supernode=up}"] == 1
    assert found["gradtf_node_worker_up"] == 1
    assert found["gradtf_node_busy{type=train.mask}"] == 1
    assert found["gradtf_node_restarts_total"] == 1
    assert found["gradtf_node_messages_total{outcome=answered,type=train.begin}"] == 1
    assert found["gradtf_node_messages_total{outcome=policy,type=train.begin}"] == 1
    assert found["gradtf_node_message_seconds_count{type=train.begin}"] == 2
    assert found["gradtf_node_message_seconds_sum{type=train.begin}"] == 2.5
    assert not any("epsilon" in key for key in found)


def test_a_servers_message_makes_no_series_of_its_own() -> None:
    found = Answers()
    for number in range(100):
        found.note(f"{HOSTILE} {number}", f"{HOSTILE} {number}", 1.0)
    text = exposition(found.metrics()).decode()
    assert "evil" not in text
    assert parsed(text)["gradtf_node_messages_total{outcome=other,type=other}"] == 100


def test_an_epsilon_stands_with_what_it_means() -> None:
    found = parsed(exposition(ledger_metrics((ACCOUNT,))).decode())
    assert found["gradtf_node_epsilon_spent{accountant=prv,dataset=train}"] == 1.25
    assert found["gradtf_node_epsilon_budget{dataset=train}"] == 12.0
    assert found["gradtf_node_epsilon_remaining{dataset=train}"] == 10.75
    (meaning,) = [key for key in found if key.startswith("gradtf_node_epsilon_info")]
    for part in ("unit=", "adjacency=", "delta=", "sampler=", "accountant=", "noise_generator="):
        assert part in meaning


@pytest.mark.long
def test_a_ledgers_figures_are_the_audits_and_follow_it(tmp_path: Path) -> None:
    """Computed in another process, in the background; a scrape never waits for them."""
    event = DpEvent(sigma=1.75, q=1 / 16, steps=50)
    about: dict[str, Any] = {"organization": "clinic", "delta": 1e-5, "budget": 4.0}
    figures = LedgerFigures(tmp_path)
    assert figures.accounts() == ()
    with Ledger.open(tmp_path / "ledger.sqlite", identity_key=Identity.generate().private, **about) as ledger:
        for rounds in (1, 2):
            ledger.settle(ledger.reserve("run", rounds, 0, event), event)
            ledger.close()
            before = figures.accounts()
            figures.wait()
            (account,) = figures.accounts()
            assert account not in before
            spent = epsilon_prv([event] * rounds, 1e-5)
            found = parsed(exposition(ledger_metrics(figures.accounts())).decode())
            assert found["gradtf_node_epsilon_spent{accountant=prv,dataset=train}"] == pytest.approx(spent)
            assert found["gradtf_node_epsilon_remaining{dataset=train}"] == pytest.approx(4.0 - spent)
    (tmp_path / "ledger.sqlite").write_bytes(b"damaged")
    figures.accounts()
    figures.wait()
    assert figures.accounts() == ()


def get(port: int, path: str, host: str = "localhost") -> tuple[int, str, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": host})
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, response.headers["Content-Type"], body


def test_the_endpoint_serves_them_on_loopback_names_only() -> None:
    with HealthServer(0, lambda: {"status": "ok"}, lambda: server_text().encode()) as health:
        assert get(health.port, "/health")[0] == 200
        code, kind, body = get(health.port, "/metrics")
        assert (code, kind) == (200, "application/openmetrics-text; version=1.0.0; charset=utf-8")
        assert body == server_text()
        assert get(health.port, "/metrics", "evil.test")[0] == 403
        assert get(health.port, "/metrics?x=1")[0] == 404


def test_without_metrics_there_are_none_and_a_broken_one_tells_nothing() -> None:
    with HealthServer(0, lambda: {"status": "ok"}) as health:
        assert get(health.port, "/metrics")[0] == 404

    def broken() -> bytes:
        raise ValueError("a patient's row")

    with HealthServer(0, lambda: {"status": "ok"}, broken) as health:
        assert get(health.port, "/metrics") == (503, "application/json", '{"error": 503}\n')


def test_budget_metrics_need_a_health_port(tmp_path: Path) -> None:
    result = gradtf("org", "run", tmp_path, "--budget-metrics")
    assert result.exit_code == 2
    assert "--budget-metrics: only with --health-port" in result.stderr


# deploy/


@pytest.mark.parametrize(("name", "made"), [("server", server_text), ("node", node_text)])
def test_the_samples_are_what_is_exported(name: str, made: Any) -> None:
    sample = (DEPLOY / f"openmetrics-{name}.txt").read_text()
    assert sample == made()
    assert sample.endswith("# EOF\n")


def test_every_panel_asks_for_metrics_that_exist() -> None:
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    exported = names(server_text()) | names(node_text())
    asked = set()
    for panel in board["panels"]:
        targets = panel.get("targets", [])
        assert targets or panel["type"] == "row", panel["title"]
        for target in targets:
            found = set(re.findall(r"gradtf_[a-z_]+", target["expr"]))
            assert found, target
            assert found <= exported, sorted(found - exported)
            asked |= found
            by = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert by <= labels_of(found), (panel["title"], by)
    assert {name for name in exported if "epsilon" in name} <= asked | {"gradtf_node_epsilon_info"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def labels_of(series: Iterable[str]) -> set[str]:
    return {
        label.partition("=")[0]
        for key in {**parsed(server_text()), **parsed(node_text())}
        if key.partition("{")[0] in series
        for label in re.findall(r"[{,](\w+=)", key)
    }


def test_the_scrape_configuration_names_loopback() -> None:
    targets = re.findall(r'targets: \["([^"]+)"\]', (DEPLOY / "prometheus.yml").read_text())
    assert targets
    assert all(target.startswith("127.0.0.1:") for target in targets)


def test_a_family_is_told_once() -> None:
    for families in (server_metrics(VIEW, PROCESSES), node_metrics(asdict(STATE), answers(), Known(Path("x")))):
        told = [family.name for family in list[Metric](families)]
        assert len(told) == len(set(told))
