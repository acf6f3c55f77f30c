"""Agreement tuning: the LLM is tuned on the public prompts that it and the tuned TinyLM answer alike.

Refinement finds the update nearest to the TinyLM's answers among those that the Grad-Transformer can generate. On a
task that no shadow set held, that is close and not exact. The answers themselves are no better a teacher: the
TinyLM's are often wrong. But the two models err in different ways, so an answer that both give is right far more
often than either model is. Tuned on these alone, the LLM learns the task itself, and then agrees on more prompts: a
second pass has more to learn from. This is co-training (Blum and Mitchell 1998) with two models in place of two views.

Where both models agree on too few prompts, the update stays as it is. Privacy: post-processing of the sum and public
prompts, as in `refinement`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradtf_fl.tasks import IGNORED, TokenRows
from gradtf_fl.training import PlainRecipe, StackedAdapters, fine_tune_stacked


@dataclass(frozen=True)
class AgreementRecipe:
    """How the LLM is tuned.

    Attributes:
        passes: how often the prompts are chosen again and the LLM is tuned on them.
        least: an update whose LLM answers fewer prompts as the TinyLM does stays as it is.
        tuning: of each pass, from the update of the pass before.
        seed: of the order of the prompts.
    """

    passes: int = 2
    least: int = 64
    tuning: PlainRecipe = PlainRecipe(steps=100, batch=48, rate=1e-2)
    seed: int = 0


def agreed(llm: StackedAdapters, updates: Tensor, answered: TokenRows) -> Tensor:
    """Which of the TinyLM's answers the LLM gives too: bool [K, R].

    Args:
        updates: of the LLM, float32 [K, L2, n2].
        answered: K * R rows of the LLM's tokens, labels are the TinyLM's answers.
    """
    answered = answered.to(llm.initial.device)
    with torch.no_grad():
        logits = llm.answer_logits(llm.initial + updates, answered)
    labels = answered.answer_labels()
    alike: Tensor = ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1)
    return alike.reshape(len(updates), -1)


def tune_on_agreement(
    llm: StackedAdapters, updates: Tensor, answered: TokenRows, recipe: AgreementRecipe = AgreementRecipe()
) -> Tensor:
    """LLM updates float32 [K, L2, n2], tuned on what each and its TinyLM answer alike; arguments as of `agreed`."""
    answered = answered.to(llm.initial.device)
    rows = len(answered) // len(updates)
    tuned = updates.clone()

    for number in range(recipe.passes):
        for k, alike in enumerate(agreed(llm, tuned, answered)):
            chosen = alike.nonzero().flatten() + k * rows
            if len(chosen) < recipe.least:
                continue
            steps, order, own = recipe.tuning.steps, [[recipe.seed, number]], answered.take(chosen)
            tuned[k] = fine_tune_stacked(llm, own, 1, recipe.tuning, order, [steps], start=tuned[k : k + 1])[0, 0]
    return tuned
