"""What is minimised, and what validation measures: losses of a Grad-Transformer on batches of shadow federations.

Among several processes each computes the losses of its own groups. Its share is weighted so that all shares add up to
the mean over the batch, and so do their gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradtf_fl.adapters import Place
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import StackedAdapters
from gradtf_fl.transformer.model import GradTransformerModel
from gradtf_fl.transformer.processes import Processes


@dataclass(frozen=True)
class Objectives:
    """The model, the frozen LLM that `functional` goes through, and where and with whom they compute."""

    model: GradTransformerModel
    llm: StackedAdapters
    place: Place
    processes: Processes

    def mse(self, updates: Tensor, targets: Tensor) -> Tensor:
        """Equation (10), teacher-forced, on updates [B, L1, n1] and targets [B, L2, n2]: this process's share."""
        own, share = self._own(len(updates))
        with self.place.autocast():
            loss: Tensor = self.model.mse(*(values[own].to(self.place.device) for values in (updates, targets)))
        return loss * share

    def distance(self, updates: Tensor, targets: Tensor) -> Tensor:
        """Mean square of (GENERATED - target) / scale: this process's share."""
        own, share = self._own(len(updates))
        updates, targets = (values[own].to(self.place.device) for values in (updates, targets))
        with self.place.autocast():
            generated: Tensor = self.model(updates)
        return ((generated - targets) / self.model.target_scale).square().mean() * share

    def functional(self, updates: Tensor, rows: TokenRows) -> tuple[Tensor, list[float]]:
        """The frozen LLM's loss (nats) on ``rows`` [B * R, T] with what is generated from ``updates`` [B, L1, n1].

        Returns:
            This process's share of the mean, and the losses of all B groups.
        """
        groups = len(updates)
        own, share = self._own(groups)
        drawn = rows.take(torch.arange(len(rows)).reshape(groups, -1)[own].reshape(-1)).to(self.place.device)
        with self.place.autocast():
            generated = self.model(updates[own].to(self.place.device))
            losses = self.llm.row_losses(self.llm.initial + generated, drawn)
        losses = losses.reshape(len(own), -1).mean(1)
        everyone = torch.zeros(groups, device=losses.device)
        everyone[own] = losses.detach().float()
        return losses.mean() * share, self.processes.total(everyone).tolist()

    def _own(self, groups: int) -> tuple[Tensor, float]:
        own = self.processes.own(groups)
        return own, len(own) / groups
