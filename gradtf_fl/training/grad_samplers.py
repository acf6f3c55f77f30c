"""Who computes each row's gradient: two samplers that are both Opacus' `GradSampleHooks`.

Attached to a PEFT model, a sampler leaves in ``p.grad_sample`` [rows, *p.shape] the gradients of every row, for each
trainable parameter p. There Opacus' `DPOptimizer` looks for them (`private_adam`).

- ``lora`` (`LoraGradSampler`): our forward pass of a LoRA layer instead of hooks; nearly as fast as a plain step.
- ``opacus`` (`OpacusGradSampler`): the stock hooks on PEFT's own forward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from gradtf_fl.config import Sampler
from gradtf_fl.errors import ConfigError
from gradtf_fl.training.row_gradients import Batch, forward_of, full_precision, trained_layers


class GradSampler(GradSampleHooks):  # type: ignore[misc]
    """Gradients of every row with respect to the trainable LoRA matrices of a PEFT model.

    At the end of the ``with`` block the model is as it was.

        with LoraGradSampler(model, parameters) as sampler:
            sampler.backward(losses)                # p.grad_sample [rows, *p.shape] for each p of parameters

    Attributes:
        parameters: the model's trainable parameters by name.
    """

    advice = ""

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        """Attach to ``model``.

        Raises:
            ConfigError: a trainable parameter whose row gradients are not known here, all of them named.
        """
        self.parameters: dict[str, Any] = dict(parameters)
        self._layers = trained_layers(model, parameters)
        super().__init__(model, loss_reduction="sum")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cleanup()

    def backward(self, losses: Tensor) -> None:
        """The backward pass of ``losses`` [rows], which depend on a row each.

        Raises:
            ConfigError: no gradient reaches a trainable matrix, or a layer has not seen one sequence for each row.
        """
        for p in self.parameters.values():
            p.grad_sample = None
        if not losses.requires_grad:
            raise ConfigError("no gradient reaches the adapter")
        with full_precision(losses.device):
            torch.autograd.backward(losses.sum())
        missing = [name for name, p in self.parameters.items() if p.grad_sample is None]
        if missing:
            raise ConfigError(f"no gradient reaches {len(missing)} matrices, e.g. {missing[0]}")
        odd = [name for name, p in self.parameters.items() if len(p.grad_sample) != len(losses)]
        if odd:
            raise ConfigError(f"{odd[0]} does not see one sequence for each of the {len(losses)} rows{self.advice}")

    def again(self) -> AbstractContextManager[object]:
        """Around a layer's second computation under gradient checkpointing."""
        return nullcontext()

    def forget(self) -> None:
        """Leave nothing of a step that did not come to its end."""
        for p in self.parameters.values():
            p.grad_sample = None

    def no_rows(self) -> None:
        """What a backward pass over an empty draw would leave: gradients of 0 rows."""
        for p in self.parameters.values():
            p.grad_sample = p.new_zeros(0, *p.shape)


class LoraGradSampler(GradSampler):
    """The LoRA layers' forward pass is ours (`row_gradients`); no hook of Opacus is called."""

    def add_hooks(self, **_: object) -> None:
        """Put our forward pass in front of the class's own."""
        batch = Batch()
        self._seen = self._module.register_forward_pre_hook(batch.seen, with_kwargs=True)
        for layer in self._layers:
            layer.forward = forward_of(layer, batch)

    def remove_hooks(self) -> None:
        """The class's own forward pass shows again."""
        self._seen.remove()
        for layer in self._layers:
            del layer.forward


class OpacusGradSampler(GradSampler):
    """Opacus' own hooks, forward and backward, on both matrices of every LoRA layer."""

    advice = "; Opacus' hooks can't put its tokens apart: choose sampler 'lora', or other targets"

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        """As above; ConfigError on experts, whose matrices PEFT adds to the weights: no layer computes with them."""
        experts = [name for name, module in model.named_modules() if isinstance(module, ParamWrapper)]
        if experts:
            raise ConfigError(f"{experts[0]}: Opacus' hooks don't see experts: choose sampler 'lora', or other targets")
        super().__init__(model, parameters)

    def backward(self, losses: Tensor) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")  # the base is frozen
            super().backward(losses)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Hooks are off: they have the activations of the first computation, and would wait for a second backward."""
        self.disable_hooks()
        try:
            yield
        finally:
            self.enable_hooks()

    def forget(self) -> None:
        """Also what Opacus leaves on modules and parameters after a forward pass without a backward one."""
        super().forget()
        self._clear()
        for p in self.parameters.values():
            p._forward_counter = 0
            vars(p).pop("_current_grad_sample", None)

    def remove_hooks(self) -> None:
        """Also what Opacus leaves on the modules."""
        super().remove_hooks()
        self._clear()

    def _clear(self) -> None:
        for module in self._module.modules():
            for left in ("activations", "max_batch_len"):
                vars(module).pop(left, None)


SAMPLERS: dict[Sampler, type[GradSampler]] = {"lora": LoraGradSampler, "opacus": OpacusGradSampler}
