"""What a simulated federation is measured against: floors, ceiling and controls, on private test rows.

Every base model is loaded once and carries one PEFT adapter whose values are exchanged for each figure; every
baseline is trained once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gradtf_fl.adapters import (
    AdaptedModel,
    AdapterSpec,
    Vector,
    adapter_state,
    set_adapter_state,
)
from gradtf_fl.config import Combine, SimulationConfig
from gradtf_fl.file_names import GLOBAL_UPDATE, IDENTITY_KEY, OWN_UPDATE, ROUNDS
from gradtf_fl.secagg import Identity, SecureSum
from gradtf_fl.simulation.setup import FederationFolders
from gradtf_fl.tasks import OrganizationData, encode_rows, exact_match
from strategies import combine_groups

if TYPE_CHECKING:
    import torch

    from strategies import RoundRecord

    State = Mapping[str, torch.Tensor]

Figures = list[float]  # one value per organization
Enter = Callable[[str], None]  # told the name of each stage as it begins

CEILING_RATE = 1.5e-2
"""Adam's rate of the plain LLM fine-tuning, decaying linearly; the rate of the shadow sets' recipe."""


class OrganizationTests:
    """Every organization's test rows, and one model with its adapter that is scored on them.

    Attributes:
        adapted: the base model and its space.
        model: it with a PEFT adapter, whose values are exchanged for each figure.
    """

    def __init__(self, adapted: AdaptedModel, data: Sequence[OrganizationData]) -> None:
        self.adapted, self.model = adapted, adapted.attach()
        self.model.eval()
        self._rows = [encode_rows(organization.test, adapted.tokenizer) for organization in data]

    def scores(self, state: State) -> Figures:
        """Exact match of adapter ``state`` on each organization's test rows."""
        return [self.score(state, number) for number in range(len(self._rows))]

    def score(self, state: State, number: int) -> float:
        """Exact match of adapter ``state`` on the test rows of organization ``number``."""
        set_adapter_state(self.model, state)
        return exact_match(self.model, self._rows[number])


def tuned_alone(
    config: SimulationConfig, tests: OrganizationTests, data: Sequence[OrganizationData], rounds: int
) -> Figures:
    """TinyLM tuned on each organization's own rows alone: the federation's DP-SGD without the others.

    The organizations are trained side by side over one frozen base (each is a federation of one).
    """
    from gradtf_fl.privacy import noise_multiplier
    from gradtf_fl.training import DpRecipe, StackedAdapters, dp_fine_tune_stacked, stack_rows

    adapted = tests.adapted
    stack = StackedAdapters.load(config.tiny, adapted.space.spec)
    rows = stack_rows([encode_rows(organization.train, adapted.tokenizer) for organization in data])
    q = config.batch / config.rows
    sigma = noise_multiplier(config.epsilon, config.delta, q, config.rounds * config.steps)
    recipe = DpRecipe(rounds, config.steps, config.batch, config.clip, config.rate)
    alone = list(range(len(data)))
    updates = dp_fine_tune_stacked(stack, rows, alone, [sigma] * len(data), recipe, [config.seed, 0x414C4F4E])
    states = [adapted.state_at(np.asarray(update.numpy(), dtype=np.float32)) for update in updates[-1]]
    return [tests.score(state, number) for number, state in enumerate(states)]


def ceiling(
    config: SimulationConfig, tests: OrganizationTests, data: Sequence[OrganizationData], rounds: int
) -> Figures:
    """LLM tuned without DP on all organizations' rows together, seeing as many examples as the federation."""
    from gradtf_fl.training import fine_tune

    rows = encode_rows([row for organization in data for row in organization.train], tests.adapted.tokenizer)
    set_adapter_state(tests.model, tests.adapted.initial)
    steps, batch = rounds * config.steps, config.batch * len(data)
    fine_tune(tests.model, rows, steps=steps, batch=batch, rate=CEILING_RATE, seed=config.seed)
    return tests.scores(adapter_state(tests.model))


def tiny_figures(
    config: SimulationConfig,
    data: Sequence[OrganizationData],
    global_update: Vector,
    rounds: int,
    enter: Enter,
) -> dict[str, Figures]:
    """tiny_base, tiny_tuned and tiny_global of each organization; ``rounds`` are the finished ones."""
    from strategies import load_transformer

    enter("evaluate TinyLM")
    tests = OrganizationTests(AdaptedModel.load(config.tiny, load_transformer(config.transformer).source.spec), data)
    figures = {
        "tiny_base": tests.scores(tests.adapted.initial),
        "tiny_global": tests.scores(tests.adapted.state_at(global_update)),
    }
    enter("tune TinyLM alone")
    figures["tiny_tuned"] = tuned_alone(config, tests, data, rounds)
    return figures


def llm_figures(
    config: SimulationConfig,
    spec: AdapterSpec,
    data: Sequence[OrganizationData],
    global_update: Vector,
    generated: State,
    enter: Enter,
) -> dict[str, Figures]:
    """llm_base, llm_generated and the controls of each organization."""
    from gradtf_fl.baselines import Controls, embedded_controls

    enter("evaluate LLM")
    tests = OrganizationTests(AdaptedModel.load(config.llm, spec), data)
    figures = {"llm_base": tests.scores(tests.adapted.initial), "llm_generated": tests.scores(generated)}
    enter("evaluate controls")
    rivals = Controls.load(embedded_controls() if config.controls == "embedded" else Path(config.controls))
    updates = {
        "mean_update": rivals.mean_update(),
        "nearest_update": rivals.nearest(global_update),
        "ridge": rivals.ridge(global_update),
    }
    figures |= {name: tests.scores(tests.adapted.state_at(update)) for name, update in updates.items()}
    return figures


def sum_error(folders: FederationFolders, record: RoundRecord, combine: Combine) -> float:
    """Largest coordinate difference between the decoded mean and the plain mean of the clipped updates in it.

    In group mode both are the combination of the groups' means.

    The organizations keep their plain updates in a simulation; nobody has both sides in a deployment.
    """
    from safetensors.numpy import load_file

    kept = {}
    for folder in folders.organizations:
        path = folder / ROUNDS / str(record.round) / OWN_UPDATE
        if path.exists():
            kept[Identity.load(folder / IDENTITY_KEY).public.hex()] = load_file(path)["update"]
    sums = [
        SecureSum(np.mean([kept[key].astype(np.float64).reshape(-1) for key in keys], axis=0), len(keys), len(keys))
        for keys in record.sums or (record.included,)
    ]
    plain = combine_groups(sums, combine)
    decoded = load_file(folders.out / ROUNDS / str(record.round) / GLOBAL_UPDATE)["mean"]
    return float(np.abs(decoded.reshape(-1) - plain).max())
