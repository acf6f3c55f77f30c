"""Private training draws no random numbers in a forward pass: dropout, layer drop and router jitter are off.

Masks that come from one generator belong to a row's PLACE in the batch: one more row shifts the masks of all rows
after it, and every one of their gradients changes. For whoever knows the seed, one row then moves the sum by 10 to
20 C, where 1 C is charged. A mask for each row by its own key would cure it, in every model's own code. Without
dropout nothing is lost: it is there against overfitting, which clipping and noise prevent already, and it costs signal
that the same noise then hides.

So a model is in eval mode while it is trained, all but the modules whose own parameters are trained (Opacus' hooks
take no notice of others). What is random even so is refused before a row is read.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from gradtf_fl.errors import ConfigError


@contextmanager
def without_randomness(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """``model`` as it is trained privately; afterwards every module is in the mode that it was in."""
    trained = {id(p) for p in parameters}
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = any(id(p) in trained for p in module.parameters(recurse=False))
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def refused_randomness(devices: Sequence[torch.device]) -> Iterator[None]:
    """ConfigError where the block takes numbers from a generator that all rows of a batch share."""
    before = _states(devices)
    yield
    used = [name for (name, old), (_, new) in zip(before, _states(devices), strict=True) if old != new]
    if used:
        raise ConfigError(
            f"the model draws random numbers in its forward pass, outside of its train mode ({', '.join(used)}): a "
            "row's gradient then depends on its place among other rows. Set dropout, layer drop and jitter to 0 in "
            "the model's configuration"
        )


def _states(devices: Sequence[torch.device]) -> list[tuple[str, object]]:
    """Of the generators that a forward pass may draw from without naming one."""
    states: list[tuple[str, object]] = [
        ("torch", torch.get_rng_state().numpy().tobytes()),
        ("random", random.getstate()),
        ("numpy", pickle.dumps(np.random.get_state(legacy=False))),
    ]
    for device in devices:
        if device.type == "cuda":
            states.append((str(device), torch.cuda.get_rng_state(device).numpy().tobytes()))
        elif device.type == "mps":
            states.append(("mps", torch.mps.get_rng_state().numpy().tobytes()))
    return states
