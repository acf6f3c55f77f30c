"""Gradient canaries through the real trainer: what they add, what the auditor sees, and that nothing stays behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradtf_fl.adapters import AdapterSpec, attach
from gradtf_fl.adapters.models import load_model
from gradtf_fl.tasks import TokenRows, encode_rows, house_rules_federation
from gradtf_fl.training.canaries import (
    DIGITS,
    MARK,
    Directions,
    GradientCanaries,
    NoisyGradients,
    b_matrices,
    blank,
    coordinate_energy,
    join,
    row_losses,
)
from gradtf_fl.training.dp_sgd import train_dp

CLIP = 0.5
RATE = 1e-3


@pytest.fixture
def model() -> torch.nn.Module:
    """The embedded TinyLM with a rank-16 adapter: 2,048 coordinates in B."""
    return attach(load_model("embedded:tiny")[0], AdapterSpec(rank=16, alpha=32.0, train_a=False))


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    organization = house_rules_federation("same", 1, 40, 1, 3)[0]
    return encode_rows(organization.train, load_model("embedded:tiny")[1])


def directions(count: int = 24) -> Directions:
    """Spread evenly over all matrices: the trainer refuses a first step that leaves one of them unchanged."""
    coordinate = torch.arange(count) * 2048 // count + 7
    return Directions(coordinate, torch.where(torch.arange(count) % 3 == 0, -1.0, 1.0))


def noiseless_sum(model: torch.nn.Module, data: TokenRows, clip: float = CLIP) -> torch.Tensor:
    """The clipped sum [size] of one step over all of ``data``."""
    with NoisyGradients(b_matrices(model)) as seen:
        train_dp(model, data, sigma=0.0, clip=clip, batch=len(data), steps=1, rate=RATE, seed=0)
    assert len(seen.steps) == 1
    return seen.steps[0] * len(data)


def test_a_canary_adds_exactly_c_along_its_own_coordinate(model: torch.nn.Module, rows: TokenRows) -> None:
    drawn = directions()
    with GradientCanaries(model, drawn, 20 * CLIP) as canaries:
        total = noiseless_sum(model, canaries.rows(11))
    expected = torch.zeros_like(total)
    expected[drawn.coordinate] = CLIP * drawn.sign
    torch.testing.assert_close(total, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(drawn.along(total), CLIP, atol=1e-5)


def test_its_norm_before_clipping_is_the_one_asked_for(model: torch.nn.Module, rows: TokenRows) -> None:
    drawn = directions(4)
    with GradientCanaries(model, drawn, 3.0) as canaries:
        total = noiseless_sum(model, canaries.rows(11), clip=1e6)
    np.testing.assert_allclose(drawn.along(total), 3.0, rtol=1e-4)


def test_rows_beside_canaries_keep_their_gradients(model: torch.nn.Module, rows: TokenRows) -> None:
    drawn = directions()
    alone = noiseless_sum(model, rows)
    for b in b_matrices(model):
        torch.nn.init.zeros_(b)
    with GradientCanaries(model, drawn, 20 * CLIP) as canaries:
        both = noiseless_sum(model, join([rows, canaries.rows(11)]))
    both[drawn.coordinate] -= CLIP * drawn.sign
    torch.testing.assert_close(both, alone, atol=1e-4, rtol=0)


def test_blank_canaries_are_as_good_as_absent(model: torch.nn.Module, rows: TokenRows) -> None:
    drawn = directions()
    kept = np.arange(24) % 2 == 0
    with GradientCanaries(model, drawn, 20 * CLIP) as canaries:
        total = noiseless_sum(model, blank(canaries.rows(11), kept))
    np.testing.assert_allclose(drawn.along(total), np.where(kept, CLIP, 0), atol=1e-5)
    assert float(total.norm()) == pytest.approx(CLIP * np.sqrt(kept.sum()), abs=1e-4)


def test_canaries_stay_exact_while_the_adapter_moves(model: torch.nn.Module, rows: TokenRows) -> None:
    """After steps with noise B is far from zero; the canary's gradient is still one coordinate."""
    drawn = directions()
    train_dp(model, rows, sigma=2.0, clip=CLIP, batch=10, steps=10, rate=0.05, seed=0)
    assert max(float(b.detach().abs().max()) for b in b_matrices(model)) > 0.1
    with GradientCanaries(model, drawn, 20 * CLIP) as canaries:
        total = noiseless_sum(model, canaries.rows(11))
    np.testing.assert_allclose(drawn.along(total), CLIP, atol=1e-4)
    assert float(total.norm()) == pytest.approx(CLIP * np.sqrt(24), abs=1e-3)


def test_the_model_is_as_before_afterwards(model: torch.nn.Module, rows: TokenRows) -> None:
    with torch.no_grad():
        before = row_losses(model, rows)
        with GradientCanaries(model, directions(), 1.0) as canaries:
            torch.testing.assert_close(row_losses(model, rows), before)
            marked = canaries.rows(11)
            at_zero = row_losses(model, marked)
        after = row_losses(model, marked)
        torch.testing.assert_close(row_losses(model, rows), before)
    assert at_zero.tolist() == pytest.approx([np.log(model.config.vocab_size)] * 24, abs=1e-6)
    assert (after - at_zero).abs().min() > 1e-4
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_rows_tell_their_number_and_no_task_row_bears_the_mark(model: torch.nn.Module, rows: TokenRows) -> None:
    with GradientCanaries(model, directions(124), 1.0) as canaries:
        marked = canaries.rows(11)
    assert marked.input_ids[123, :7].tolist() == [MARK, *(DIGITS[d] for d in (0, 0, 1, 2, 3)), DIGITS[0]]
    assert len({tuple(row) for row in marked.input_ids.tolist()}) == 124
    assert not (rows.input_ids[:, 0] == MARK).any()


def test_the_quietest_coordinates_are_taken_once_each(model: torch.nn.Module, rows: TokenRows) -> None:
    energy = coordinate_energy(model, rows)
    drawn = Directions.draw(energy, 300, np.random.default_rng(0))
    assert len(set(drawn.coordinate.tolist())) == 300
    assert energy[drawn.coordinate].max() <= energy.sort().values[300]
    assert set(drawn.sign.tolist()) == {-1.0, 1.0}
    with pytest.raises(ValueError, match="only 2048"):
        Directions.draw(energy, 2049, np.random.default_rng(0))


def test_energy_is_that_of_the_summed_gradients(model: torch.nn.Module, rows: TokenRows) -> None:
    """40 rows: batches of 16, 16 and 8, without clipping."""
    sums = [noiseless_sum(model, rows.take(slice(0, 16)), clip=1e6)]
    for start in (16, 32):
        for b in b_matrices(model):
            torch.nn.init.zeros_(b)
        sums.append(noiseless_sum(model, rows.take(slice(start, start + 16)), clip=1e6))
    for b in b_matrices(model):
        torch.nn.init.zeros_(b)
    torch.testing.assert_close(coordinate_energy(model, rows), sum(s**2 for s in sums), atol=1e-4, rtol=1e-3)


def test_only_adam_on_these_matrices_is_seen(model: torch.nn.Module) -> None:
    matrices = b_matrices(model)
    other = torch.nn.Parameter(torch.ones(3))
    for p in (*matrices, other):
        p.grad = torch.ones_like(p)
    with NoisyGradients(matrices) as seen:
        torch.optim.Adam([other]).step()
        torch.optim.SGD(matrices).step()
        torch.optim.Adam(matrices[:1]).step()
        assert not seen.steps
        torch.optim.Adam(matrices).step()
    torch.optim.Adam(matrices).step()
    assert len(seen.steps) == 1
    assert seen.stacked().shape == (1, 2048)
