"""DP synthetic text: the tuned TinyLM writes rows, prompt and answer, and the LLM is tuned on them.

What a privacy engineer tries first. Everything after the TinyLM update is post-processing: rows sampled from a DP
update, and an LLM tuned on any number of them, cost no further epsilon. A TinyLM that was tuned on answers alone never
learned to write prompts; `with_prompt_loss` makes rows on which it does (the update is then another DP release, with a
charge of its own if the answer-only update is released too). `Case.text_updates` carries such updates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from gradtf_fl.baselines.decoding import Decoding, continuations
from gradtf_fl.baselines.interface import Case, Outcome, Pair, outcome_of_updates
from gradtf_fl.baselines.losses import WeakLoss
from gradtf_fl.baselines.weak_to_strong import tune_on_written_rows
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import IGNORED, Generated, Row, TokenRows, WrittenRows
from gradtf_fl.training import PlainRecipe


@dataclass(frozen=True)
class RowShape:
    """How a task's rows begin and how text becomes a row again; both are public.

    Attributes:
        start: text that every row begins with (may be empty if the tokenizer has a begin-of-text token).
        pattern: regular expression with groups ``prompt`` and ``answer``, matched from the start of the whole text;
            what follows the match is dropped.
    """

    start: str
    pattern: str

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise ConfigError(f"row shape: pattern {self.pattern!r} is not a regular expression ({error})") from error
        if not {"prompt", "answer"} <= groups.keys():
            raise ConfigError(f"row shape: pattern {self.pattern!r} needs the groups prompt and answer")

    def parse(self, text: str) -> Row | None:
        """The row that ``text`` begins with; None when it is none or its answer is empty."""
        found = re.match(self.pattern, text, re.DOTALL)
        return Row(found["prompt"], found["answer"]) if found and found["answer"] else None

    def is_all_of(self, text: str) -> bool:
        """Whether nothing follows the row that ``text`` begins with."""
        found = re.match(self.pattern, text, re.DOTALL)
        return found is not None and found.end() == len(text)


HOUSE_RULES_ROWS = RowShape("[_][_][_]", r"(?P<prompt>(?:\[[_a-m]\]){3}\d\d\?\d\d=)(?P<answer>\d\d)")


def with_prompt_loss(rows: TokenRows) -> TokenRows:
    """The same rows with a label at every real token, prompt included: what a TinyLM that writes rows is tuned on."""
    labels = rows.input_ids.masked_fill(rows.attention_mask == 0, IGNORED)
    return TokenRows(rows.input_ids, rows.attention_mask, labels)


@dataclass(frozen=True)
class SyntheticText:
    """Sample rows from the tuned TinyLM, tune the LLM on them; a text that ends where its row does ended the row.

    Attributes:
        shape: how rows begin and are recognised; texts that are no row are dropped and counted.
        rows: texts drawn for each organization.
        decoding: sampling; ``temperature`` 1 draws from the TinyLM's own distribution.
        whole_rows: use `Case.text_updates` (tuned on prompt and answer) instead of `Case.updates`.
    """

    shape: RowShape
    llm_recipe: PlainRecipe
    rows: int = 1024
    decoding: Decoding = Decoding(max_new_tokens=64, temperature=1.0)
    whole_rows: bool = False
    name: str = "dp-synthetic-text"
    source: str = "post-processing of the TinyLM update, no further epsilon"
    private_rows_leave: bool = False

    def run(self, pair: Pair, case: Case) -> Outcome:
        """LLM updates and, in the notes, the shares of texts that were rows and of rows that differ.

        Raises ConfigError when text updates are asked for and the case has none.
        """
        updates = case.text_updates if self.whole_rows else case.updates
        if updates is None:
            raise ConfigError(f"{self.name}: the case has no TinyLM updates tuned on whole rows")
        prompts = [[self.shape.start] * self.rows] * case.organizations
        theta = pair.tiny.initial + updates
        texts = continuations(pair.tiny, theta, prompts, self.decoding, [case.seed, 0x53594E54])
        parsed = [[found for one in own if (found := self._parse(one))] for own in texts]
        rows = [[row for row, _ in own] for own in parsed]
        notes = {
            "row_share": float(np.mean([len(own) / self.rows for own in rows])),
            "distinct_share": float(np.mean([len(set(own)) / max(1, len(own)) for own in rows])),
        }
        written = [WrittenRows.of(own, pair.llm.tokenizer) for own in parsed]
        updates = tune_on_written_rows(pair, written, WeakLoss(), self.llm_recipe, case.seed)
        return outcome_of_updates(pair, updates, notes)

    def _parse(self, one: Generated) -> tuple[Row, bool] | None:
        """The row that a text begins with, and whether the TinyLM ended it there."""
        text = self.shape.start + one.text
        row = self.shape.parse(text)
        return None if row is None else (row, one.ended and self.shape.is_all_of(text))
