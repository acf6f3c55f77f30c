"""What the sampler feeds the Grad-Transformer, on hand-made shards whose answers are known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from gradtf_fl.curation.store import Shard
from gradtf_fl.transformer import sampling
from gradtf_fl.transformer.sampling import ShadowSampler

ROWS, BLOCKS, DIM = 4, 2, 3


def shard(name: str, sets: list[dict[str, Any]]) -> Shard:
    """One federation for each of ``sets``: rules, epsilon, updates [K, L1, n1], and "llm" where it is a pair."""
    members = [number for number, entry in enumerate(sets) for _ in entry["tiny"]]
    tiny = torch.cat([entry["tiny"] for entry in sets])[None]
    ids = torch.tensor(members, dtype=torch.int32)[:, None, None].expand(-1, ROWS, 5).contiguous()
    tensors = {"tiny": tiny, "group": torch.tensor(members, dtype=torch.int32), "input_ids": ids, "labels": ids}
    if "llm" in sets[0]:
        tensors["llm"] = torch.cat([entry["llm"] for entry in sets])
    groups = [{"task": json.dumps(s["rules"]), "parts": s["rules"], "epsilon": s.get("epsilon")} for s in sets]
    return Shard(name, tensors, {"groups": groups})


def constant(value: float, count: int = 1) -> torch.Tensor:
    return torch.full((count, BLOCKS, DIM), value)


def store() -> list[Shard]:
    rng = torch.Generator().manual_seed(0)
    return [  # rules aej and bfk plainly, a mixture plainly, aej at two epsilons
        shard(
            "pairs",
            [
                {"rules": ["aej"], "tiny": constant(1.0), "llm": constant(10.0)},
                {"rules": ["bfk"], "tiny": constant(2.0), "llm": constant(20.0)},
            ],
        ),
        shard("plain", [{"rules": ["aej", "bfk", "cgl"], "tiny": constant(7.0)}]),
        shard(
            "dp",
            [
                {"rules": ["aej"], "epsilon": 1.0, "tiny": 1 + torch.randn(40, BLOCKS, DIM, generator=rng)},
                {"rules": ["aej"], "epsilon": 8.0, "tiny": 1 + torch.randn(40, BLOCKS, DIM, generator=rng)},
            ],
        ),
    ]


@pytest.mark.parametrize("plain_share", [1.0, 0.0])
def test_an_average_stays_inside_its_task(plain_share: float) -> None:
    sampler = ShadowSampler(store(), plain_share, mixture_share=0.0)
    rng = np.random.default_rng(0)
    batch = sampler.batch(rng, 200, 2)
    updates = batch.updates
    assert updates.shape == (200, BLOCKS, DIM)
    assert len(batch.rows) == 400
    if plain_share == 1.0:  # rule number g has update g + 1 and rows full of g
        torch.testing.assert_close(updates[:, 0, 0], batch.rows.input_ids[::2, 0].float() + 1)
    else:  # averages of up to 40: their spread says that weights sum to one and that several are averaged
        assert abs(float(updates.mean()) - 1) < 0.2
        assert 0.3 < float(updates.std()) < 0.8


def test_shares_of_mixtures_and_private_inputs_are_kept() -> None:
    rng = np.random.default_rng(1)
    sampler = ShadowSampler(store(), plain_share=0.3, mixture_share=0.4)
    drawn = [sampler.draw_task(rng) for _ in range(2000)]
    singles = [epsilon for epsilon, hidden in drawn if hidden.count('"') == 2]
    assert abs(len(singles) / 2000 - 0.6) < 0.05
    for epsilon, share in ((None, 0.3), (1.0, 0.35), (8.0, 0.35)):
        assert abs(singles.count(epsilon) / len(singles) - share) < 0.05


def test_hard_tasks_are_drawn_in_proportion_to_their_running_loss() -> None:
    rng = np.random.default_rng(1)
    sampler = ShadowSampler(store(), plain_share=1.0, mixture_share=0.0)
    easy, hard = sampler._pools[(None, False)]
    for _ in range(40):
        sampler.learned([easy, hard], [0.0, 0.85])
    share = sum(sampler.draw_task(rng) == hard for _ in range(2000)) / 2000
    assert abs(share - 0.9 / 0.95) < 0.03


def test_tuples_pair_updates_of_one_task() -> None:
    sampler = ShadowSampler(store(), 1.0, 0.0)
    tiny, llm = sampler.tuples(np.random.default_rng(2), 60)
    of_second = llm[:, 0, 0] == 20
    assert 0 < int(of_second.sum()) < 60
    torch.testing.assert_close(tiny[of_second], constant(2.0, int(of_second.sum())))
    assert float(tiny[~of_second].mean()) < 1.3


def test_noise_has_the_covariance_of_dp_sets_beyond_their_task_mean() -> None:
    spread = torch.randn(400, BLOCKS, DIM, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0, 0.0])
    sets = spread + torch.tensor([0.0, 0.0, 5.0])
    private = shard("dp", [{"rules": ["aej"], "epsilon": 1.0, "tiny": sets}])
    sampler = ShadowSampler([private], 0.0, 0.0)
    generator = torch.Generator().manual_seed(3)
    noise = sampler.noise(constant(0.0, 20_000), 1.0, generator)
    shown = noise.square().mean((0, 1)).sqrt() * 3**0.5  # strength U(0, 1): E s^2 = 1/3
    torch.testing.assert_close(shown, torch.tensor([3.0, 1.0, 0.0]), atol=0.1, rtol=0.1)
    assert torch.equal(sampler.noise(constant(0.0, 5), 0.0, generator), constant(0.0, 5))
    assert not ShadowSampler(store()[:2], 0.5, 0.0).noise(constant(0.0, 2), 1.0, generator).any()


@pytest.mark.parametrize(("fitting", "kept"), [(100, 80), (31, 30), (6, 6), (5, 5)])
def test_residuals_have_a_bound_and_stand_for_all(fitting: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "RESIDUAL_BYTES", fitting * 4 * BLOCKS * DIM)
    sampler = ShadowSampler(store(), 0.5, 0.0)
    noise = sampler.noise(constant(0.0, 4000), 1.0, torch.Generator().manual_seed(3))
    assert len(sampler._residuals) == kept
    again = ShadowSampler(store(), 0.5, 0.0).noise(constant(0.0, 4000), 1.0, torch.Generator().manual_seed(3))
    assert torch.equal(noise, again)
    if kept >= 30:
        assert abs(float(noise.std()) * 3**0.5 - 1) < 0.25  # strength U(0, 1): E s^2 = 1/3


def test_the_outputs_scale_is_learnt_from_so_many_pairs_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = ShadowSampler(store(), 0.5, 0.0)
    assert sampler.outputs() == [(0, 0), (0, 1)]
    monkeypatch.setattr(sampling, "LARGEST_SAMPLE", 1)
    (one,) = sampler.outputs()
    torch.testing.assert_close(sampler.llm_updates([one], slice(1, 2)), constant(10.0 * (1 + one[1]))[:, 1:2])


def test_moving_further_the_same_way_is_no_noise() -> None:
    far = torch.tensor([0.5, 1.0, 2.0])[:, None, None] * constant(1.0)
    sampler = ShadowSampler([shard("dp", [{"rules": ["aej"], "epsilon": 1.0, "tiny": far}])], 0.0, 0.0)
    noise = sampler.noise(constant(0.0, 50), 1.0, torch.Generator().manual_seed(4))
    assert float(noise.abs().max()) < 1e-5
