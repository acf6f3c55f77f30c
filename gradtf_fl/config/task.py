"""``[task]``: which rows a federation is about, how they are scored, and how they are shared out in a simulation."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from gradtf_fl.config.base import Count, Section, Seed
from gradtf_fl.config.rows import RowFormat

Rules = Literal["same", "mixed", "unseen"]
Metric = Literal["auto", "exact_match", "rouge1", "loss"]
Partition = Literal["iid", "dirichlet", "shards", "pathological", "sizes", "natural"]
HOUSE_RULES = "house-rules"
HOUSE_RULES_ANSWER_TOKENS = 2  # two digits; here, because the simulation's plan is made without torch

Names = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(strict=False, min_length=1),
]
"""One text or a list of them."""


def _one_group(pattern: str | None) -> str | None:
    if pattern is None:
        return None
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError(f"has {groups} groups; one (...) must mark the answer")
    return pattern


AnswerPattern = Annotated[str | None, AfterValidator(_one_group)]


class TaskSection(RowFormat):
    """``[task]``: the rows, what is public of them, and how an answer is scored.

    Attributes:
        source: where the rows are: house-rules (embedded), a folder with train and test files, a file of rows or of
            plain text, a task's TOML file, one of the paper's data sets (gsm8k, ...) or a hub id; several make a
            federation of several tasks.
        rules: of house-rules: same (one public rule for all), mixed (three) or unseen (a held-out one).
        public: share of the rows that the provider may see; no text is on both sides.
        split_seed: of the split into public and private rows, and of what is put aside for tests. Whoever prepared a
            Grad-Transformer has seen the public rows of this split, so it does not change with the seed of a run.
        group: fields of a row; rows that are equal in them stay on one side (default: rows with one prompt; of persons,
            their field, privacy.unit).
        metric: exact_match or rouge1 of generated answers, loss (nats a character), or auto: what the task names.
        answer_pattern: regular expression whose group is the answer in a generated text (default: its first line).
        max_new_tokens: tokens of a generated answer.
    """

    source: Names = (HOUSE_RULES,)
    rules: Rules = "same"
    public: Annotated[float, Field(gt=0, lt=1)] = 0.5
    split_seed: Seed = 0
    group: Annotated[tuple[str, ...], Field(strict=False)] = ()
    metric: Metric = "auto"
    answer_pattern: AnswerPattern = None
    max_new_tokens: Count = 128

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.is_house_rules and len(self.source) > 1:
            raise ValueError(f"{HOUSE_RULES} can't be one of several sources")
        if len(set(self.source)) < len(self.source):
            twice = sorted({source for source in self.source if self.source.count(source) > 1})
            raise ValueError(f"source names {', '.join(twice)} twice")
        return self

    @property
    def is_house_rules(self) -> bool:
        """Whether the rows are the embedded benchmark's, which are drawn and not read."""
        return HOUSE_RULES in self.source


class SharingOut(Section):
    """How a simulation shares the private rows out among the organizations.

    Attributes:
        partition: iid (at random), dirichlet (mixtures of labels), shards (sorted by label, some pieces each),
            pathological (some labels each), sizes (at random, by the shares in sizes) or natural (one organization for
            each value of by).
        alpha: of dirichlet: the smaller, the more one label rules.
        by: field of a row that is its label (default: which source it is from).
        labels_each: of shards and pathological: pieces or labels of an organization.
        sizes: of sizes: each organization's share of the rows.
        rows: rows of each organization; for tasks other than house-rules the most that are used, 0 for all.
        test_rows: test rows of each organization, likewise.
        test: share of an organization's rows that is put aside for scoring, where the source has no test file.
    """

    partition: Partition = "iid"
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 0.5
    by: str | None = None
    labels_each: Annotated[int, Field(ge=1, le=10_000)] = 2
    sizes: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)] = ()
    rows: Annotated[int, Field(ge=0, le=10_000_000)] = 1024
    test_rows: Annotated[int, Field(ge=0, le=1_000_000)] = 256
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
