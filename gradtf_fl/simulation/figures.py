"""What a simulated federation is measured against: floors, ceiling and controls, on private test rows.

Every base model is loaded once and carries one PEFT adapter whose values are exchanged for each figure; every
baseline is trained once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clients import example_weight
from gradtf_fl.adapters import AdaptedModel, AdapterSpec, Place, Vector, adapter_state, set_adapter_state
from gradtf_fl.config import NO_TRANSFORMER, SimulationConfig
from gradtf_fl.file_names import GLOBAL_UPDATE, IDENTITY_KEY, OWN_UPDATE, ROUNDS
from gradtf_fl.flower import combine_groups
from gradtf_fl.preparation import from_library
from gradtf_fl.secagg import Identity, SecureSum
from gradtf_fl.simulation.setup import FederationFolders
from gradtf_fl.tasks import (
    Example,
    FederationData,
    Row,
    TokenRows,
    answer_scores,
    encode_rows,
    longest_row,
    score_task,
)
from gradtf_fl.transformer import TaskLibrary
from strategies import tiny_spec

if TYPE_CHECKING:
    import torch

    from gradtf_fl.flower import RoundRecord

    State = Mapping[str, torch.Tensor]

Enter = Callable[[str], None]  # told the name of each stage as it begins

HOUSE_RULES_CEILING_RATE = 1.5e-2
"""Adam's rate of the plain LLM fine-tuning, decaying linearly; the rate of the shadow sets' recipe."""


@dataclass(frozen=True)
class Figures:
    """One model on all organizations' test rows, one value each.

    Attributes:
        score: by the federation's metric.
        loss: nats a character of the answers.
    """

    score: tuple[float, ...]
    loss: tuple[float, ...]


class OrganizationTests:
    """Every organization's test rows, and one model with its adapter that is scored on them.

    Attributes:
        adapted: the base model and its space.
        model: it with a PEFT adapter, whose values are exchanged for each figure.
    """

    def __init__(self, adapted: AdaptedModel, config: SimulationConfig, data: FederationData) -> None:
        self.adapted, self.config, self.data = adapted, config, data
        self.model = adapted.attach()
        self.model.eval()
        self._rows = [encode_rows(one.test, adapted.tokenizer, self.max_tokens) for one in data.organizations]

    def figures(self, state: State) -> Figures:
        """Figures of adapter ``state`` on each organization's test rows."""
        return together([self.of(state, number) for number in range(len(self.data.organizations))])

    def of(self, state: State, number: int) -> Figures:
        """Figures of adapter ``state`` on the test rows of organization ``number`` alone."""
        set_adapter_state(self.model, state)
        test = self.data.organizations[number].examples
        scores = answer_scores(self.model, self._rows[number])
        loss = scores.nats / max(1, sum(len(example.row.answer) for example in test))
        if self.data.metric == "loss":
            return Figures((loss,), (loss,))
        # answers of one length: the same as decoding them
        return Figures((self._generated(test) if self.data.tasks else scores.exact_match,), (loss,))

    def _generated(self, test: Sequence[Example]) -> float:
        """The tasks' own metrics of generated answers, over all rows."""
        by_label: dict[str, list[Example]] = {}
        for example in test:
            by_label.setdefault(example.label, []).append(example)
        scored = [
            score_task(self.model, self.adapted.tokenizer, self.data.tasks[label], examples)
            for label, examples in by_label.items()
        ]
        return sum(one.value * one.rows for one in scored) / len(test)

    def encoded(self, rows: Sequence[Row]) -> TokenRows:
        """Rows as the organizations encode them."""
        return encode_rows(rows, self.adapted.tokenizer, self.max_tokens, end=self.data.end)

    @property
    def max_tokens(self) -> int:
        """Tokens of a row at most."""
        return longest_row(self.model, self.config.task.max_tokens)


def together(parts: Sequence[Figures]) -> Figures:
    """Figures of several organizations as one."""
    return Figures(
        tuple(value for part in parts for value in part.score), tuple(value for part in parts for value in part.loss)
    )


def tuned_alone(tests: OrganizationTests, rounds: int) -> Figures:
    """TinyLM tuned on each organization's own rows alone: the federation's DP-SGD without the others.

    Organizations with as many rows are trained side by side over one frozen base (each is a federation of one).
    """
    from gradtf_fl.privacy import noise_multiplier
    from gradtf_fl.training import DpRecipe, StackedAdapters, dp_fine_tune_stacked

    config, adapted, organizations = tests.config, tests.adapted, tests.data.organizations
    stack = StackedAdapters.load(config.tiny, adapted.space.spec, Place.of(config.compute))
    recipe = DpRecipe(rounds, config.steps, config.batch, config.clip, config.rate)
    found: dict[int, Figures] = {}
    for size in sorted({len(organization.train) for organization in organizations}):
        numbers = [number for number, one in enumerate(organizations) if len(one.train) == size]
        every = tests.encoded([row for number in numbers for row in organizations[number].train])
        sigma = noise_multiplier(config.epsilon, config.delta, config.batch / size, config.rounds * config.steps)
        alone, sigmas = list(range(len(numbers))), [sigma] * len(numbers)
        updates = dp_fine_tune_stacked(stack, every, alone, sigmas, recipe, [config.seed, 0x414C4F4E])
        for number, update in zip(numbers, updates[-1], strict=True):
            found[number] = tests.of(adapted.state_at(np.asarray(update.cpu().numpy(), dtype=np.float32)), number)
    return together([found[number] for number in range(len(organizations))])


def ceiling(tests: OrganizationTests, rounds: int) -> Figures:
    """The model tuned without DP on all organizations' rows together, seeing as many examples as the federation."""
    from gradtf_fl.training import fine_tune

    config, organizations = tests.config, tests.data.organizations
    rows = tests.encoded([row for organization in organizations for row in organization.train])
    set_adapter_state(tests.model, tests.adapted.initial)
    steps, batch = rounds * config.steps, config.batch * len(organizations)
    rate = HOUSE_RULES_CEILING_RATE if config.task.is_house_rules else config.provider.tuning_rate
    fine_tune(tests.model, rows, steps=steps, batch=batch, rate=rate, seed=config.seed)
    return tests.figures(adapter_state(tests.model))


def tiny_figures(
    config: SimulationConfig, data: FederationData, global_update: Vector, rounds: int, enter: Enter
) -> dict[str, Figures]:
    """tiny_base, tiny_tuned and tiny_global of each organization; ``rounds`` are the finished ones."""
    enter("evaluate TinyLM")
    tests = OrganizationTests(AdaptedModel.load(config.tiny, tiny_spec(config), Place.of(config.compute)), config, data)
    figures = {
        "tiny_base": tests.figures(tests.adapted.initial),
        "tiny_global": tests.figures(tests.adapted.state_at(global_update)),
    }
    enter("tune TinyLM alone")
    figures["tiny_tuned"] = tuned_alone(tests, rounds)
    return figures


def llm_figures(
    config: SimulationConfig,
    spec: AdapterSpec,
    data: FederationData,
    global_update: Vector,
    generated: State,
    enter: Enter,
) -> dict[str, Figures]:
    """llm_base, llm_generated and the controls of each organization; none without a Grad-Transformer."""
    from gradtf_fl.baselines import Controls, embedded_controls

    if config.transformer == NO_TRANSFORMER:
        return {}
    enter("evaluate LLM")
    tests = OrganizationTests(AdaptedModel.load(config.llm, spec, Place.of(config.compute)), config, data)
    figures = {"llm_base": tests.figures(tests.adapted.initial), "llm_generated": tests.figures(generated)}
    enter("evaluate controls")
    rivals = Controls.load(embedded_controls() if config.controls == "embedded" else Path(config.controls))
    updates = {
        "mean_update": rivals.mean_update(),
        "nearest_update": rivals.nearest(global_update),
        "ridge": rivals.ridge(global_update),
    }
    if not config.task.is_house_rules and config.provider.library.is_file():
        updates["task_library"] = from_library(TaskLibrary.load(config.provider.library), global_update)
    return figures | {name: tests.figures(tests.adapted.state_at(update)) for name, update in updates.items()}


def sum_error(config: SimulationConfig, folders: FederationFolders, record: RoundRecord, data: FederationData) -> float:
    """Largest coordinate difference between the decoded mean and the plain mean of the clipped updates in it.

    In group mode both are the combination of the groups' means.

    The organizations keep their plain updates in a simulation; nobody has both sides in a deployment.
    """
    from safetensors.numpy import load_file

    kept, weight = {}, {}
    for folder, organization in zip(folders.organizations, data.organizations, strict=True):
        path = folder / ROUNDS / str(record.round) / OWN_UPDATE
        if path.exists():
            key = Identity.load(folder / IDENTITY_KEY).public.hex()
            kept[key] = load_file(path)["update"].astype(np.float64).reshape(-1)
            weight[key] = example_weight(len(organization.train)) if config.weight_rule == "examples" else 1.0
    sums = [
        SecureSum(
            np.average(
                [kept[key].astype(np.float64).reshape(-1) for key in keys],
                axis=0,
                weights=[weight[key] for key in keys],
            ),
            len(keys),
            len(keys),
        )
        for keys in record.sums or (record.included,)
    ]
    plain = combine_groups(sums, config.combine)
    decoded = load_file(folders.out / ROUNDS / str(record.round) / GLOBAL_UPDATE)["mean"]
    return float(np.abs(decoded.reshape(-1) - plain).max())
