"""Rows of which an auditor knows what they do to a training run.

- Row canaries: rows of the task with a wrong answer; only a run that saw one learns it.
- Gradient canaries: rows whose gradient is ONE coordinate of the adapter, far above the clipping bound, so that a
  right trainer adds exactly +C or -C there whenever it draws one: the most that a row may do. They are ordinary
  token rows that begin with a mark; `GradientCanaries` gives the MODEL hooks that make such rows so. The trainer is
  not touched and does not know.

How: in a LoRA layer y = W x + s B A x, a canary of layer l has at its first position an input x with A x = e_k, and
its logits depend on y_o at that position alone. Its gradient is then a multiple of the coordinate (o, k) of B_l.
A is frozen in an audit, or its own gradient would take a growing share of the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gradtf_fl.tasks import IGNORED, TokenRows
from gradtf_fl.training.loss import row_mean_loss

MARK = 1
"""First token of a gradient canary: the end of a text, with which no row of a task begins."""
DIGITS = tuple(range(2, 12))
"""Ten tokens that write a canary's number."""
NUMBER_TOKENS = 5
LABEL = DIGITS[0]
LABELS = 2
ENERGY_BATCH = 16


def lora_layers(model: nn.Module) -> list[Any]:
    """The model's LoRA layers, in order."""
    from peft.tuners.lora import Linear

    return [module for module in model.modules() if isinstance(module, Linear)]


def b_matrices(model: nn.Module) -> list[nn.Parameter]:
    """B [out, rank] of every LoRA layer. Coordinates are numbered through them in this order, row by row."""
    return [layer.lora_B[layer.active_adapters[0]].weight for layer in lora_layers(model)]


def row_losses(model: nn.Module, rows: TokenRows) -> Tensor:
    """Loss [N] in nats of every row, in one forward pass."""
    logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits
    return row_mean_loss(logits, rows.labels)


def coordinate_energy(model: nn.Module, rows: TokenRows) -> Tensor:
    """How much ordinary rows disturb each coordinate of B: sum over batches of 16 of the squared summed gradient."""
    matrices = b_matrices(model)
    energy = torch.zeros(sum(b.numel() for b in matrices))
    for start in range(0, len(rows), ENERGY_BATCH):
        losses = row_losses(model, rows.take(slice(start, start + ENERGY_BATCH)))
        parts = torch.autograd.grad(losses.sum(), matrices)
        energy += torch.cat([part.flatten() for part in parts]) ** 2
    return energy


@dataclass(frozen=True)
class Directions:
    """Coordinate [m] of B that each gradient canary moves, and the sign [m] (+1 or -1) of its gradient there."""

    coordinate: Tensor
    sign: Tensor

    @classmethod
    def draw(cls, energy: Tensor, count: int, rng: np.random.Generator) -> Directions:
        """The ``count`` coordinates of the least energy, with random signs.

        Raises:
            ValueError: more canaries than coordinates.
        """
        if count > len(energy):
            raise ValueError(f"{count} canaries, but only {len(energy)} coordinates")
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], count)).float()
        return cls(torch.argsort(energy, stable=True)[:count], signs)

    def along(self, values: Tensor) -> NDArray[np.float64]:
        """Inner products [..., m] of the directions with vectors [..., size] over all coordinates of B."""
        return (values[..., self.coordinate] * self.sign).double().numpy()


class GradientCanaries:
    """Inside the ``with`` block, rows of `rows` have a gradient of norm ``norm`` along their own direction.

    Args:
        model: a PEFT model on the CPU whose A matrices are frozen and of full row rank.
    """

    def __init__(self, model: nn.Module, directions: Directions, norm: float) -> None:
        self._base: Any = model.get_base_model()  # type: ignore[operator]
        self._layers = lora_layers(model)
        self._directions = directions
        vocabulary = int(self._base.config.vocab_size)
        scale = float(self._layers[0].scaling[self._layers[0].active_adapters[0]])
        self._gain = norm / (scale * (1 - 1 / vocabulary))  # all logits are 0: dloss / dlogit = 1/V - 1
        shapes = [b.shape for b in b_matrices(model)]
        starts = np.cumsum([0] + [shape.numel() for shape in shapes])
        coordinate = directions.coordinate.numpy()
        layer = np.searchsorted(starts, coordinate, side="right") - 1
        rank = np.array([shape[1] for shape in shapes])[layer]
        self._layer = torch.from_numpy(layer)
        self._out = torch.from_numpy((coordinate - starts[layer]) // rank)
        self._rank = torch.from_numpy((coordinate - starts[layer]) % rank)
        self._which = torch.empty(0, dtype=torch.long)  # canary [B] of each row now in the model, -1 for none
        self._moved = torch.empty(0)  # what a canary's logits depend on [B]
        self._handles: list[Any] = []

    def rows(self, width: int) -> TokenRows:
        """The canaries as rows [m, width]: mark, number, filling, two labels."""
        count = len(self._layer)
        ids = torch.full((count, width), DIGITS[0])
        ids[:, 0] = MARK
        for place in range(NUMBER_TOKENS):
            digit = torch.arange(count) // 10 ** (NUMBER_TOKENS - 1 - place) % 10
            ids[:, 1 + place] = digit + DIGITS[0]
        labels = torch.full_like(ids, IGNORED)
        ids[:, -LABELS:] = labels[:, -LABELS:] = LABEL
        return TokenRows(ids, torch.ones_like(ids), labels)

    def __enter__(self) -> Self:
        self._handles = [
            self._base.register_forward_pre_hook(self._recognise, with_kwargs=True),
            self._base.register_forward_hook(self._replace_logits),
        ]
        for number, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_pre_hook(self._input_of(number)))
            self._handles.append(layer.register_forward_hook(self._output_of(number)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _recognise(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self._which = torch.full((len(ids),), -1)
        self._moved = torch.zeros(len(ids))
        if ids.shape[1] > NUMBER_TOKENS:
            places = 10 ** torch.arange(NUMBER_TOKENS - 1, -1, -1)
            number = ((ids[:, 1 : 1 + NUMBER_TOKENS] - DIGITS[0]) * places).sum(1)
            self._which = torch.where(ids[:, 0] == MARK, number, self._which)

    def _mine(self, number: int) -> Tensor:
        return (self._which >= 0) & (self._layer[self._which] == number)

    def _input_of(self, number: int) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...] | None]:
        def hook(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            mine = self._mine(number)
            if not mine.any():
                return None
            x, *rest = args
            a = layer.lora_A[layer.active_adapters[0]].weight.detach()
            inputs = torch.linalg.pinv(a).T  # [rank, in]: A inputs[k] = e_k
            first = torch.where(mine[:, None], inputs[self._rank[self._which]], x[:, 0])
            return (torch.cat([first[:, None], x[:, 1:]], dim=1), *rest)

        return hook

    def _output_of(self, number: int) -> Callable[[Any, tuple[Any, ...], Tensor], None]:
        def hook(layer: Any, args: tuple[Any, ...], y: Tensor) -> None:
            reached = y[:, 0].gather(1, self._out[self._which][:, None])[:, 0] * self._directions.sign[self._which]
            self._moved = self._moved + torch.where(self._mine(number), reached, torch.zeros(()))

        return hook

    def _replace_logits(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """A canary's logits are 0 and move only the label's: d loss / d B is +norm along the canary's direction."""
        canary = (self._which >= 0)[:, None, None]
        moved = self._gain * (self._moved - self._moved.detach())
        label = nn.functional.one_hot(torch.tensor(LABEL), output.logits.shape[-1])
        output["logits"] = torch.where(canary, -moved[:, None, None] * label, output.logits)
        return output


class NoisyGradients:
    """Inside the ``with`` block, what Adam is given for ``parameters`` in each step: the clipped, noisy mean gradient.

    DP-SGD's epsilon covers every one of them. They are read where the trainer hands them to its optimizer; a trainer
    that uses another optimizer than PyTorch's Adam is not seen, and `steps` then stays empty.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self.steps: list[Tensor] = []

    def stacked(self) -> Tensor:
        """[steps, size of all parameters together]."""
        return torch.stack(self.steps)

    def __enter__(self) -> Self:
        self._handle = register_optimizer_step_pre_hook(self._before_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _before_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        if not isinstance(optimizer, torch.optim.Adam):
            return
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if all(id(p) in held for p in self._parameters):
            self.steps.append(torch.cat([gradient_of(p).flatten() for p in self._parameters]))


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """The parameter's gradient; zeros without one."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach()


def join(parts: Sequence[TokenRows]) -> TokenRows:
    """Rows of equal width, one set after the other."""
    return TokenRows(
        torch.cat([part.input_ids for part in parts]),
        torch.cat([part.attention_mask for part in parts]),
        torch.cat([part.labels for part in parts]),
    )


def blank(rows: TokenRows, kept: NDArray[np.bool_]) -> TokenRows:
    """The rows with labels only where ``kept`` [N]: the others have no loss and no gradient, as if they were not there.

    Their number stays, and with it q: otherwise the number of rows would reveal the coins.
    """
    labels = rows.labels.clone()
    labels[torch.from_numpy(~kept)] = IGNORED
    return TokenRows(rows.input_ids, rows.attention_mask, labels)


def repeated(rows: TokenRows, copies: int) -> TokenRows:
    """Each row this many times, one after the other: a person with equal rows."""
    return rows.take(torch.arange(len(rows)).repeat_interleave(copies))
