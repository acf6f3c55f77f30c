"""A model's score on a text task: greedy generation, then the metric's mean over rows; and loss per character."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gradtf_fl.tasks.answers import matches
from gradtf_fl.tasks.decoding import BATCH, PromptsDone, StopRule, context_length, decode, generate_greedily
from gradtf_fl.tasks.encoding import RowTokens, encode_rows
from gradtf_fl.tasks.forced import answer_scores
from gradtf_fl.tasks.rouge import rouge1, scoreable
from gradtf_fl.tasks.rows import IGNORED, Row
from gradtf_fl.tasks.text_tasks import Example, Metric, TextTask

FREE_TEXT_WORDS = 3
"""An answer of this many words is free text, which exact match says little about."""
HOME_ROWS, HOME_TOKENS, HOME_BATCH, HOME_SECONDS = 32, 64, 4, 20.0
"""Of `answer_rouge1`: most rows, most tokens of an answer, rows decoded together, when no further ones are begun."""


@dataclass(frozen=True)
class TextScore:
    """ROUGE-1 F of generated answers: the mean, in 0..1, and over how many rows."""

    value: float
    rows: int


@dataclass(frozen=True)
class TaskScore:
    """A metric's mean, and what it was taken over.

    Attributes:
        metric: ``exact_match`` or ``rouge1`` (F-measure).
        value: mean over rows, in 0..1.
        row_scores: one for each example, in order, each in 0..1.
        unanswered: rows whose generated text states no answer; they score 0.
        truncated: rows whose prompt lost its start to the model's context.
    """

    metric: Metric
    row_scores: tuple[float, ...]
    unanswered: int
    truncated: int

    @property
    def value(self) -> float:
        return fmean(self.row_scores)

    @property
    def rows(self) -> int:
        return len(self.row_scores)


def score_text(task: TextTask, text: str, references: Sequence[str]) -> float | None:
    """The metric of one generated text, in 0..1; None where it states no answer.

    Exact match: 1 if the final answer equals any reference. ROUGE-1: the mean of F-measures over the references.
    """
    answer = task.extract(text)
    if answer is None:
        return None
    if task.metric == "exact_match":
        return float(matches(answer, references, task.kind))
    return fmean(rouge1(reference, answer) for reference in references)


def score_task(
    model: Any,
    tokenizer: Any,
    task: TextTask,
    examples: Sequence[Example],
    max_new_tokens: int | None = None,
    batch: int = BATCH,
    progress: PromptsDone = lambda done, total: None,
) -> TaskScore:
    """Ask each row's question as it is trained, and score every example. Rows with one question share what is written.

    Args:
        examples: at least one.
        max_new_tokens: None takes the task's own.

    Raises:
        ConfigError: see `decoding.generate_greedily`.
    """
    asked = {example.row.answered(""): example.row for example in examples}
    limit = task.max_new_tokens if max_new_tokens is None else max_new_tokens
    made = generate_greedily(model, tokenizer, list(asked.values()), limit, task.finished, batch, progress)
    by_question = dict(zip(asked, made, strict=True))
    pairs = [(example, by_question[example.row.answered("")]) for example in examples]
    scores = [score_text(task, generated.text, example.references) for example, generated in pairs]
    return TaskScore(
        metric=task.metric,
        row_scores=tuple(score or 0.0 for score in scores),
        unanswered=sum(score is None for score in scores),
        truncated=sum(generated.dropped > 0 for _, generated in pairs),
    )


def loss_per_character(model: Any, tokenizer: Any, rows: Sequence[Row], max_tokens: int) -> float:
    """Nats of the answers' tokens over their characters, all rows together: comparable between tokenizers.

    Args:
        model: a causal LM of transformers; put into eval mode, and back.
        max_tokens: of a row, see `encode_rows`; an answer cut by it still counts all its characters.
    """
    scores = answer_scores(model, encode_rows(rows, tokenizer, max_tokens))
    return scores.nats / max(1, sum(len(row.answer) for row in rows))


def answer_rouge1(model: Any, tokenizer: Any, read: RowTokens, rows: int = HOME_ROWS) -> TextScore | None:
    """ROUGE-1 F of the answers that a model generates to a file's prompts, where most answers are free text.

    Bounded, since it runs while others wait: see `HOME_SECONDS`. Rows are spread evenly over the file.

    Args:
        rows: at most so many.

    Returns: None where answers are short, hold no word that ROUGE reads, or have no prompt.
    """
    texts = [len(row.answer.split()) >= FREE_TEXT_WORDS and scoreable(row.answer) for row in read.rows]
    tokens = read.tokens.last_answers()
    starts = (tokens.labels != IGNORED).int().argmax(1).tolist()
    asked = [bool(row.prompt) for row in read.rows]  # a start token alone asks nothing: windows of text
    usable = [place for place, text in enumerate(texts) if text and asked[place] and starts[place]]
    if 2 * len(usable) < len(texts):
        return None
    chosen = usable[:: max(1, len(usable) // rows)][:rows]
    longest = int((tokens.labels[chosen] != IGNORED).sum(1).max())
    room = context_length(model)
    new = min(HOME_TOKENS, longest + longest // 4, room - 1 if room else HOME_TOKENS)
    stop = StopRule(model, tokenizer, new, lambda text: False)
    scores: list[float] = []
    began, training = time.monotonic(), model.training
    model.eval()
    try:
        for start in range(0, len(chosen), HOME_BATCH):
            if scores and time.monotonic() - began > HOME_SECONDS:
                break
            part = chosen[start : start + HOME_BATCH]
            prompts = [tokens.input_ids[place, : starts[place]].tolist() for place in part]
            written = decode(model, [ids[-(room - new) :] if room else ids for ids in prompts], stop)
            pairs = zip(part, written, strict=True)
            scores += [rouge1(read.rows[place].answer, stop.text(ids)) for place, ids in pairs]
    finally:
        model.train(training)
    return TextScore(fmean(scores), len(scores))
