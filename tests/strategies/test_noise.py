"""Rounds with Skellam noise on the sum: what is decoded, what the ledger says, and who refuses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load_file

from gradtf_fl.errors import RoundAborted
from gradtf_fl.privacy import read_ledger
from gradtf_fl.privacy.accounting.skellam import epsilon_gaussian, epsilon_skellam
from strategies import run_server
from tests.strategies.federation_kit import Kit
from tests.strategies.test_federation import plain_mean

MakeKit = Callable[..., Kit]


def test_the_mean_carries_the_promised_noise_and_both_epsilons_are_on_record(make_kit: MakeKit) -> None:
    kit = make_kit(organizations=4, noise_multiplier=0.5, threshold=3)
    records = run_server(kit.grid(), kit.plan, None, kit.generator).rounds
    errors = []
    for record in records:
        stored = load_file(kit.plan.out / "rounds" / str(record.round) / "global_update.safetensors")
        errors.append(stored["mean"].reshape(-1) - plain_mean(kit, record.round, record.included))
    error = np.concatenate(errors)
    # all four add noise, two (threshold 3, one colluder of four) are counted on: variance 4/2 of the promised
    expected = 0.5 * kit.plan.update_clip * math.sqrt(4 / 2) / 4
    assert abs(error.std() / expected - 1) < 5 / math.sqrt(2 * error.size)
    for folder in kit.folders:
        events = read_ledger(folder / "ledger.sqlite").content.client_level
        assert [(event.releases, event.noisers) for event in events] == [(1, 2), (1, 2)]
        assert epsilon_skellam(events, 1e-5) == pytest.approx(epsilon_gaussian(0.5, 2, 1e-5), rel=0.01)


def test_an_organization_that_wants_more_noise_refuses_before_it_trains(make_kit: MakeKit) -> None:
    kit = make_kit(noise_multiplier=0.5, rounds=1)
    for number in range(3):
        kit.change(number, secagg=kit.config(number).secagg.model_copy(update={"min_noise": 0.6}))
    with pytest.raises(RoundAborted, match="advertise"):
        run_server(kit.grid(), kit.plan, None, kit.generator)
    for folder in kit.folders:
        assert "noise multiplier 0.5 is below 0.6" in (folder / "client.log").read_text()
        assert not (folder / "ledger.sqlite").exists()
