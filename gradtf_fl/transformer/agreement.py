"""Agreement tuning: the LLM is tuned on the public prompts that it and the tuned TinyLM answer alike.

Refinement finds the update nearest to the TinyLM's answers among those that the Grad-Transformer can generate. On a
task that no shadow set held, that is close and not exact. The answers themselves are no better a teacher: the
TinyLM's are often wrong. But the two models err in different ways, so an answer that both give is right far more
often than either model is. Tuned on these alone, the LLM learns the task itself. This is co-training (Blum and
Mitchell 1998) with two models in place of two views.

The steps are small on purpose. Under DP a TinyLM may have learned another function, and prompts on which that happens
to be right are no fair sample: a long tuning on them takes an LLM that was right elsewhere along.

Where both models agree on too few prompts, or the LLM is certain of what it answers otherwise, the update stays.
Privacy: post-processing of the sum and public prompts, as in `refinement`.
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
        certain: so does one whose LLM is this sure, in the mean, of its own answers where the TinyLM gives others: it
            knows the task. Generated updates of known tasks were at .98 to 1, of new ones at .25 to .97.
        tuning: of each pass, from the update of the pass before.
        seed: of the order of the prompts.
    """

    passes: int = 1
    least: int = 64
    certain: float = 0.98
    tuning: PlainRecipe = PlainRecipe(steps=100, batch=48, rate=3e-3)
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """An LLM's answers next to its TinyLM's, for K updates and R prompts.

    Attributes:
        alike: bool [K, R], where the LLM gives the TinyLM's answer.
        certainty: [K], mean probability that the LLM gives to its own answers to the other prompts; 1 without any.
    """

    alike: Tensor
    certainty: Tensor

    @property
    def agreement(self) -> Tensor:
        """Share [K] of prompts that both answer alike."""
        return self.alike.float().mean(1)


def compare(llm: StackedAdapters, updates: Tensor, answered: TokenRows) -> Comparison:
    """What the LLM answers where the TinyLM answered; each token is chosen after the TinyLM's own before it.

    Args:
        updates: of the LLM, float32 [K, L2, n2].
        answered: K * R rows of the LLM's tokens, labels are the TinyLM's answers.
    """
    answered = answered.to(llm.initial.device)
    with torch.no_grad():
        own = llm.answer_logits(llm.initial + updates, answered).float().log_softmax(-1).max(-1)
    labels = answered.answer_labels()
    alike = ((own.indices == labels) | (labels == IGNORED)).all(1).reshape(len(updates), -1)
    sure = (own.values * (labels != IGNORED)).sum(1).exp().reshape(len(updates), -1)
    apart = (~alike).sum(1)
    mean = (sure * ~alike).sum(1) / apart.clamp(min=1)
    return Comparison(alike, torch.where(apart > 0, mean, 1.0))


def tune_on_agreement(
    llm: StackedAdapters, updates: Tensor, answered: TokenRows, recipe: AgreementRecipe = AgreementRecipe()
) -> Tensor:
    """LLM updates float32 [K, L2, n2], tuned on what each and its TinyLM answer alike; arguments as of `compare`."""
    answered = answered.to(llm.initial.device)
    rows = len(answered) // len(updates)
    tuned = updates.clone()

    for number in range(recipe.passes):
        found = compare(llm, tuned, answered)
        for k in range(len(tuned)):
            chosen = found.alike[k].nonzero().flatten() + k * rows
            if len(chosen) < recipe.least or found.certainty[k] >= recipe.certain:
                continue
            steps, order, own = recipe.tuning.steps, [[recipe.seed, number]], answered.take(chosen)
            tuned[k] = fine_tune_stacked(llm, own, 1, recipe.tuning, order, [steps], start=tuned[k : k + 1])[0, 0]
    return tuned
