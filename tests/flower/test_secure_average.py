"""A secure average is the inner strategy's own result, within the step of the quantisation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx, FedYogi, Strategy

from gradtf_fl.flower import SecureAverage
from tests.flower.average_kit import CLIP, Kit, initial, make_kit

STEP = CLIP / ((2**23 - 1) // 3)  # of the quantisation of three members
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "FedProx": FedProx,
    "FedAvgM": lambda: FedAvgM(server_learning_rate=0.7, server_momentum=0.9),
    "FedAdam": lambda: FedAdam(eta=0.05, beta_1=0.9, beta_2=0.99, tau=0.1),
    "FedYogi": lambda: FedYogi(eta=0.05, beta_1=0.9, beta_2=0.99, tau=0.1),
}


def uniform(make: Callable[[], Strategy]) -> Callable[[], Strategy]:
    """The plain strategy, which weighs by a metric that is the same for all."""

    def plain() -> Strategy:
        strategy = make()
        strategy.weighted_by_key = "one"  # type: ignore[attr-defined]
        return strategy

    return plain


UNIFORM = {name: uniform(make) for name, make in STRATEGIES.items()}


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return make_kit(tmp_path)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_mean_is_the_strategy_s_own(kit: Kit, name: str) -> None:
    config = ConfigRecord({"rate": 0.05})
    plain = UNIFORM[name]().start(kit.grid(secure=False), initial(), num_rounds=3, train_config=config)
    secure = SecureAverage(STRATEGIES[name](), roster=kit.keys, clip=CLIP, deadline_s=60.0)
    result = secure.start(kit.grid(), initial(), num_rounds=3, train_config=config)
    assert list(result.arrays) == list(plain.arrays)
    for key in ("weight", "bias", "scale"):
        assert result.arrays[key].dtype == plain.arrays[key].dtype
        np.testing.assert_allclose(result.arrays[key].numpy(), plain.arrays[key].numpy(), atol=60 * STEP)
    steps = result.arrays["steps"].numpy()
    assert (steps.dtype, steps.tolist()) == (np.int64, [7])
