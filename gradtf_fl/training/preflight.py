"""What must hold before a private step costs anything: arguments, rows and model, checked without reading a row's loss.

Each check stands for a way in which DP-SGD on an adapter has failed silently elsewhere: epsilon accrues while
nothing trains, or one row's gradient carries another row's data past the clipping bound.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradtf_fl.config import PhysicalRows
from gradtf_fl.errors import ConfigError, GradtfError
from gradtf_fl.training.loss import IGNORED
from gradtf_fl.training.row_gradients import trained_layers

if TYPE_CHECKING:
    from gradtf_fl.tasks import TokenRows


class NothingTrained(GradtfError):
    """The first step left the adapter untouched: the run would cost epsilon and change nothing."""


def check_arguments(
    rows: TokenRows, sigma: float, clip: float, batch: int, steps: int, rate: float, physical_batch: PhysicalRows
) -> None:
    """ConfigError naming every argument that is out of range and every way in which the rows are not usable."""
    problems = []
    if len(rows) == 0:
        problems.append("there are no rows to train on")
    if not (math.isfinite(sigma) and sigma >= 0):
        problems.append(f"sigma must be a finite number >= 0, not {sigma}")
    if not (math.isfinite(clip) and clip > 0):
        problems.append(f"the clipping norm must be a finite number above 0, not {clip}")
    if batch < 1 or steps < 1 or (physical_batch != "auto" and physical_batch < 1):
        problems.append(f"batch, steps and physical_batch must be at least 1: {batch}, {steps}, {physical_batch}")
    if not (math.isfinite(rate) and rate > 0):
        problems.append(f"the learning rate must be a finite number above 0, not {rate}")
    if len(rows) and bool((rows.attention_mask.diff(dim=1) > 0).any()):
        problems.append("rows must be padded on the right: after left padding a real token is predicted from a pad")
    if len(rows) and bool(((rows.labels != IGNORED) & (rows.attention_mask == 0)).any()):
        problems.append("padding must carry no labels")
    if problems:
        raise ConfigError(problems)


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's trainable parameters by name.

    Raises:
        ConfigError: nothing to train, something else is trainable, a part is not float32 or on another device, or
            a layer mixes the rows of a batch.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    narrow = [name for name, p in parameters.items() if p.dtype != torch.float32]
    foreign = [name for name in parameters if "lora_" not in name]
    mixing = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    problems = []
    if not any("lora_B" in name for name in parameters):
        problems.append("the model has no trainable LoRA adapter")
    if foreign:
        problems.append(f"parameters outside the adapter are trainable: {', '.join(foreign[:5])}")
    if narrow:
        problems.append(f"the adapter must be float32, or clipping overshoots its bound: {narrow[0]}")
    if len({p.device for p in parameters.values()}) > 1:
        problems.append("the adapter is spread over several devices")
    if mixing:
        problems.append(f"batch normalisation makes a row's gradient depend on its neighbours: {mixing[0]}")
    if problems:
        raise ConfigError(problems)
    return parameters


def check_trainable(model: nn.Module) -> None:
    """Whether `train_dp` could train ``model``'s adapter: told without rows, before a round or a charge.

    Raises:
        ConfigError: as `adapter_parameters` and `trained_layers` say; row gradients are known of plain LoRA on linear
            layers.
    """
    trained_layers(model, adapter_parameters(model))


class FirstStep:
    """Watches whether the first step moves every B. Loss can fall and epsilon accrue while nothing trains
    (opacus issue 820): fail loudly instead."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._before: dict[str, Tensor] | None = {
            name: p.detach().clone() for name, p in parameters.items() if "lora_B" in name
        }

    def check(self) -> None:
        """Compare now with the beginning, once. Raises NothingTrained."""
        if self._before is None:
            return
        still = [name for name, old in self._before.items() if torch.equal(self._parameters[name].detach(), old)]
        if still:
            raise NothingTrained(
                f"the first private step left {len(still)} adapter matrices unchanged, e.g. {still[0]}"
            )
        self._before = None
