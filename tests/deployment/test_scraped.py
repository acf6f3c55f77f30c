"""Metrics of a real deployment: scraped over loopback from a server and from a node while a run goes on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradtf_fl.deployment.processes import free_port
from gradtf_fl.privacy import read_ledger
from tests.deployment.deployed_kit import ROUND_S, Deployment
from tests.deployment.test_metrics import get, parsed

PRV = "spent{accountant=prv,dataset=train}"


def scraped(port: int) -> dict[str, float]:
    code, kind, text = get(port, "/metrics")
    assert (code, kind.partition(";")[0]) == (200, "application/openmetrics-text")
    return parsed(text)


@pytest.mark.slow
@pytest.mark.network
def test_a_server_and_a_node_are_scraped(untrained: tuple[str, str], tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, untrained, organizations=3)
    node, ports = deployment.organizations[0], (free_port(), free_port())
    try:
        deployment.server.start("--health-port", str(ports[0]))
        node.start("--health-port", str(ports[1]), "--budget-metrics")
        for other in deployment.organizations[1:]:
            other.start()
        deployment.finished(1)
        deployment.delivered(1)
        server = scraped(ports[0])
        deployment.wait(
            lambda: any("epsilon_spent" in key and value > 0 for key, value in scraped(ports[1]).items()),
            ROUND_S,
            "the ledger's figures",
        )
        found = scraped(ports[1])
    finally:
        deployment.stop()
    assert server["gradtf_server_process_up{process=superlink}"] == 1
    assert server["gradtf_server_attempts_total{state=completed}"] >= 1
    assert server["gradtf_server_organizations_planned"] == 3
    assert found["gradtf_node_supernode{gradtf_node_supernode=up}"] == 1
    assert found["gradtf_node_messages_total{outcome=answered,type=train.mask}"] >= 1
    assert found["gradtf_node_message_seconds_sum{type=train.begin}"] > 0
    spent, left = (found[f"gradtf_node_epsilon_{name}"] for name in (PRV, "remaining{dataset=train}"))
    assert left == pytest.approx(read_ledger(node.folder / "ledger.sqlite").content.budget - spent)
    assert not any(re.search(r"org-\d", key) for key in {**server, **found})
