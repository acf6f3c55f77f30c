"""Curation for any text tasks and any two models: other depths, widths and tokenizers.

A shadow set's rows are text. Each model is fine-tuned on them in its own tokens; the store keeps the LLM's, for the
functional objective. "plain", "sgld" and "dp" shards hold TinyLM updates by one learning mechanism each, "pairs"
those of both models, without DP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch

from gradtf_fl.adapters import AdapterSpec, Place
from gradtf_fl.config import Mechanism, TaskSection
from gradtf_fl.curation.kept_models import Encoder, kept_encoder, kept_stack
from gradtf_fl.curation.shadow import EPSILONS
from gradtf_fl.curation.shards import ShardRows, dp_shard, packed, plain_shard
from gradtf_fl.curation.text_shadow import TextGroup, draw_rows, encode_causal, mixture, single
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Row, TaskRows, count_encoded, longest_row, read_task_rows, source_name
from gradtf_fl.training import DpRecipe, PlainRecipe, StepsDone

T = TypeVar("T")
CHECKED_ROWS = 500
"""Public rows of each task that are encoded beforehand to see whether they fit."""
MOST_CUT = 0.01
"""Share of them that may lose a part of their answer."""


@dataclass(frozen=True)
class TaskCuration:
    """What is curated. Per task: ``shadow_sets`` TinyLM shadow sets and ``pair_sets`` sets of both models.

    Attributes:
        sources: which rows, see `read_task_rows`; only their public part is used.
        task: how they are read; its own ``source`` is not looked at.
        rows: rows in a shadow set.
        mixtures: plain TinyLM shadow sets on mixtures of two or three tasks, in all.
        mechanisms: how the TinyLM learns on a task's shadow sets, which they share evenly: without DP, by stochastic
            gradient Langevin dynamics, or under DP-SGD at epsilons from .5 to 8 in turn.
        stack: shadow sets fine-tuned at once.
        last_k: LLM updates of this many last steps are kept too.
        plain, llm_recipe, dp: recipes; ``snapshots`` are steps of ``plain``.
        spec: of both models' adapters.
    """

    tiny: str
    llm: str
    sources: tuple[str, ...]
    task: TaskSection = TaskSection(format="text")
    seed: int = 0
    rows: int = 256
    shadow_sets: int = 16
    pair_sets: int = 4
    mixtures: int = 0
    mechanisms: tuple[Mechanism, ...] = ("adamw",)
    stack: int = 8
    last_k: int = 1
    plain: PlainRecipe = PlainRecipe(steps=60, batch=8, rate=5e-3)
    llm_recipe: PlainRecipe = PlainRecipe(steps=60, batch=8, rate=5e-3)
    dp: DpRecipe = DpRecipe(rounds=1, steps=60, batch=32, rate=5e-3)
    snapshots: tuple[int, ...] = (15, 30, 45, 60)
    spec: AdapterSpec = AdapterSpec()

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the sources are called."""
        return tuple(map(source_name, self.sources))

    def header(self) -> dict[str, Any]:
        """Settings and the rows' checksums. ConfigError with everything that is missing, too small or too long."""
        problems: list[str] = []
        encoders = _each(kept_encoder, (self.tiny, self.llm), problems)
        found = _each(self.task_rows, self.tasks, problems)
        problems += [f"task {name}: named twice" for name in found if self.tasks.count(name) > 1]
        problems += [
            f"task {name}: {len(task.public)} public rows, a shadow set has {self.rows}; "
            "make shadow sets smaller ([provider] shadow_rows, curate --rows)"
            for name, task in found.items()
            if len(task.public) < self.rows
        ]
        if not problems:
            problems = [text for name, encoder in encoders.items() for text in self._not_fitting(name, encoder, found)]
        if problems:
            raise ConfigError(problems)
        return {"config": self.settings(), "rows_sha256": {name: task.sha256 for name, task in found.items()}}

    def settings(self) -> dict[str, Any]:
        """All settings as JSON, with the names of the sources in place of where they are."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        recipes = (PlainRecipe, DpRecipe, AdapterSpec)
        plain = {key: asdict(value) if isinstance(value, recipes) else value for key, value in values.items()}
        how = self.task.model_dump(mode="json", exclude={"source", "rules"})
        return {key: value for key, value in plain.items() if key != "sources"} | {"tasks": self.tasks, "task": how}

    def task_rows(self, name: str) -> TaskRows:
        """All parts of one task's rows."""
        return read_task_rows(self.sources[self.tasks.index(name)], self.task)

    def plan(self) -> list[tuple[str, list[TextGroup]]]:
        """All shards and the federations in them, from the seed alone."""
        rng = np.random.default_rng([self.seed, 1])
        groups: dict[str, list[TextGroup]] = {kind: [] for kind in ("pairs", "plain", "sgld", "dp")}
        for task in self.tasks:
            groups["pairs"] += [single(task)] * self.pair_sets
            for number in range(self.shadow_sets):
                mechanism = self.mechanisms[number % len(self.mechanisms)]
                turn = number // len(self.mechanisms)
                epsilon = EPSILONS[turn % len(EPSILONS)] if mechanism == "dp-sgd" else None
                groups[KIND_OF[mechanism]].append(single(task, epsilon))
        groups["plain"] += [mixture(rng, self.tasks) for _ in range(self.mixtures)]
        shards = []
        for kind, members in groups.items():
            shards += packed(kind, [members[i] for i in rng.permutation(len(members))], self.stack)
        return shards

    def make_shard(self, number: int, progress: StepsDone, place: Place | None) -> dict[str, torch.Tensor]:
        """Tensors of shard ``number`` of the plan, from the seed and the files alone."""
        from gradtf_fl.curation.langevin import langevin_shard

        name, groups = self.plan()[number]
        kind, seed = name.rpartition("-")[0], [self.seed, 7, number]
        rng = np.random.default_rng(seed)
        public = {task: self.task_rows(task) for group in groups for task in group.tasks}
        texts = [row for group in groups for member in draw_rows(rng, group, self.rows, public) for row in member]
        tiny, encoders = kept_stack(self.tiny, self.spec, place), map(kept_encoder, (self.tiny, self.llm))
        rows = ShardRows(*(encode_causal(texts, one.tokenizer, self.room(one), end=self.end) for one in encoders))
        if kind == "dp":
            return dp_shard(self, tiny, rows, groups, seed, progress)
        if kind == "sgld":
            return langevin_shard(self, tiny, rows, groups, seed, progress)
        llm = kept_stack(self.llm, self.spec, place) if kind == "pairs" else None
        return plain_shard(self, tiny, llm, rows, groups, seed, progress)

    @property
    def end(self) -> bool:
        """Whether an answer's end is trained."""
        return self.task.end and all(self.task_rows(name).task is not None for name in self.tasks)

    def room(self, model: Any) -> int:
        """Tokens of a row at most, for a model (what has its ``config``)."""
        return longest_row(model, self.task.max_tokens)

    def _not_fitting(self, model_name: str, encoder: Encoder, found: dict[str, TaskRows]) -> list[str]:
        """Tasks whose rows a model can't be scored on, or lose a part of their answer in its context."""
        room = self.room(encoder) - 1
        problems = []
        for name, task in found.items():
            some = [example.row for example in task.public[:CHECKED_ROWS]]
            lost = count_encoded(some, encoder.tokenizer).unscorable
            if lost:
                problems.append(
                    f"task {name}: {lost} of {len(some)} rows have no token that {model_name} "
                    "is scored on: its tokenizer can't write their answers, or their prompt is empty and their answer "
                    "one token"
                )
                continue
            lengths = answer_lengths(some, encoder.tokenizer)
            if np.mean([length > room for length in lengths]) > MOST_CUT:
                way = "smaller --window" if self.task.format == "text" else "--window, which reads it as plain text,"
                problems.append(
                    f"task {name}: answers of up to {max(lengths)} tokens don't fit into the {room} that {model_name} "
                    f"has for them; give a {way} or another model"
                )
        return problems


KIND_OF: dict[Mechanism, str] = {"adamw": "plain", "sgld": "sgld", "dp-sgd": "dp"}


def answer_lengths(rows: Sequence[Row], tokenizer: Any) -> list[int]:
    """Tokens of each answer."""
    return [len(ids) for ids in tokenizer([row.answer for row in rows], add_special_tokens=False)["input_ids"]]


def _each(read: Callable[[str], T], names: Sequence[str], problems: list[str]) -> dict[str, T]:
    """What ``read`` gives for each name; the problems of names that it can't read are added to ``problems``."""
    found = {}
    for name in dict.fromkeys(names):
        try:
            found[name] = read(name)
        except ConfigError as error:
            problems += error.problems
    return found
