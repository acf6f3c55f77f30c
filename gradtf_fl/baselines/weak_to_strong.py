"""Weak-to-strong distillation: the LLM is tuned on answers that a tuned TinyLM wrote.

`HalfSplit` is the paper's setting (appendix C.2): the TinyLM is tuned on one half of an organization's rows and labels
the other half's prompts, which the LLM's trainer has to see: private data leaves. `PublicPrompts` labels prompts that
anybody may read with the TinyLM update that was released anyway: post-processing, so no row leaves and a DP update's
epsilon stands as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gradtf_fl.baselines.decoding import Decoding, continue_prompts
from gradtf_fl.baselines.distillation import Teacher, distil_stacked
from gradtf_fl.baselines.interface import Case, Outcome, Pair, outcome_of_updates
from gradtf_fl.baselines.losses import Objective
from gradtf_fl.baselines.vocabulary import logits_width, require_one_vocabulary, shared_width, vocabulary_problems
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Row, TokenRows, encode_rows
from gradtf_fl.training import PlainRecipe, fine_tune_stacked

Labels = Literal["auto", "hard", "soft"]
"""Hard: the weak answer as text, so tokenizers may differ. Soft: the weak model's distribution at each of its tokens;
needs one vocabulary. Auto: soft where that is possible (f_w in loss (47) is a distribution)."""


@dataclass(frozen=True)
class HalfSplit:
    """W2S, Conf or VisSup, by its objective, on the organizations' own rows.

    Attributes:
        tiny_recipe, llm_recipe: how both are tuned; the LLM's should be the ceiling's.
        decoding: how the weak model answers; greedy as the paper has it.
    """

    name: str
    source: str
    objective: Objective
    tiny_recipe: PlainRecipe
    llm_recipe: PlainRecipe
    decoding: Decoding
    labels: Labels = "auto"
    private_rows_leave: bool = True

    def run(self, pair: Pair, case: Case) -> Outcome:
        """Tune K TinyLMs on their first halves (shuffled by seed), label the second halves, tune K LLM adapters.

        Raises ConfigError without private rows, with fewer than two each, or for soft labels with two vocabularies.
        """
        first, second = [], []
        for k, rows in enumerate(case.private_rows()):
            if len(rows) < 2:
                raise ConfigError(f"{self.name}: a half split needs two rows, an organization has {len(rows)}")
            order = np.random.default_rng([case.seed, 0x48414C46, k]).permutation(len(rows))
            first.append([rows[i] for i in order[: len(rows) // 2]])
            second.append([rows[i].prompt for i in order[len(rows) // 2 :]])
        tokens = encode_rows(list(chain.from_iterable(first)), pair.tiny.tokenizer, pair.tiny.max_tokens)
        count, recipe = case.organizations, self.tiny_recipe
        seeds = [[case.seed, 0x5745414B, k] for k in range(count)]
        weak = fine_tune_stacked(pair.tiny, tokens, count, recipe, seeds, [recipe.steps])[0]
        return distil(pair, weak, second, self.objective, self.llm_recipe, self.decoding, self.labels, case.seed)


@dataclass(frozen=True)
class PublicPrompts:
    """W2S (or another objective) on public prompts, labelled by the TinyLMs as they reached the provider."""

    objective: Objective
    llm_recipe: PlainRecipe
    decoding: Decoding
    labels: Labels = "auto"
    name: str = "public-w2s"
    source: str = "Burns et al. 2024, on public prompts: post-processing of the TinyLM update, no further epsilon"
    private_rows_leave: bool = False

    def run(self, pair: Pair, case: Case) -> Outcome:
        """Label, then tune K LLM adapters; ConfigError without public prompts."""
        if not case.public_prompts:
            raise ConfigError(f"{self.name} needs public prompts, and the case has none")
        prompts = [case.public_prompts] * case.organizations
        return distil(
            pair, case.updates, prompts, self.objective, self.llm_recipe, self.decoding, self.labels, case.seed
        )


def distil(
    pair: Pair,
    weak: Tensor,
    prompts: Sequence[Sequence[str]],
    objective: Objective,
    recipe: PlainRecipe,
    decoding: Decoding,
    labels: Labels,
    seed: int,
) -> Outcome:
    """Tune K LLM adapters on what K TinyLM updates ``weak`` [K, L1, n1] answer to ``prompts`` [K][R]."""
    soft = _soft_labels(pair, labels)
    theta = pair.tiny.initial + weak
    answers = continue_prompts(pair.tiny, theta, prompts, decoding, [seed, 0x4C41424C])
    labelled, shares = [], []
    for asked, answered in zip(prompts, answers, strict=True):
        rows = [Row(p, a) for p, a in zip(asked, answered, strict=True) if a]
        labelled.append(rows)
        shares.append(len(rows) / len(asked))
    notes = {"soft_labels": float(soft), "answered_share": float(np.mean(shares))}
    teacher = _teacher(pair, theta) if soft else None
    updates = tune_on_written_rows(pair, labelled, objective, recipe, seed, teacher)
    return outcome_of_updates(pair, updates, notes)


def tune_on_written_rows(
    pair: Pair,
    written: Sequence[Sequence[Row]],
    objective: Objective,
    recipe: PlainRecipe,
    seed: int,
    teacher: Teacher | None = None,
) -> Tensor:
    """LLM updates [K, L2, n2] from rows that TinyLMs wrote, ``written`` [K][any number].

    A stack needs equally many rows each, so shorter sets are repeated. An organization whose TinyLM wrote no usable row
    keeps the LLM as it is (update 0): that is what its provider would have to do.
    """
    most = max(map(len, written))
    updates = torch.zeros(len(written), *pair.llm.initial.shape)
    if most == 0:
        return updates
    # an organization without rows is trained on another's and then put back to 0, so that soft targets stay aligned
    filler = max(written, key=len)
    rows = [row for own in written for row in _repeated(own or filler, most)]
    seeds = [[seed, 0x5354524F, k] for k in range(len(written))]
    room = pair.llm.max_tokens if teacher is None else min(pair.tiny.max_tokens, pair.llm.max_tokens)
    tokens = encode_rows(rows, pair.llm.tokenizer, room)
    trained = distil_stacked(pair.llm, tokens, len(written), objective, recipe, seeds, teacher)
    for k, own in enumerate(written):
        if own:
            updates[k] = trained[k]
    return updates


def _repeated(rows: Sequence[Row], count: int) -> list[Row]:
    return [rows[i % len(rows)] for i in range(count)]


def _soft_labels(pair: Pair, labels: Labels) -> bool:
    """Whether soft labels are used; ConfigError where they are asked for and can't be had."""
    if labels == "soft":
        require_one_vocabulary(pair, "soft labels")
    return labels == "soft" or (labels == "auto" and not vocabulary_problems(pair))


def _teacher(pair: Pair, theta: Tensor) -> Teacher:
    """The tuned TinyLMs' distributions over the LLM's columns; padding columns get probability 0."""
    width = shared_width(pair)
    columns = logits_width(pair.llm)

    def teacher(rows: TokenRows) -> Tensor:
        logits = pair.tiny.answer_logits(theta, rows)[..., :width].float()
        shares = torch.softmax(logits, dim=-1)
        return torch.nn.functional.pad(shares, (0, columns - width))

    return teacher
