"""What must hold before a private step costs anything: arguments, rows and model, checked without reading a row's loss.

Each check stands for a way in which DP-SGD on an adapter has failed silently elsewhere: epsilon accrues while
nothing trains, or one row's gradient carries another row's data past the clipping bound.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradtf_fl.adapters import offloaded
from gradtf_fl.config import PhysicalRows
from gradtf_fl.errors import ConfigError, GradtfError
from gradtf_fl.round_messages import MAX_CLIP, MIN_CLIP
from gradtf_fl.tasks import IGNORED, context_length

if TYPE_CHECKING:
    from gradtf_fl.tasks import TokenRows


class NothingTrained(GradtfError):
    """The first step left the adapter untouched: the run would cost epsilon and change nothing."""


def check_arguments(
    rows: TokenRows,
    sigma: float,
    clip: float,
    batch: int,
    steps: int,
    rate: float,
    physical_batch: PhysicalRows,
    declared: int | None = None,
) -> None:
    """ConfigError naming every argument that is out of range and every way in which the rows are not usable."""
    problems = []
    if len(rows) == 0:
        problems.append("there are no rows to train on")
    if not (math.isfinite(sigma) and sigma >= 0):
        problems.append(f"sigma must be a finite number >= 0, not {sigma}")
    if not MIN_CLIP <= clip <= MAX_CLIP:
        problems.append(f"the clipping norm must be {MIN_CLIP:g} to {MAX_CLIP:g}, not {clip}")
    if batch < 1 or steps < 1 or (physical_batch != "auto" and physical_batch < 1):
        problems.append(f"batch, steps and physical_batch must be at least 1: {batch}, {steps}, {physical_batch}")
    if declared is not None and declared < 1:
        problems.append(f"declared must be at least 1 row, not {declared}")
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
        ConfigError: nothing to train, something else is trainable, a part is not float32, weights are not on the
            devices that compute, or a layer mixes the rows of a batch.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    narrow = [name for name, p in parameters.items() if p.dtype != torch.float32]
    foreign = [name for name in parameters if "lora_" not in name]
    mixing = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    problems = []
    if not any(_starts_at_zero(name) for name in parameters):
        problems.append("the model has no trainable LoRA adapter")
    if foreign:
        problems.append(f"parameters outside the adapter are trainable: {', '.join(foreign[:5])}")
    if narrow:
        problems.append(f"the adapter must be float32, or clipping overshoots its bound: {narrow[0]}")
    problems += offloaded(model)
    if mixing:
        problems.append(f"batch normalisation makes a row's gradient depend on its neighbours: {mixing[0]}")
    if problems:
        raise ConfigError(problems)
    return parameters


def check_rows(model: nn.Module, rows: TokenRows) -> None:
    """ConfigError naming every way in which ``model`` can't read ``rows``: a forward pass would fail half-way."""
    base: Any = model
    problems = []
    vocabulary, largest = base.get_input_embeddings().weight.shape[0], int(rows.input_ids.max())
    if largest >= vocabulary:
        problems.append(
            f"the rows have token {largest}, the model's embedding only 0 to {vocabulary - 1}: the tokenizer has "
            "tokens that the model has not; call model.resize_token_embeddings and save the model again"
        )
    positions, longest = learned_positions(model), int(rows.attention_mask.sum(1).max())
    if positions is not None and longest > positions:
        problems.append(f"the rows have up to {longest} tokens, {_too_short(positions)}")
    if problems:
        raise ConfigError(problems)


def unreadable_tokens(model: nn.Module, tokenizer: Any, max_tokens: int | None) -> list[str]:
    """What `check_rows` would find in rows that this tokenizer pads and cuts at ``max_tokens``, told without rows."""
    base: Any = model
    problems = []
    vocabulary, pad = base.get_input_embeddings().weight.shape[0], getattr(tokenizer, "pad_token_id", None)
    if pad is not None and pad >= vocabulary:
        problems.append(
            f"the tokenizer pads with token {pad} ({tokenizer.pad_token}), the model's embedding has only 0 to "
            f"{vocabulary - 1}: pad with one of these, or call model.resize_token_embeddings and save the model again"
        )
    positions = learned_positions(model)
    if positions is not None and max_tokens is not None and max_tokens > positions:
        problems.append(f"max_tokens is {max_tokens}, {_too_short(positions)}")
    return problems


def _too_short(positions: int) -> str:
    return f"the model has learned positions for {positions}: set max_tokens to at most {positions}"


def learned_positions(model: nn.Module) -> int | None:
    """Tokens of a row at most, where the model keeps a table of positions (GPT-2, OPT); None where it computes them."""
    base: Any = model
    words = base.get_input_embeddings()
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and module is not words and (last == "wpe" or "position" in last):
            return context_length(model) or module.num_embeddings
    return None


def _starts_at_zero(name: str) -> bool:
    """B, or R of LoRA-XS, which takes B's place: what the first step has to move."""
    return "lora_B" in name or "lora_R" in name


class FirstStep:
    """Watches whether the first step moves every B (of LoRA-XS every R).

    Loss can fall and epsilon accrue while nothing trains (opacus issue 820): fail loudly instead.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._before: dict[str, Tensor] | None = {
            name: p.detach().clone() for name, p in parameters.items() if _starts_at_zero(name)
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
