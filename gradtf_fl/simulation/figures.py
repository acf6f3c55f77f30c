"""What a simulated federation is measured against: floors, ceiling and controls, on private test rows.

Every base model is loaded once and carries one PEFT adapter whose values are exchanged for each figure; every
baseline is trained once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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
    IGNORED,
    LOGIT_BYTES,
    Example,
    FederationData,
    Row,
    TokenRows,
    answer_scores,
    encode_rows,
    federation_data,
    longest_row,
    score_task,
)
from gradtf_fl.transformer import TaskLibrary
from strategies import tiny_spec

if TYPE_CHECKING:
    import torch

    from gradtf_fl.flower import RoundRecord
    from gradtf_fl.training import StackedAdapters
    from strategies import WorkerPool

    State = Mapping[str, torch.Tensor]

Enter = Callable[[str], None]  # told the name of each stage as it begins

T = TypeVar("T")
TOGETHER = 16
"""Organizations that are scored, or tuned alone side by side, in one go: what bounds their memory."""
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

    def figures(self, states: Sequence[State], numbers: Sequence[int]) -> list[Figures]:
        """Figures of each adapter on the test rows of the organizations ``numbers``; rows are made and encoded once."""
        tests = [self.data.organizations[number].examples for number in numbers]
        rows = [encode_rows([e.row for e in one], self.adapted.tokenizer, self.max_tokens) for one in tests]
        return [together([self._of(state, *scored) for scored in zip(tests, rows, strict=True)]) for state in states]

    def of(self, state: State, number: int) -> Figures:
        """Figures of adapter ``state`` on the test rows of organization ``number`` alone."""
        return self.figures([state], [number])[0]

    def _of(self, state: State, test: Sequence[Example], rows: TokenRows) -> Figures:
        set_adapter_state(self.model, state)
        scores = answer_scores(self.model, rows)
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

    @cached_property
    def stack(self) -> StackedAdapters:
        """Adapters side by side over one frozen base, which is another copy than ``model``'s."""
        from gradtf_fl.training import StackedAdapters

        return StackedAdapters.load(self.config.tiny, self.adapted.space.spec, Place.of(self.config.compute))

    @property
    def max_tokens(self) -> int:
        """Tokens of a row at most."""
        return longest_row(self.model, self.config.task.max_tokens)


def together(parts: Sequence[Figures]) -> Figures:
    """Figures of several organizations as one."""
    return Figures(
        tuple(value for part in parts for value in part.score), tuple(value for part in parts for value in part.loss)
    )


def tuned_alone(tests: OrganizationTests, rounds: int, numbers: Sequence[int]) -> Figures:
    """TinyLM tuned on each of some organizations' own rows alone: the federation's DP-SGD without the others.

    Organizations with as many rows are trained side by side over one frozen base (each is a federation of one).
    """
    from gradtf_fl.privacy import noise_multiplier
    from gradtf_fl.training import DpRecipe, dp_fine_tune_stacked

    config, adapted = tests.config, tests.adapted
    organizations = {number: tests.data.organizations[number] for number in numbers}
    recipe = DpRecipe(rounds, config.steps, config.batch, config.clip, config.rate)
    found: dict[int, Figures] = {}
    purpose = [config.seed, 0x414C4F4E, *([numbers[0]] if numbers[0] else [])]  # of their own in each part
    for size in sorted({len(organization.train) for organization in organizations.values()}):
        alike = [number for number, one in organizations.items() if len(one.train) == size]
        every = tests.encoded([row for number in alike for row in organizations[number].train])
        sigma = noise_multiplier(config.epsilon, config.delta, config.batch / size, config.rounds * config.steps)
        alone, sigmas = list(range(len(alike))), [sigma] * len(alike)
        updates = dp_fine_tune_stacked(tests.stack, every, alone, sigmas, recipe, purpose)
        for number, update in zip(alike, updates[-1], strict=True):
            found[number] = tests.of(adapted.state_at(np.asarray(update.cpu().numpy(), dtype=np.float32)), number)
    return together([found[number] for number in numbers])


def ceiling(tests: OrganizationTests, rounds: int) -> Figures:
    """The model tuned without DP on all organizations' rows together, seeing as many examples as the federation."""
    from gradtf_fl.training import fine_tune

    config, organizations = tests.config, tests.data.organizations
    rows = joined([tests.encoded(organization.train) for organization in organizations])
    set_adapter_state(tests.model, tests.adapted.initial)
    steps, batch = rounds * config.steps, config.batch * len(organizations)
    rate = HOUSE_RULES_CEILING_RATE if config.task.is_house_rules else config.provider.tuning_rate
    vocabulary = tests.model.get_input_embeddings().weight.shape[0]
    bound = 4 * vocabulary * rows.input_ids.shape[1] * config.batch * TOGETHER  # float32 logits of this many batches
    fine_tune(
        tests.model,
        rows,
        steps=steps,
        batch=batch,
        rate=rate,
        seed=config.seed,
        logit_bytes=min(LOGIT_BYTES, bound),
    )
    tuned = adapter_state(tests.model)
    return together([tests.of(tuned, number) for number in range(len(organizations))])


@dataclass(frozen=True)
class Scorer:
    """Figures of all organizations, some of them at a time: in this process, or in those of a pool.

    How organizations are combined does not depend on the pool, so that figures don't either.

    Attributes:
        config: the simulation's.
        data: its rows, for this process.
        pool: None: this process alone.
    """

    config: SimulationConfig
    data: FederationData
    pool: WorkerPool | None = None
    _loaded: dict[tuple[str, AdapterSpec], OrganizationTests] = field(default_factory=dict)

    def scored(self, model: str, spec: AdapterSpec, states: Sequence[State]) -> list[Figures]:
        """Figures of each adapter in ``states``, of ``spec`` on the model called ``model``."""
        parts = self._parts(_scored_part, model, spec, [_plain(state) for state in states])
        return [together(figures) for figures in zip(*parts, strict=True)]

    def tuned_alone(self, model: str, spec: AdapterSpec, rounds: int) -> Figures:
        """As `tuned_alone`, of all organizations."""
        return together(self._parts(_alone_part, model, spec, rounds))

    def _parts(self, work: Callable[..., T], model: str, spec: AdapterSpec, *rest: object) -> list[T]:
        count = len(self.data.organizations)
        numbers = [range(first, min(count, first + TOGETHER)) for first in range(0, count, TOGETHER)]
        if self.pool is not None:
            found: list[T] = self.pool.each(
                _in_worker, [(work, self.config, model, spec, part, rest) for part in numbers]
            )
            return found
        if (model, spec) not in self._loaded:
            self._loaded.clear()  # one model at a time
            self._loaded[model, spec] = loaded_tests(self.config, self.data, model, spec)
        return [work(self._loaded[model, spec], part, *rest) for part in numbers]


def loaded_tests(config: SimulationConfig, data: FederationData, model: str, spec: AdapterSpec) -> OrganizationTests:
    """The tests of the model called ``model``, loaded."""
    return OrganizationTests(AdaptedModel.load(model, spec, Place.of(config.compute)), config, data)


def _in_worker(
    work: Callable[..., T],
    config: SimulationConfig,
    model: str,
    spec: AdapterSpec,
    numbers: range,
    rest: tuple[object, ...],
) -> T:
    """``work`` on the tests that this process keeps."""
    return work(_kept_tests(config.model_dump_json(), model, spec), numbers, *rest)


@lru_cache(maxsize=1)
def _kept_tests(config_json: str, model: str, spec: AdapterSpec) -> OrganizationTests:
    config = SimulationConfig.model_validate_json(config_json)
    data = federation_data(config.task, config, config.organizations, config.batch, config.seed, config.person)
    return loaded_tests(config, data, model, spec)


def _scored_part(tests: OrganizationTests, numbers: range, states: Sequence[Mapping[str, np.ndarray]]) -> list[Figures]:
    import torch

    return tests.figures([{name: torch.from_numpy(v) for name, v in state.items()} for state in states], numbers)


def _alone_part(tests: OrganizationTests, numbers: range, rounds: int) -> Figures:
    return tuned_alone(tests, rounds, numbers)


def _plain(state: State) -> dict[str, np.ndarray]:
    """An adapter's state as plain arrays, which another process can be sent."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}


def tiny_figures(scorer: Scorer, global_update: Vector, rounds: int, enter: Enter) -> dict[str, Figures]:
    """tiny_base, tiny_tuned and tiny_global of each organization; ``rounds`` are the finished ones."""
    enter("evaluate TinyLM")
    name, spec = scorer.config.tiny, tiny_spec(scorer.config)
    space = AdaptedModel.shapes(name, spec)
    base, tuned = scorer.scored(name, spec, [space.initial, space.state_at(global_update)])
    enter("tune TinyLM alone")
    alone = scorer.tuned_alone(name, spec, rounds)
    return {"tiny_base": base, "tiny_global": tuned, "tiny_tuned": alone}


def llm_figures(
    scorer: Scorer, spec: AdapterSpec, global_update: Vector, generated: State, enter: Enter
) -> dict[str, Figures]:
    """llm_base, llm_generated and the controls of each organization; none without a Grad-Transformer."""
    from gradtf_fl.baselines import Controls, embedded_controls

    config = scorer.config
    if config.transformer == NO_TRANSFORMER:
        return {}
    enter("evaluate LLM")
    space = AdaptedModel.shapes(config.llm, spec)
    base, made = scorer.scored(config.llm, spec, [space.initial, generated])
    enter("evaluate controls")
    rivals = Controls.load(embedded_controls() if config.controls == "embedded" else Path(config.controls))
    updates = {
        "mean_update": rivals.mean_update(),
        "nearest_update": rivals.nearest(global_update),
        "ridge": rivals.ridge(global_update),
    }
    if not config.task.is_house_rules and config.provider.library.is_file():
        updates["task_library"] = from_library(TaskLibrary.load(config.provider.library), global_update)
    controls = scorer.scored(config.llm, spec, [space.state_at(update) for update in updates.values()])
    return {"llm_base": base, "llm_generated": made, **dict(zip(updates, controls, strict=True))}


def joined(parts: Sequence[TokenRows]) -> TokenRows:
    """The rows of all ``parts`` as one, padded to the widest."""
    import torch

    width = max(part.input_ids.shape[1] for part in parts)

    def stacked(name: str, fill: int) -> torch.Tensor:
        tensors = [getattr(part, name) for part in parts]
        pad = torch.nn.functional.pad
        return torch.cat([pad(tensor, (0, width - tensor.shape[1]), value=fill) for tensor in tensors])

    return TokenRows(stacked("input_ids", 0), stacked("attention_mask", 0), stacked("labels", IGNORED))


def sum_error(config: SimulationConfig, folders: FederationFolders, record: RoundRecord, data: FederationData) -> float:
    """Largest coordinate difference between the decoded mean and the plain mean of the clipped updates in it.

    In group mode both are the combination of the groups' means.

    The organizations keep their plain updates in a simulation; nobody has both sides in a deployment.
    """
    from safetensors.numpy import load_file

    members = [frozenset(keys) for keys in record.sums or (record.included,)]
    totals: list[Any] = [0.0 for _ in members]  # one update in memory at a time
    weights = [0.0 for _ in members]
    for number, folder in enumerate(folders.organizations):
        path = folder / ROUNDS / str(record.round) / OWN_UPDATE
        if path.exists():
            key = Identity.load(folder / IDENTITY_KEY).public.hex()
            weight = 1.0
            if config.weight_rule == "examples":
                weight = example_weight(len(data.organizations[number].train))
            for place in (place for place, keys in enumerate(members) if key in keys):
                update = load_file(path)["update"].astype(np.float64).reshape(-1)
                totals[place], weights[place] = totals[place] + weight * update, weights[place] + weight
    sums = [
        SecureSum(total / weight, len(keys), len(keys))
        for total, weight, keys in zip(totals, weights, members, strict=True)
    ]
    plain = combine_groups(sums, config.combine)
    decoded = load_file(folders.out / ROUNDS / str(record.round) / GLOBAL_UPDATE)["mean"]
    return float(np.abs(decoded.reshape(-1) - plain).max())
