"""What a simulated federation is measured against: floors, ceiling and controls, on private test rows.

Every base model is loaded once and carries one PEFT adapter whose values are exchanged for each figure; every
baseline is trained once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradtf_fl.adapters import (
    AdapterSpec,
    BlockLayout,
    Vector,
    adapter_state,
    apply_update,
    attach,
    initial_state,
    load_model,
    set_adapter_state,
)
from gradtf_fl.config import Combine, SimulationConfig
from gradtf_fl.file_names import GLOBAL_UPDATE, IDENTITY_KEY, OWN_UPDATE, ROUNDS
from gradtf_fl.secagg import Identity, SecureSum
from gradtf_fl.simulation.setup import FederationFolders
from gradtf_fl.tasks import OrganizationData, TokenRows, encode_rows, exact_match
from strategies import combined

if TYPE_CHECKING:
    import torch

    from strategies import RoundRecord

    State = Mapping[str, torch.Tensor]

Figures = list[float]  # one value per organization
Enter = Callable[[str], None]  # told the name of each stage as it begins

CEILING_RATE = 1.5e-2
"""Adam's rate of the plain LLM fine-tuning, decaying linearly; the rate of the shadow sets' recipe."""


@dataclass(frozen=True)
class TunedBench:
    """One base model with its adapter attached, and every organization's test rows as its tokens."""

    model: Any
    tokenizer: Any
    spec: AdapterSpec
    initial: State
    layout: BlockLayout
    tests: tuple[TokenRows, ...]

    @classmethod
    def load(cls, name: str, spec: AdapterSpec, data: Sequence[OrganizationData]) -> TunedBench:
        """Load model ``name`` and encode the test rows."""
        model, tokenizer = load_model(name)
        initial = initial_state(model, spec)
        peft_model = attach(model, spec)
        peft_model.eval()
        tests = tuple(encode_rows(organization.test, tokenizer) for organization in data)
        return cls(peft_model, tokenizer, spec, initial, BlockLayout.from_state(initial, spec.train_a), tests)

    def scores(self, state: State) -> Figures:
        """Exact match of adapter ``state`` on each organization's test rows."""
        set_adapter_state(self.model, state)
        return [exact_match(self.model, rows) for rows in self.tests]

    def updated(self, update: Vector) -> dict[str, torch.Tensor]:
        """Adapter state of an update vector [blocks, block_dim]."""
        return apply_update(self.layout, self.initial, update)


def tuned_alone(config: SimulationConfig, bench: TunedBench, data: Sequence[OrganizationData], rounds: int) -> Figures:
    """TinyLM tuned on each organization's own rows alone: the federation's DP-SGD without the others.

    The organizations are trained side by side over one frozen base (each is a federation of one).
    """
    from gradtf_fl.privacy import noise_multiplier
    from gradtf_fl.training import DpRecipe, StackedAdapters, dp_fine_tune_stacked, stack_rows

    model, _ = load_model(config.tiny)
    stack = StackedAdapters(model, bench.spec)
    rows = stack_rows([encode_rows(organization.train, bench.tokenizer) for organization in data])
    q = config.batch / config.rows
    sigma = noise_multiplier(config.epsilon, config.delta, q, config.rounds * config.steps)
    recipe = DpRecipe(rounds, config.steps, config.batch, config.clip, config.rate)
    alone = list(range(len(data)))
    updates = dp_fine_tune_stacked(stack, rows, alone, [sigma] * len(data), recipe, [config.seed, 0x414C4F4E])
    states = [bench.updated(np.asarray(update.numpy(), dtype=np.float32)) for update in updates[-1]]
    scores = []
    for state, tests in zip(states, bench.tests, strict=True):
        set_adapter_state(bench.model, state)
        scores.append(exact_match(bench.model, tests))
    return scores


def ceiling(config: SimulationConfig, bench: TunedBench, data: Sequence[OrganizationData], rounds: int) -> Figures:
    """LLM tuned without DP on all organizations' rows together, seeing as many examples as the federation."""
    from gradtf_fl.training import fine_tune

    rows = encode_rows([row for organization in data for row in organization.train], bench.tokenizer)
    set_adapter_state(bench.model, bench.initial)
    steps, batch = rounds * config.steps, config.batch * len(data)
    fine_tune(bench.model, rows, steps=steps, batch=batch, rate=CEILING_RATE, seed=config.seed)
    return bench.scores(adapter_state(bench.model))


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
    bench = TunedBench.load(config.tiny, load_transformer(config.transformer).source.spec, data)
    figures = {
        "tiny_base": bench.scores(bench.initial),
        "tiny_global": bench.scores(bench.updated(global_update)),
    }
    enter("tune TinyLM alone")
    figures["tiny_tuned"] = tuned_alone(config, bench, data, rounds)
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
    bench = TunedBench.load(config.llm, spec, data)
    figures = {"llm_base": bench.scores(bench.initial), "llm_generated": bench.scores(generated)}
    enter("evaluate controls")
    rivals = Controls.load(embedded_controls() if config.controls == "embedded" else Path(config.controls))
    updates = {
        "mean_update": rivals.mean_update(),
        "nearest_update": rivals.nearest(global_update),
        "ridge": rivals.ridge(global_update),
    }
    figures |= {name: bench.scores(bench.updated(update)) for name, update in updates.items()}
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
    plain = combined(sums, combine)
    decoded = load_file(folders.out / ROUNDS / str(record.round) / GLOBAL_UPDATE)["mean"]
    return float(np.abs(decoded.reshape(-1) - plain).max())
