"""A forward pass over drawn rows: one loss for each of them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from gradtf_fl.adapters import devices_of
from gradtf_fl.tasks import IGNORED
from gradtf_fl.training.loss import row_mean_loss

if TYPE_CHECKING:
    from gradtf_fl.tasks import TokenRows


class RowLosses:
    """Losses [B], in nats, of the rows that it is called with (their indices [B], B >= 1).

    Rows are right-padded and attention is causal, so no real token ever sees a pad: the attention mask can be
    left out (faster, same numbers), columns that are padding in all drawn rows are cut off, and logits are
    computed only from the first labelled position on.
    """

    def __init__(self, model: nn.Module, rows: TokenRows) -> None:
        self.model, self.rows = model, rows
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.slices_logits = "logits_to_keep" in inspect.signature(base.forward).parameters
        self.device = devices_of(model)[0]
        self.lengths = rows.attention_mask.sum(dim=1)
        labelled = (rows.labels != IGNORED).int()
        self.first_label = labelled.argmax(dim=1).clamp(min=1)

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(1, int(self.lengths.max()))

    def made_up(self, count: int) -> RowLosses:
        """The same of ``count`` rows that hold nothing of these: all as wide as the widest, with labels from the first
        position on at which one has any."""
        from gradtf_fl.tasks import TokenRows

        base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        vocabulary = base.get_input_embeddings().weight.shape[0]
        ids = (torch.arange(count * self.width) % vocabulary).view(count, self.width)
        labels = ids.clone()
        labels[:, : int(self.first_label.min())] = IGNORED
        return RowLosses(self.model, TokenRows(ids, torch.ones_like(ids), labels))

    def __call__(self, drawn: Tensor) -> Tensor:
        end = max(1, int(self.lengths[drawn].max()))
        start = int(self.first_label[drawn].min()) - 1
        tokens = self.rows.input_ids[drawn, :end].to(self.device)
        labels = self.rows.labels[drawn, :end].to(self.device)
        options: dict[str, Any] = {"use_cache": False}
        if self.slices_logits:
            options["logits_to_keep"] = end - start
            labels = labels[:, start:]
        return row_mean_loss(self.model(input_ids=tokens, **options).logits, labels)
