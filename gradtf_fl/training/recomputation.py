"""Gradient checkpointing under row gradients: a layer's activations are computed again in the backward pass.

Only the non-reentrant kind of torch.utils.checkpoint: the reentrant one cuts the graph where no input requires a
gradient, which is where a frozen model begins. It is put around the layers that transformers made for it; their own
switch would want train mode, in which they draw dropout (`without_randomness`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from gradtf_fl.errors import ConfigError


@contextmanager
def recomputed(model: nn.Module, again: Callable[[], AbstractContextManager[object]] = nullcontext) -> Iterator[None]:
    """``model`` with gradient checkpointing; afterwards its layers are as they were.

    Args:
        again: a context manager around every second computation.

    Raises:
        ConfigError: the model has no layers that can be computed again.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError("gradient_checkpointing: this model does not support it; set it to false")
    again_in = partial(
        checkpoint,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing random is computed
        context_fn=lambda: (nullcontext(), again()),
    )
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = partial(again_in, layer.forward)
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            del layer.forward
            if own is not None:
                layer.forward = own
