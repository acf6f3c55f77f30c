"""bench: the document's contract, which rows are compared with whom, and that both sides do the whole job."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments.bench.flower_secagg_steps import FlowerRound
from experiments.bench.secagg import Sizes
from experiments.bench.secagg_round import MeasuredRound
from experiments.bench.server_floor import measure_against_floor
from experiments.measuring.benchmark import Row
from tests.cli.conftest import gradtf

TINY = Sizes((50, 70), (4, 20), (4, 6), 50, stream_bytes=1 << 22, runs=1)
FIELDS = {"what", "size", "unit", "ours", "peer", "theirs", "ratio", "limit", "runs", "note"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """From a process of its own, which must not import torch."""
    code = (
        "import sys; from experiments import bench; from experiments.bench.secagg import Sizes\n"
        f"from gradtf_fl.cli.main import cli; bench.QUICK_SECAGG = {TINY!r}\n"
        "try: cli.main(['bench', 'secagg', '--quick', '--json'])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "False", done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_document_keeps_the_contract(document: dict[str, Any]) -> None:
    assert document.keys() == {"machine", "rows"}
    assert {"cpu", "cores", "python", "numpy", "cryptography", "flwr", "openssl"} <= document["machine"].keys()
    for row in document["rows"]:
        assert row.keys() - {"server_ours", "server_theirs"} == FIELDS
        assert row["ours"] > 0
        assert (row["peer"] is None) == (row["theirs"] is None) == (row["ratio"] is None)
        if row["ratio"] is not None:
            assert row["ratio"] == pytest.approx(row["theirs"] / row["ours"])


def test_rows_are_there_for_every_size_and_only_shares_are_compared_as_keys(document: dict[str, Any]) -> None:
    rows = document["rows"]
    sizes = {(d, n) for d in TINY.dims for n in TINY.members}
    clients = [row for row in rows if row["what"] == "client masking"]
    assert {(row["size"]["d"], row["size"]["n"]) for row in clients} == sizes
    assert all(row["server_ours"] > 0 and row["server_theirs"] > 0 for row in clients)
    servers = [row for row in rows if row["what"] == "server: receive, recover, unmask"]
    assert {(row["size"]["d"], row["size"]["n"]) for row in servers} == {(d, max(TINY.members)) for d in TINY.dims}
    assert all(row["peer"] == "flwr 1.42" and row["limit"] > 0 for row in [*clients, *servers])
    about_keys = [row for row in rows if "key" in row["what"] or "share" in row["what"]]
    assert {row["what"] for row in about_keys if row["ratio"]} == {"share creation + recovery"}
    assert sum(row["what"] == "key phase of one client" for row in about_keys) == len(TINY.members)


def test_extrapolations_and_exactness_are_said(document: dict[str, Any]) -> None:
    for row in document["rows"]:
        if row["what"] in ("server: receive, recover, unmask", "share creation + recovery"):
            assert ("10 of 20 clients" in row["note"] and "scaled" in row["note"]) == (row["size"]["n"] == 20)
        if row["what"] == "k-regular round, one client":
            assert "exact" in row["note"]


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.bench.QUICK_SECAGG", replace(TINY, dims=(50,), members=(4,)))
    result = gradtf("bench", "secagg", "--quick")
    assert result.exit_code == 0, result.output
    assert "theirs: flwr 1.42" in result.stdout
    assert "ratio" in result.stdout
    assert "bench secagg" in result.stderr


def test_ratios_of_costs_and_rates() -> None:
    cost = Row("", {}, "s", ours=2.0, theirs=10.0)
    assert (cost.ratio, replace(cost, rate=True).ratio, replace(cost, theirs=None).ratio) == (5.0, 0.2, None)


def test_flower_really_does_its_round() -> None:
    vectors = [np.random.default_rng(i).normal(size=40).astype(np.float32) for i in range(4)]
    flower = FlowerRound(4, 3)
    assert flower.sharing_s > 0
    assert flower.recovery_s([0]) > 0  # asserts that the secrets are the right ones
    mean = flower.unmasked(flower.received(flower.mask(i, vectors[i]) for i in (1, 2, 3)), [0])
    np.testing.assert_allclose(mean, np.mean(vectors[1:], axis=0), atol=1e-5)
    with pytest.raises(ValueError, match="evenly"):
        FlowerRound(11, 8).recovery_s(range(0, 11, 10))


def test_our_round_is_whole_and_a_wrong_sum_is_seen() -> None:
    vector = np.random.default_rng(0).normal(size=30).astype(np.float32)
    round_ = MeasuredRound(5, vector).until("mask")
    twin = round_.fork()
    result = twin.finish([0, 1, 2, 4])
    assert twin.is_exact(result, [0, 1, 2, 4])
    assert not twin.is_exact(result, [0, 1, 2, 3])  # roundings differ from client to client
    off = result.mean.copy()
    off[7] += 1 / (4 * 2**20)
    assert not twin.is_exact(replace(result, mean=off), [0, 1, 2, 4])
    assert twin.server_total_s() > 0
    assert not round_.server_s["mask"], "a fork must not play its original on"


def test_sizes_are_measured_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.bench.QUICK_SIZES", (70_000,))
    result = gradtf("bench", "secagg", "--sizes", "--quick", "--json")
    assert result.exit_code == 0, result.output
    (one,) = json.loads(result.stdout)["sizes"]
    assert [client["bytes_up"] for client in one["client"]] == [41 + 4 + 3 * 70_001 + 64] * 3
    assert one["server"]["error"] < 2 * 3 / 2**23


@pytest.mark.alone
@pytest.mark.slow  # not reached everywhere yet: 1.14 on one machine, 1.38 and 1.48 on another
def test_the_server_costs_at_most_a_quarter_more_than_this_machine_needs_for_its_bytes() -> None:
    ours, floor = measure_against_floor(50, 10**6, runs=8)
    assert ours <= 1.25 * floor.seconds, (ours, floor)
