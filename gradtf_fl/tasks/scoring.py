"""A model's score on a text task: greedy generation, then the metric's mean over rows; and loss per character."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gradtf_fl.tasks.answers import matches
from gradtf_fl.tasks.decoding import BATCH, PromptsDone, generate_greedily
from gradtf_fl.tasks.rouge import rouge1
from gradtf_fl.tasks.rows import IGNORED, Row, encode_rows
from gradtf_fl.tasks.text_tasks import Example, Metric, TextTask

LOSS_BATCH = 32


@dataclass(frozen=True)
class TaskScore:
    """A metric's mean, and what it was taken over.

    Attributes:
        metric: ``exact_match`` or ``rouge1`` (F-measure). value: mean over rows, in 0..1.
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
    """Generate for each prompt and score every example. Rows that share a prompt share its generated text.

    Args:
        examples: at least one. max_new_tokens: None takes the task's own.

    Raises:
        ConfigError: see `decoding.generate_greedily`.
    """
    prompts = list(dict.fromkeys(example.row.prompt for example in examples))
    limit = task.max_new_tokens if max_new_tokens is None else max_new_tokens
    made = generate_greedily(model, tokenizer, prompts, limit, task.finished, batch, progress)
    by_prompt = dict(zip(prompts, made, strict=True))
    pairs = [(example, by_prompt[example.row.prompt]) for example in examples]
    scores = [score_text(task, generated.text, example.references) for example, generated in pairs]
    return TaskScore(
        metric=task.metric,
        row_scores=tuple(score or 0.0 for score in scores),
        unanswered=sum(score is None for score in scores),
        truncated=sum(generated.dropped > 0 for _, generated in pairs),
    )


def loss_per_character(
    model: Any, tokenizer: Any, rows: Sequence[Row], max_tokens: int, batch: int = LOSS_BATCH
) -> float:
    """Nats of the answers' tokens over their characters, all rows together: comparable between tokenizers.

    Args:
        model: a causal LM of transformers; put into eval mode, and back.
        max_tokens: of a row, see `encode_rows`; an answer cut by it still counts all its characters.
        batch: rows in one forward pass; changes the speed only.
    """
    import torch
    from torch.nn import functional

    nats, training = 0.0, model.training
    model.eval()
    by_length = sorted(rows, key=lambda row: len(row.prompt) + len(row.answer))
    with torch.no_grad():
        for start in range(0, len(by_length), batch):
            part = encode_rows(by_length[start : start + batch], tokenizer, max_tokens).to(model.device)
            logits = model(input_ids=part.input_ids, attention_mask=part.attention_mask, use_cache=False).logits
            losses = functional.cross_entropy(
                logits[:, :-1].transpose(1, 2).float(), part.labels[:, 1:], ignore_index=IGNORED, reduction="sum"
            )
            nats += float(losses)
    model.train(training)
    return nats / max(1, sum(len(row.answer) for row in rows))
