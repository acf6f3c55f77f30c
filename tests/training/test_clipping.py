"""A row counts at most 1, whatever the bound, the size and the numbers; and the noise beside it is sigma."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gradtf_fl.config import FederationPlan
from gradtf_fl.errors import ConfigError
from gradtf_fl.round_messages import MAX_CLIP, MIN_CLIP, MalformedFields, TrainingPlan
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import clipping
from gradtf_fl.training.clipping import unit_sum
from gradtf_fl.training.dp_sgd import RowLosses, noisy_step, private_optimizer, train_dp
from gradtf_fl.training.randomness import Draws

from .conftest import lora_model, trainable

CLIPS = (MIN_CLIP, 1e-3, 0.5, 1e3, MAX_CLIP)
NONE = torch.tensor([], dtype=torch.long)


def test_by_hand() -> None:
    """Norms 5, .5 and 0 at C = 1; and at C = 10, where nothing is clipped and C still divides."""
    gradients = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert unit_sum([gradients], 1.0).tolist() == pytest.approx([0.9, 1.2], abs=2e-6)
    assert unit_sum([gradients], 10.0).tolist() == pytest.approx([0.33, 0.44], abs=1e-7)
    assert unit_sum([gradients[:, :1], gradients[:, 1:]], 1.0).tolist() == unit_sum([gradients], 1.0).tolist()
    assert unit_sum([gradients[:0]], 1.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("block", [1, 7, 64, 10**6])
@pytest.mark.parametrize("clip", [1e-6, 0.5, 1e6])
def test_blocks_change_nothing(block: int, clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(6, *shape, generator=generator) for shape in ((5, 4), (3,), (40,))]
    parts[1][2] = torch.inf
    expected = unit_sum(parts, clip)
    monkeypatch.setattr(clipping, "AT_ONCE", block)
    torch.testing.assert_close(unit_sum(parts, clip), expected, atol=0, rtol=1e-13)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("scale", [1.4e-45, 1e-38, 1e-20, 1e-6, 1.0, 1e6, 1e18, 3e38])
def test_a_row_of_any_size_counts_at_most_1(clip: float, scale: float) -> None:
    """Denormals, and rows whose norm float32 cannot hold."""
    row = torch.full((1, 1000), scale)
    assert bool(row.isfinite().all())
    counts = unit_sum([row], clip).norm()
    expected = min(1.0, scale * math.sqrt(1000) / clip)
    assert float(counts) <= 1
    assert float(counts) == pytest.approx(expected, rel=2e-6 if scale > 1e-37 else 0.5)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan, 3e38])
def test_a_row_that_overflows_counts_at_most_1_and_spares_its_neighbours(bad: float) -> None:
    sound = torch.tensor([[0.3, 0.4]])
    broken = torch.cat([sound, torch.tensor([[bad, 0.1]])])
    difference = unit_sum([broken], 1.0) - unit_sum([sound], 1.0)
    assert bool(difference.isfinite().all())
    assert float(difference.norm()) <= 1.0


@pytest.mark.parametrize(
    "coordinates", [10**3, 10**7, pytest.param(10**8, marks=pytest.mark.slow)], ids=["1e3", "1e7", "1e8"]
)
@pytest.mark.parametrize("kind", ["equal", "normal"])
def test_no_row_counts_more_than_1_at_any_number_of_coordinates(coordinates: int, kind: str) -> None:
    """In float32 a norm is 4e-4 too small at 10^7 coordinates and 1 % at 10^8."""
    row = torch.full((1, coordinates), 0.1)
    if kind == "normal":
        row.normal_(generator=torch.Generator().manual_seed(0))
    counted = unit_sum([row], 0.5)
    norm = math.sqrt(math.fsum(float(part @ part) for part in torch.split(counted, 10**4)))
    assert 1 - 2e-6 < norm < 1 - 2**-21


@pytest.mark.parametrize("clip", CLIPS)
def test_the_ratio_of_noise_to_a_row_does_not_depend_on_the_clip(random_rows: TokenRows, clip: float) -> None:
    """On Adam's scale: noise of sigma C / batch beside a row of C / batch at most."""
    model, batch = lora_model(), 8.0
    with private_optimizer(model, trainable(model), 1.5, clip, batch, 1e-9, Draws.make(3)) as optimizer:
        noisy_step(optimizer, RowLosses(model, random_rows), NONE, 512)
        noise = optimizer.gradient.double() * batch / clip
    assert noise.tolist() == pytest.approx(
        (1.5 * Draws.make(3).normals(0, len(noise), noise.device)).tolist(), rel=1e-6
    )
    with private_optimizer(model, trainable(model), 0.0, clip, batch, 1e-9, Draws.make(3)) as optimizer:
        noisy_step(optimizer, RowLosses(model, random_rows), torch.tensor([3]), 512)
        row = float(optimizer.gradient.double().norm()) * batch / clip
    assert row <= 1 + 2**-23  # rounded for Adam, after the noise
    assert row == pytest.approx(1, abs=2e-6) or clip >= 0.5


@pytest.mark.parametrize("clip", [1.4e-41, 9.9e-7, 1.1e6, math.inf, math.nan, 0.0, -1.0])
def test_a_clip_outside_the_permitted_sizes_is_refused_everywhere(random_rows: TokenRows, clip: float) -> None:
    """Of 1.4e-41 float32 keeps no digit: one row moved a sum by 1.99 C, charged 3.996, true 9.0."""
    with pytest.raises(ConfigError, match="clipping norm must be 1e-06 to 1e"):
        train_dp(lora_model(), random_rows, sigma=1.0, clip=clip, batch=4, steps=1, rate=1e-2)
    with pytest.raises(ConfigError, match="clip"):
        FederationPlan.from_run_config({"clip": clip})
    options: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-5, "rounds": 1, "steps": 1, "batch": 4, "rate": 1e-2}
    try:
        text = TrainingPlan(**options, clip=clip).canonical()
    except ValueError:  # no JSON for it
        return
    with pytest.raises(MalformedFields, match="outside its range"):
        TrainingPlan.from_canonical(text)


def test_an_adapter_ends_the_same_at_every_clip_that_clips_all(random_rows: TokenRows) -> None:
    """Adam takes no notice of a factor, but for its own 1e-8: steps of .01 differ where a gradient is about 0."""
    ends = []
    for clip in (1e-3, 1e-2):
        model = lora_model()
        train_dp(model, random_rows, sigma=1.0, clip=clip, batch=6, steps=3, rate=1e-2, seed=1)
        ends.append(torch.cat([p.detach().flatten() for p in trainable(model).values()]))
    assert float((ends[0] - ends[1]).abs().mean()) < 1e-4
