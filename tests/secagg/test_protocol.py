"""Whole rounds: the promised error, weights, groups, the stored state, memory. Dropouts are in test_dropouts.py."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from gradtf_fl.errors import RoundAborted
from gradtf_fl.secagg import ClientPolicy, default_threshold, run_secure_sum, smallest_threshold

from .federation import Federation


@pytest.mark.parametrize("n", [5, 8])
def test_error_of_the_mean_is_below_2_to_the_minus_18_of_the_clip(n: int) -> None:
    clip = 8.0
    rng = np.random.default_rng(n)
    vectors = [rng.normal(size=4000).astype(np.float32) * 0.1 for _ in range(n)]
    vectors[0] *= 10  # above the clip
    exact = [v.astype(np.float64) * min(1.0, clip / np.linalg.norm(v.astype(np.float64))) for v in vectors]
    for drop in ({}, {"mask": [1]}):
        result = run_secure_sum(vectors, clip=clip, bits=24, drop=drop)
        kept = [exact[i] for i in range(n) if i not in drop.get("mask", ())]
        error = np.abs(result.mean - np.mean(kept, axis=0)).max()
        assert 0 < error < 2**-18 * clip
        assert result.mean.dtype == np.float64


def test_weighted_mean() -> None:
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=50) * 0.05 for _ in range(4)]
    weights = [100.0, 700.0, 1000.0, 20.0]
    result = run_secure_sum(vectors, weights, weight_rule="examples", max_weight=1000.0, bits=32)
    np.testing.assert_allclose(result.mean, np.average(vectors, axis=0, weights=weights), atol=1e-7)
    assert result.total_weight == pytest.approx(sum(weights), rel=1e-6)


def test_issue_cases_of_dropouts() -> None:
    vectors = [np.full(3, i / 20) for i in range(8)]
    result = run_secure_sum(vectors, drop={"mask": {2}, "unmask": {5}})  # threshold 6 of 8
    np.testing.assert_allclose(result.mean, np.full(3, (28 - 2) / 140), atol=2**-18)
    with pytest.raises(RoundAborted) as aborted:
        run_secure_sum(vectors[:5], drop={"mask": {0, 1, 2}})  # threshold 4 of 5
    assert aborted.value.counts == {"advertise": 5, "share": 5, "accept": 5, "mask": 2}


def test_state_survives_a_process_change_between_all_stages() -> None:
    drop = {"share": [4], "mask": [0], "consistency": [5]}
    policy = ClientPolicy(n_min=3, t_min=6)
    stays, moves = (Federation(n=9, threshold=6, policy=policy) for _ in range(2))
    one, two = stays.run(drop), moves.run_reloaded(drop)
    np.testing.assert_array_equal(one.mean, two.mean)
    np.testing.assert_array_equal(one.mean, stays.expected([1, 2, 3, 5, 6, 7, 8]))


def test_state_bytes_are_stable_and_shrink_to_nothing_secret() -> None:
    federation = Federation(n=4).until("mask")
    client, seed = federation.clients[0], federation.seeds[0]
    assert seed in client.to_bytes()
    assert federation.reload(0).to_bytes() == client.to_bytes()
    federation.play("mask")
    assert seed not in client.to_bytes()  # forward secrecy: the masked vector cannot be opened from the store
    federation.play("consistency")
    assert len(client.to_bytes()) > 600
    federation.finish()
    finished = client.to_bytes()
    empty = len(finished) - len(federation.config.encode())
    assert empty < 60  # no key, no share, no view
    assert federation.reload(0).next_stage == "finished"


def test_running_a_stage_again_from_the_same_stored_state_gives_the_same_bytes() -> None:
    """So a crash between storing and sending never makes two different sharings of one secret."""
    federation = Federation(n=4).until("share")
    assert federation.reload(1).share(federation.sent["share"][1]) == federation.reload(1).share(
        federation.sent["share"][1]
    )


def test_masked_vectors_look_uniform_and_fresh() -> None:
    federation = Federation(n=3, dim=20_000).until("mask")
    (message,) = federation.clients[0].mask(federation.sent["mask"][0], np.zeros(20_000, dtype=np.float32))
    body = np.frombuffer(message[45:-64], dtype=np.uint8)
    assert body.size == 3 * 20_001
    counts = np.bincount(body, minlength=256)
    chi2 = float(((counts - body.size / 256) ** 2 / (body.size / 256)).sum())
    assert 160 < chi2 < 370  # 255 degrees of freedom, +-5 standard deviations


def test_the_server_folds_on_arrival() -> None:
    n, dim = 12, 60_000
    federation = Federation(n=n, dim=dim).until("mask")
    sent = [federation.answer("mask", i) for i in range(n)]
    federation.server.receive_masked(sent.pop())
    tracemalloc.start()
    try:
        while sent:
            federation.server.receive_masked(sent.pop())
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 20_000  # bytes for eleven vectors of 180 kB each
    assert peak < 1_500_000


def test_thresholds() -> None:
    assert [default_threshold(n) for n in (2, 3, 4, 5, 8)] == [2, 3, 3, 4, 6]
    assert [smallest_threshold(n) for n in (2, 3, 4, 5, 8)] == [2, 3, 3, 4, 5]


def test_ledger_heads_reach_the_server_signed() -> None:
    federation = Federation(n=3)
    heads = {key: bytes([i]) * 32 for i, key in enumerate(federation.roster.keys)}
    for i, head in enumerate(heads.values()):
        federation.server.receive_advert(federation.clients[i].advertise(head))
    assert federation.server.ledger_heads == heads
