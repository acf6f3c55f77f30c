"""Weak-to-strong distillation: the LLM is tuned on answers that a tuned TinyLM wrote.

`HalfSplit` is the paper's setting (appendix C.2): the TinyLM is tuned on one half of an organization's rows and labels
the other half's prompts, which the LLM's trainer has to see: private data leaves. `PublicPrompts` labels prompts that
anybody may read with the TinyLM update that was released anyway: post-processing, so no row leaves and a DP update's
epsilon stands as it is. Where a TinyLM ends most of its answers, the LLM learns to end them (`tasks.WrittenRows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gradtf_fl.baselines.decoding import Decoding, continuations
from gradtf_fl.baselines.distillation import Teacher, distil_stacked
from gradtf_fl.baselines.interface import Case, Outcome, Pair, outcome_of_updates
from gradtf_fl.baselines.losses import Objective
from gradtf_fl.baselines.vocabulary import logits_width, require_one_vocabulary, shared_width, vocabulary_problems
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Row, TokenRows, WrittenRows, encode_rows, encode_written, end_token
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
        end: the weak model is trained to end its answers.
    """

    name: str
    source: str
    objective: Objective
    tiny_recipe: PlainRecipe
    llm_recipe: PlainRecipe
    decoding: Decoding
    labels: Labels = "auto"
    private_rows_leave: bool = True
    end: bool = False

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
        halves = list(chain.from_iterable(first))
        tokens = encode_rows(halves, pair.tiny.tokenizer, pair.tiny.max_tokens, end=self.end)
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
    answers = continuations(pair.tiny, theta, prompts, decoding, [seed, 0x4C41424C])
    labelled, shares = [], []
    for asked, answered in zip(prompts, answers, strict=True):
        rows = [(Row(p, a.text), a.ended) for p, a in zip(asked, answered, strict=True) if a.text]
        labelled.append(WrittenRows.of(rows, pair.llm.tokenizer))
        shares.append(len(rows) / len(asked))
    notes = {"soft_labels": float(soft), "answered_share": float(np.mean(shares))}
    teacher = _teacher(pair, theta) if soft else None
    updates = tune_on_written_rows(pair, labelled, objective, recipe, seed, teacher)
    return outcome_of_updates(pair, updates, notes)


def tune_on_written_rows(
    pair: Pair,
    written: Sequence[WrittenRows],
    objective: Objective,
    recipe: PlainRecipe,
    seed: int,
    teacher: Teacher | None = None,
) -> Tensor:
    """LLM updates [K, L2, n2] from rows that TinyLMs wrote, ``written`` [K], any number each.

    A stack needs equally many rows each, so shorter sets are repeated. An organization whose TinyLM wrote no usable row
    keeps the LLM as it is (update 0): that is what its provider would have to do.
    """
    most = max(len(own.rows) for own in written)
    updates = torch.zeros(len(written), *pair.llm.initial.shape)
    if most == 0:
        return updates
    # an organization without rows is trained on another's and then put back to 0, so that soft targets stay aligned
    filler = max(written, key=lambda own: len(own.rows))
    repeated = [_repeated(own if own.rows else filler, most) for own in written]
    seeds = [[seed, 0x5354524F, k] for k in range(len(written))]
    room = pair.llm.max_tokens if teacher is None else min(pair.tiny.max_tokens, pair.llm.max_tokens)
    tokens = encode_written(repeated, pair.llm.tokenizer, room)
    trained = distil_stacked(pair.llm, tokens, len(written), objective, recipe, seeds, teacher)
    for k, own in enumerate(written):
        if own.rows:
            updates[k] = trained[k]
    return updates


def _repeated(written: WrittenRows, count: int) -> WrittenRows:
    return replace(written, rows=[written.rows[i % len(written.rows)] for i in range(count)])


def _soft_labels(pair: Pair, labels: Labels) -> bool:
    """Whether soft labels are used; ConfigError where they are asked for and can't be had."""
    if labels == "soft":
        require_one_vocabulary(pair, "soft labels")
    return labels == "soft" or (labels == "auto" and not vocabulary_problems(pair))


def _teacher(pair: Pair, theta: Tensor) -> Teacher:
    """The tuned TinyLMs' distributions over the LLM's columns; padding columns get probability 0, and the LLM's end
    what the TinyLM gives to its own, where the two end answers by different tokens."""
    width = shared_width(pair)
    columns = logits_width(pair.llm)
    own, wanted = end_token(pair.tiny.tokenizer), end_token(pair.llm.tokenizer)

    def teacher(rows: TokenRows) -> Tensor:
        logits = pair.tiny.answer_logits(theta, rows)[..., :width].float()
        shares = torch.softmax(logits, dim=-1)
        if own != wanted and own is not None and wanted is not None:
            shares[..., wanted] += shares[..., own]
            shares[..., own] = 0
        return torch.nn.functional.pad(shares, (0, columns - width))

    return teacher
