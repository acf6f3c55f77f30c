"""One interface for everything that a user would pick instead of the Grad-Transformer.

A `Baseline` turns what reached the provider (a `Case`) into an `Outcome`: an LLM update for each organization, or,
for proxy tuning, logits without an update. `run_baseline` hides private rows from every baseline that does not say
that they leave the organization, so the flag in a table is what the code could do, not what its author remembers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.baselines.scoring import AnswerLogits, Scores, equal_counts, score_rows
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Row, TokenRows
from gradtf_fl.training import StackedAdapters


@dataclass(frozen=True)
class Pair:
    """The TinyLM that organizations tune and the LLM that the provider owns.

    >>> from gradtf_fl import AdapterSpec, Pair
    >>> pair = Pair.load("embedded:tiny", "embedded:llm", AdapterSpec())
    >>> pair.tiny.layout.blocks < pair.llm.layout.blocks
    True
    """

    tiny: StackedAdapters
    llm: StackedAdapters

    @classmethod
    def load(cls, tiny: str, llm: str, spec: AdapterSpec) -> Pair:
        """Both models by name, with adapters of one spec; ConfigError when one can't be had."""
        return cls(StackedAdapters.load(tiny, spec), StackedAdapters.load(llm, spec))


@dataclass(frozen=True)
class Case:
    """K organizations, as a comparison sees them.

    >>> import torch
    >>> from gradtf_fl import Case
    >>> Case(torch.zeros(3, 2, 8), seed=0).organizations  # TinyLM updates of 2 blocks of 8
    3

    Attributes:
        updates: float32 [K, L1, n1], TinyLM updates as they reached the provider (plain, DP or averaged).
        seed: first part of every seed that a baseline derives.
        private: the organizations' rows, equally many each; None where they did not leave.
        public_prompts: prompts that anybody may read; no answers.
        text_updates: as ``updates``, but tuned with the loss on prompt AND answer: what a TinyLM needs to write whole
            rows. None where organizations released no such update.
        first_updates: as ``updates``, after the first of several rounds; None where there was one only.
    """

    updates: Tensor
    seed: int
    private: tuple[tuple[Row, ...], ...] | None = None
    public_prompts: tuple[str, ...] | None = None
    text_updates: Tensor | None = None
    first_updates: Tensor | None = None

    @property
    def organizations(self) -> int:
        """K."""
        return int(self.updates.shape[0])

    def private_rows(self) -> tuple[tuple[Row, ...], ...]:
        """Private rows, R of each of K organizations; ConfigError when they did not leave or counts differ."""
        if self.private is None:
            raise ConfigError("this baseline needs private rows, and none left the organizations")
        if len(self.private) != self.organizations:
            raise ConfigError(f"private rows of {len(self.private)} organizations, updates of {self.organizations}")
        equal_counts(self.private, "private rows")
        return self.private


@dataclass(frozen=True)
class Outcome:
    """What a baseline hands over.

    Attributes:
        updates: float32 [K, L2, n2] LLM update vectors; None when there is no update (proxy tuning).
        logits: the tuned LLM's (or the combination's) logits for rows of all K organizations.
        tokenizer: the LLM's.
        max_tokens: a longer row loses the start of its prompt.
        notes: measured by-products, e.g. Cross-LoRA's truncation error.
    """

    updates: Tensor | None
    logits: AnswerLogits
    tokenizer: Any
    max_tokens: int
    notes: Mapping[str, float] = field(default_factory=dict)

    def score(self, test: Sequence[Sequence[Row]]) -> Scores:
        """Scores of K organizations, each on its own rows ``test[k]``."""
        return score_rows(self.logits, test, self.tokenizer, self.max_tokens)


def outcome_of_updates(pair: Pair, updates: Tensor, notes: Mapping[str, float] | None = None) -> Outcome:
    """The LLM with ``updates`` [K, L2, n2] added to the shared initial adapter."""
    theta = pair.llm.initial + updates

    def logits(rows: TokenRows) -> Tensor:
        return pair.llm.answer_logits(theta, rows)

    return Outcome(updates, logits, pair.llm.tokenizer, pair.llm.max_tokens, dict(notes or {}))


class Baseline(Protocol):
    """Anything that a table of comparisons loops over."""

    @property
    def name(self) -> str:
        """Row name in tables."""

    @property
    def private_rows_leave(self) -> bool:
        """Whether rows (prompts count) leave the organization."""

    @property
    def source(self) -> str:
        """Where the method comes from."""

    def run(self, pair: Pair, case: Case) -> Outcome:
        """Make the LLM's updates; ConfigError when the case or the pair does not fit the method."""


def run_baseline(baseline: Baseline, pair: Pair, case: Case) -> Outcome:
    """Run with private rows taken out of the case, unless the baseline states that they leave.

    >>> import torch
    >>> from gradtf_fl import AdapterSpec, Case, Pair, ProxyTuning, run_baseline
    >>> pair = Pair.load("embedded:tiny", "embedded:llm", AdapterSpec())
    >>> case = Case(torch.zeros(2, *pair.tiny.initial.shape), seed=0)  # two organizations that did not train
    >>> run_baseline(ProxyTuning(), pair, case).updates is None  # proxy tuning makes logits, no LLM update
    True
    """
    expected = tuple(pair.tiny.initial.shape)
    if tuple(case.updates.shape[1:]) != expected:
        raise ConfigError(f"TinyLM updates are {tuple(case.updates.shape[1:])}, this pair's are {expected}")
    return baseline.run(pair, case if baseline.private_rows_leave else replace(case, private=None))
