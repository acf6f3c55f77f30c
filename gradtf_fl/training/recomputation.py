"""Gradient checkpointing under row gradients: a layer's activations are computed again in the backward pass.

Only the non-reentrant kind of torch.utils.checkpoint: the reentrant one cuts the graph where no input requires a
gradient, which is where a frozen model begins. Ours is switched on at the layers that transformers made for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from gradtf_fl.errors import ConfigError

SWITCH, FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"


@contextmanager
def recomputed(model: nn.Module, again: Callable[[], AbstractContextManager[object]] = nullcontext) -> Iterator[None]:
    """``model`` with gradient checkpointing, in train mode; afterwards its layers are as they were.

    Args:
        again: a context manager around every second computation.

    Raises:
        ConfigError: the model has no layers that can be computed again.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, SWITCH)]
    if not layers:
        raise ConfigError("gradient_checkpointing: this model does not support it; set it to false")
    before = [{name: value for name, value in vars(layer).items() if name in (SWITCH, FUNCTION)} for layer in layers]
    again_in = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))
    try:
        for layer in layers:
            layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, again_in
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            for name in (SWITCH, FUNCTION):
                vars(layer).pop(name, None)
            vars(layer).update(own)
