"""Losses of weak-to-strong distillation, one number per row: W2S, Conf (loss 47) and VisSup (losses 48 and 49).

The sources define them for classifiers: one label for each x, f(x) the strong model's distribution over classes, f_w
the weak model's. Ours write answers of several tokens. The choices made here, the same for all three:

- At answer position j, f is the strong model's distribution over the vocabulary given the prompt and the WEAK answer's
  tokens before j (teacher forcing), so a row is a short sequence of classifications.
- A row's cross-entropy is the MEAN over its own answer tokens, as in every loss of this project: the length of an
  answer does not weigh its row.
- What the sources decide per sample (is it hardened? how far is it trusted?) is decided per ROW, from row means. Per
  token would let an answer be half trusted, and a long row would be most of "half of the batch".
- A hard label of f is its argmax at each position, without gradient. CE(f, hard f) is then -log of f's largest entry.

Shapes: logits [N, t, V]; labels [N, t], -100 where no loss is taken; soft [N, t, V] or None; N = K * R rows, adapter
by adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import IGNORED
from gradtf_fl.training import target_mean_loss


class Objective(Protocol):
    """A row loss. ``progress`` is the share of training done, 0 at the first step."""

    def __call__(self, logits: Tensor, labels: Tensor, soft: Tensor | None, adapters: int, progress: float) -> Tensor:
        """Losses [N] in nats."""


def row_mean(values: Tensor, labels: Tensor) -> Tensor:
    """Mean [N] of ``values`` [N, t] over each row's labelled positions; 0 for a row without any."""
    kept = labels != IGNORED
    means: Tensor = (values * kept).sum(1) / kept.sum(1).clamp(min=1)
    return means


def weak_cross_entropy(logits: Tensor, labels: Tensor, soft: Tensor | None) -> Tensor:
    """CE(f, f_w) [N]: against the weak model's tokens, or its distribution where ``soft`` is given."""
    if soft is None:
        return target_mean_loss(logits, labels)
    return row_mean(-(soft * torch.log_softmax(logits, dim=-1)).sum(-1), labels)


def self_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """CE(f, hard f) [N]: minus the mean log probability of f's own greedy tokens."""
    return row_mean(-torch.log_softmax(logits, dim=-1).amax(-1), labels)


def hardened(confidence: Tensor) -> Tensor:
    """Which rows lie above the threshold t: exactly the floor(R / 2) most confident of each adapter's R. bool [K, R].

    The threshold is a rank, so that ties (an easy task has rows at confidence 1) can't make it more or fewer.
    """
    half = confidence.shape[1] // 2
    order = confidence.argsort(dim=1, descending=True, stable=True)[:, :half]
    return torch.zeros_like(confidence, dtype=torch.bool).scatter_(1, order, True)


def warm_up(progress: float, share: float, maximum: float) -> float:
    """alpha: linear from 0 at the first step to ``maximum`` once ``share`` of training is done, then constant."""
    return maximum if share <= 0 else maximum * min(1.0, progress / share)


@dataclass(frozen=True)
class WeakLoss:
    """W2S: plain cross-entropy with the weak labels (Burns et al. 2024)."""

    def __call__(self, logits: Tensor, labels: Tensor, soft: Tensor | None, adapters: int, progress: float) -> Tensor:
        return weak_cross_entropy(logits, labels, soft)


@dataclass(frozen=True)
class ConfidenceLoss:
    """Conf, loss (47): (1 - alpha) CE(f, f_w) + alpha CE(f, f_t), f_t = I[f > t] (Burns et al. 2024, appendix A.4).

    t is chosen so that exactly half of each batch has f > t. With two classes f is one probability and f_t names a
    class for every sample. Over a vocabulary I[f > t] is read entry by entry, with a row's confidence (geometric mean
    over its tokens of f's largest entry) against t: a confident row's target is one-hot at f's greedy tokens, any other
    row's target is zero everywhere and adds nothing. So the confident half is drawn to what the strong model already
    says, the other half learns from (1 - alpha) times the weak label alone. Reading f as the probability of the WEAK
    label instead would push half of every batch away from its label, right or wrong.

    Attributes:
        alpha: its largest value. Burns et al. take .75 for their largest students and .5 for the others; the number of
            the paper that is reproduced here can't be read in our copy.
        warm_up_share: share of training over which alpha rises from 0. Burns et al.: the first 20%.
    """

    alpha: float = 0.5
    warm_up_share: float = 0.2

    def __post_init__(self) -> None:
        if not (0 <= self.alpha <= 1 and 0 <= self.warm_up_share <= 1):
            raise ConfigError(f"confidence loss: alpha {self.alpha} and warm-up {self.warm_up_share} must lie in 0..1")

    def __call__(self, logits: Tensor, labels: Tensor, soft: Tensor | None, adapters: int, progress: float) -> Tensor:
        alpha = warm_up(progress, self.warm_up_share, self.alpha)
        own = self_cross_entropy(logits, labels)
        confident = hardened((-own.detach()).reshape(adapters, -1)).reshape(-1)
        return (1 - alpha) * weak_cross_entropy(logits, labels, soft) + alpha * own * confident


@dataclass(frozen=True)
class AdaptiveLoss:
    """VisSup, losses (48)-(49), Guo et al. 2024 (arXiv 2402.03749): the trust in f is set for each sample.

    (48): (1 - beta) CE(f, f_w) + beta CE(f, hard f)
    (49): beta = exp(CE(f, hard f) / T) / (exp(CE(f, hard f) / T) + exp(CE(f, hard f_w) / T)), without gradient

    The temperature's place (dividing both cross-entropies) is that of the authors' released code. hard f is the best
    label under f, so CE(f, hard f) <= CE(f, hard f_w) and beta lies in (0, 1/2]: 1/2 where the strong model agrees with
    the weak label, falling as it gives that label less probability. So, unlike the words around the formula, a strong
    model that confidently disagrees is pulled harder to the weak label; the formula is implemented as printed.
    The released code also warms beta up over the first quarter of training; the losses as printed do not, nor do we.

    Attributes:
        temperature: T > 0. The authors' commands use .5 and 4; 1 leaves (49) as printed without T.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"adaptive loss: temperature {self.temperature} must be above 0")

    def trust(self, logits: Tensor, labels: Tensor) -> Tensor:
        """beta [N], from the row means; labels are the weak model's hard ones. A sigmoid: no overflow."""
        own = self_cross_entropy(logits, labels).detach()
        weak = weak_cross_entropy(logits, labels, None).detach()
        beta: Tensor = torch.sigmoid((own - weak) / self.temperature)
        return beta

    def __call__(self, logits: Tensor, labels: Tensor, soft: Tensor | None, adapters: int, progress: float) -> Tensor:
        beta = self.trust(logits, labels)
        return (1 - beta) * weak_cross_entropy(logits, labels, soft) + beta * self_cross_entropy(logits, labels)
