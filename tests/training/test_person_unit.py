"""A person's rows as one: drawn together, one gradient, clipped as one; against plain loops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gradtf_fl.config import PhysicalRows, Sampler
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Persons, TokenRows
from gradtf_fl.training.dp_checkpoint import DpCheckpoint
from gradtf_fl.training.dp_sgd import RowLosses, noisy_step, private_optimizer, train_dp
from gradtf_fl.training.private_adam import PrivateAdam
from gradtf_fl.training.randomness import Draws
from gradtf_fl.training.units import Units, parts_of

from .conftest import adapter_model
from .test_dp_sgd import adapter, equal, perturb, trainable

THREE = Persons(((0, 3), (1,), (2, 4, 5, 6, 7)), most=8)
"""Three persons who share eight rows."""


def owners_of(persons: Persons) -> tuple[Tensor, Tensor]:
    """Rows of all persons, and whose each is."""
    rows = torch.tensor([row for own in persons.rows for row in own])
    return rows, torch.repeat_interleave(torch.arange(len(persons)), torch.tensor(persons.sizes))


def looped(model: nn.Module, rows: TokenRows, persons: Persons) -> Tensor:
    """Gradient [persons, size] of each person's loss, the mean of their rows' losses: autograd, a person at a time."""
    model.train()
    losses = RowLosses(model, rows)
    found = []
    for own in persons.rows:
        loss = losses(torch.tensor(own)).mean()
        found.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(trainable(model).values()))]))
    return torch.stack(found)


@pytest.mark.parametrize("sampler", ["lora", "opacus"])
@pytest.mark.parametrize("physical_batch", [512, 3, 1])
def test_the_step_takes_the_mean_of_clipped_persons(
    ragged_rows: TokenRows, physical_batch: int, sampler: Sampler
) -> None:
    """However the rows are put into parts: of five rows, one part of one row after the other."""
    model = perturb(adapter_model())
    gradients = looped(model, ragged_rows, THREE)
    norms = gradients.norm(dim=1)
    clip = float(norms.median())
    factors = (clip / norms).clamp(max=1)
    assert int((factors < 1).sum()) == 1
    rows, owners = owners_of(THREE)
    with private_optimizer(model, trainable(model), 0.0, clip, 2, 1e-2, Draws.make(0), sampler) as optimizer:
        noisy_step(optimizer, RowLosses(model, ragged_rows), rows, physical_batch, owners)
        got = torch.cat([p.grad.flatten() for p in trainable(model).values() if p.grad is not None])
    torch.testing.assert_close(got, (factors[:, None] * gradients).sum(0) / 2, atol=1e-6, rtol=1e-4)


def test_a_persons_gradient_is_bit_for_bit_that_of_a_loop(ragged_rows: TokenRows) -> None:
    """Rows added one after the other, whatever the parts: the very bits of a loop over the persons' rows."""
    model = perturb(adapter_model())
    rows, owners = owners_of(THREE)
    losses = RowLosses(model, ragged_rows)
    found: dict[int, Tensor] = {}
    with private_optimizer(model, trainable(model), 0.0, 1.0, 2, 1e-2, Draws.make(0)) as optimizer:
        single = []
        shares = [1 / torch.tensor(float(len(own))) for own in THREE.rows for _ in own]
        for row, share in zip(rows, shares, strict=True):
            optimizer.sampler.backward(losses(row[None]) * share)
            single.append(optimizer.row_gradients()[0])
        for size in (1, 3, 5, 8):
            begun, whole, place = None, [], 0
            for part in parts_of(owners, size, torch.device("cpu")):
                sums, begun = part.by_unit(torch.stack(single[place : place + len(part.owners)]), begun)
                whole += list(sums)
                place += len(part.owners)
            assert begun is None
            found[size] = torch.stack(whole)
    place, wanted = 0, []
    for own in THREE.rows:
        total = torch.zeros_like(single[0])
        for _ in own:
            total = total + single[place]
            place += 1
        wanted.append(total)
    assert all(torch.equal(each, torch.stack(wanted)) for each in found.values())


def test_sampling_is_bit_for_bit_that_of_a_loop() -> None:
    """Persons are drawn as rows are; of each, the rows with the lowest numbers of this step's order."""
    persons = Persons(((0, 3), (1,), (2, 4, 5, 6, 7)), most=2)
    units, draws = Units(8, persons), Draws.make(7)
    seen = set()
    for step in range(50):
        drawn = units.drawn(draws, step, 0.5)
        order = draws.order(step, 8)
        rows: list[int] = []
        owners: list[int] = []
        for number, person in enumerate(draws.rows(step, 3, 0.5).tolist()):
            own = sorted(sorted(persons.rows[person], key=lambda row: int(order[row]))[:2])
            rows, owners = rows + own, owners + [number] * len(own)
        assert (drawn.rows.tolist(), drawn.owners.tolist()) == (rows, owners)  # type: ignore[union-attr]
        seen |= set(rows)
    assert seen == set(range(8))  # all rows count in the end


def test_every_row_of_a_person_has_an_equal_chance() -> None:
    units, draws = Units(6, Persons(((0, 2, 3, 5, 1), (4,)), most=2)), Draws.make(1)
    counts = torch.zeros(6)
    for step in range(2000):
        counts[units.drawn(draws, step, 1.0).rows] += 1
    assert counts[4] == 2000
    assert float((counts[[0, 1, 2, 3, 5]] / 2000 - 0.4).abs().max()) < 0.05


def test_persons_of_one_row_train_as_rows_do(ragged_rows: TokenRows) -> None:
    """Bit for bit: the unit is then the same."""
    arguments = {"sigma": 1.0, "clip": 0.5, "batch": 4, "steps": 4, "rate": 1e-2, "seed": 3}
    alone = Persons(tuple((row,) for row in range(8)), most=4)
    models = [adapter_model(), adapter_model()]
    first = train_dp(models[0], ragged_rows, **arguments)
    second = train_dp(models[1], ragged_rows, **arguments, persons=alone)
    assert first == second
    assert equal(adapter(models[0]), adapter(models[1]))


@pytest.mark.parametrize("physical_batch", ["auto", 2])
def test_a_run_draws_persons(ragged_rows: TokenRows, physical_batch: PhysicalRows) -> None:
    outcome = train_dp(
        adapter_model(),
        ragged_rows,
        sigma=1.0,
        clip=0.5,
        batch=2,
        steps=3,
        rate=1e-2,
        seed=1,
        physical_batch=physical_batch,
        persons=THREE,
    )
    assert outcome.event.q == 2 / 3


def test_a_person_moves_the_sum_by_one_clip_at_most(ragged_rows: TokenRows) -> None:
    """However many rows: by rows, five of them move it by up to five clips."""
    model = perturb(adapter_model())
    clip = float(looped(model, ragged_rows, THREE).norm(dim=1).min()) / 4
    rows, owners = owners_of(THREE)

    def summed(kept: Tensor, by_person: bool) -> Tensor:
        with private_optimizer(model, trainable(model), 0.0, clip, 1, 1e-9, Draws.make(0)) as optimizer:
            whose = owners[kept].unique(return_inverse=True)[1] if by_person else None
            noisy_step(optimizer, RowLosses(model, ragged_rows), rows[kept], 512, whose)
            return optimizer.gradient.clone()

    everybody = torch.ones(8, dtype=torch.bool)
    moved = {
        by_person: max(
            float((summed(everybody, by_person) - summed(owners != person, by_person)).norm()) for person in range(3)
        )
        for by_person in (True, False)
    }
    assert moved[True] <= clip * 1.001
    assert moved[False] > 1.5 * clip


def test_a_step_that_failed_leaves_nothing_of_a_person(ragged_rows: TokenRows) -> None:
    """A part that broke off after half a person, then the step anew: the very bits of one that did not fail."""
    rows, owners = owners_of(THREE)
    results = []
    for fails in (False, True):
        model = perturb(adapter_model())
        with private_optimizer(model, trainable(model), 0.0, 0.5, 2, 1e-2, Draws.make(0)) as optimizer:
            forward = RowLosses(model, ragged_rows)
            if fails:
                half_a_step(optimizer, forward, rows, owners)
                optimizer.forget()
            noisy_step(optimizer, forward, rows, 4, owners)
            results.append(optimizer.gradient.clone())
    assert torch.equal(*results)


def half_a_step(optimizer: PrivateAdam, forward: RowLosses, rows: Tensor, owners: Tensor) -> None:
    part = parts_of(owners, 4, torch.device("cpu"))[0]
    assert part.goes_on
    optimizer.part = part
    optimizer.sampler.backward(forward(rows[:4]) * part.shares)
    optimizer.clip_and_accumulate()


def test_another_choice_of_persons_is_another_run(ragged_rows: TokenRows, tmp_path: Path) -> None:
    arguments = {"sigma": 1.0, "clip": 0.5, "batch": 2, "steps": 2, "rate": 1e-2, "seed": 3}
    kept = DpCheckpoint(tmp_path / "run", every=1)
    train_dp(adapter_model(), ragged_rows, **arguments, persons=THREE, checkpoint=kept)
    with pytest.raises(ConfigError, match="a different run"):
        train_dp(adapter_model(), ragged_rows, **arguments, persons=Persons(THREE.rows, 2), checkpoint=kept)


@pytest.mark.parametrize(
    ("persons", "why"),
    [
        (Persons(((0, 1), (1, 2, 3, 4, 5, 6, 7)), 4), "each of the 8 rows"),
        (Persons(((0, 1),), 4), "each of the 8 rows"),
        (Persons((tuple(range(8)), ()), 4), "everybody must have a row"),
        (Persons((tuple(range(8)),), 0), "at least 1"),
    ],
    ids=["a row of two", "a row of nobody", "nobody", "no rows"],
)
def test_persons_that_do_not_hold(ragged_rows: TokenRows, persons: Persons, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        train_dp(
            adapter_model(), ragged_rows, sigma=1.0, clip=0.5, batch=1, steps=1, rate=1e-2, seed=1, persons=persons
        )
