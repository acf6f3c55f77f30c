"""A forward pass over drawn rows: one loss for each of them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from torch import Tensor, nn

from gradtf_fl.training.loss import IGNORED, row_mean_loss

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
        self.device = next(model.parameters()).device
        self.lengths = rows.attention_mask.sum(dim=1)
        labelled = (rows.labels != IGNORED).int()
        self.first_label = labelled.argmax(dim=1).clamp(min=1)

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
