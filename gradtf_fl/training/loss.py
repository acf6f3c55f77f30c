"""The loss that makes DP-SGD's sensitivity argument true: one number per row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gradtf_fl.tasks import IGNORED

LOGITS_AT_ONCE = 2**21
"""8 MB in float32."""


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
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)  # no copy of the logits without their last
    return target_mean_loss(logits, targets)


def target_mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """`row_mean_loss` with ``targets`` [B, T] of the positions themselves: position t predicts target t.

    Positions are taken some at a time, all rows' in one run: a vocabulary of 49,152 would have several copies of its
    logits otherwise, one of them transposed (a fifth of the time and a third of the memory of everything from the last
    hidden states on, measured).
    """
    at_once = max(1, LOGITS_AT_ONCE // logits.shape[-1])
    parts = zip(torch.split(logits.flatten(0, 1), at_once), torch.split(targets.flatten(), at_once), strict=True)
    losses = [
        functional.cross_entropy(some.float(), wanted, ignore_index=IGNORED, reduction="none") for some, wanted in parts
    ]
    per_token = (torch.cat(losses) if len(losses) > 1 else losses[0]).view(targets.shape)
    counts = (targets != IGNORED).sum(dim=1).clamp(min=1)
    return torch.sum(per_token, dim=1) / counts
