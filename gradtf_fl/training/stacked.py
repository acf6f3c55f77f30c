"""K adapters over one frozen base, in one forward pass. One kernel, three jobs:

- fine-tune K shadow sets at once (`fine_tune_stacked`; equal to one after the other, clipping is per adapter);
- per-example gradients for DP-SGD shadows (`dp_fine_tune_stacked`): with one adapter copy per row, the gradient
  of that copy IS the row's gradient;
- run generated adapters, differentiably (`StackedAdapters.row_losses`, the Grad-Transformer's functional objective).

All K adapters are one tensor theta [K, blocks, block_dim] in update-vector coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradtf_fl.adapters import PREFIX, AdaptedModel, AdapterSpec, Place, devices_of, find_targets
from gradtf_fl.tasks import IGNORED, TokenRows, context_length, longest_row
from gradtf_fl.training.clipping import exact, unit_factors
from gradtf_fl.training.loss import target_mean_loss
from gradtf_fl.training.stacked_layers import by_layer, stack_layers

StepsDone = Callable[[int, int], None]


class StackedAdapters:
    """A model whose target modules carry K adapters of one space. The base model is changed in place, and frozen.

    Attributes:
        adapted: the model, its tokenizer and its initial adapter's state.
        initial: the initial adapter as a vector [blocks, block_dim].
        mask: bool [blocks, block_dim]; false where a row is only filled up.
    """

    def __init__(self, adapted: AdaptedModel) -> None:
        self.adapted, self.spec, self.layout = adapted, adapted.space.spec, adapted.space.layout
        model, state = adapted.model, adapted.initial
        targets = find_targets(model, self.spec)
        device = devices_of(model)[0]
        self.initial = torch.from_numpy(self.layout.to_vector(state)).to(device)  # [blocks, block_dim]
        self.mask = torch.from_numpy(self.layout.parameter_mask()).to(device)
        trained = {name for name, _, _ in self.layout.pieces(self.initial)}
        self._frozen = {name: tensor.to(device) for name, tensor in state.items() if name not in trained}
        self.model = model.eval().requires_grad_(False)
        self._layers = {f"{PREFIX}{name}": layer for name, layer in stack_layers(model, targets, self.spec).items()}

    @classmethod
    def load(cls, name: str, spec: AdapterSpec, place: Place | None = None) -> StackedAdapters:
        """Load the base model by name (see `AdaptedModel.load`)."""
        return cls(AdaptedModel.load(name, spec, place))

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        return self.adapted.tokenizer

    @property
    def context(self) -> int | None:
        """Positions that the model was made for; None where its config does not say."""
        return context_length(self.model)

    @property
    def max_tokens(self) -> int:
        """Tokens of a row at most, prompt and answer (see `tasks.encode_rows`)."""
        return longest_row(self.model)

    def to(self, device: torch.device, frozen_type: torch.dtype) -> StackedAdapters:
        """Everything on ``device``, the model's own weights in this type; adapters stay float32, and so do buffers
        (rotary frequencies in bf16 turn positions by whole radians)."""
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(frozen_type)
        self.model.to(device)
        self.initial, self.mask = self.initial.to(device), self.mask.to(device)
        self._frozen = {name: tensor.to(device) for name, tensor in self._frozen.items()}
        return self

    def set(self, theta: Tensor) -> None:
        """Use adapters ``theta`` [K, blocks, block_dim] (absolute values, not updates) from now on."""
        adapters = theta.shape[0]
        values = {name: tensor.expand(adapters, -1, -1) for name, tensor in self._frozen.items()}
        for name, shape, piece in self.layout.pieces(theta):
            values[name] = piece.reshape(adapters, *shape)
        for module, roles in by_layer(values).items():
            self._layers[module].put(roles)

    def answer_logits(self, theta: Tensor, rows: TokenRows) -> Tensor:
        """Logits [K * R, t, V] of adapters ``theta`` for the positions of `TokenRows.answer_labels`."""
        rows = rows.to(self.initial.device)
        self.set(theta)
        output = self.model(
            input_ids=rows.input_ids[:, :-1],
            attention_mask=None if bool(rows.attention_mask.all()) else rows.attention_mask[:, :-1],
            logits_to_keep=rows.answer_labels().shape[1],
            use_cache=False,
        )
        logits: Tensor = output.logits
        return logits

    def row_losses(self, theta: Tensor, rows: TokenRows) -> Tensor:
        """Mean answer-token loss of every row [K * R] in nats; rows ordered adapter by adapter."""
        rows = rows.to(self.initial.device)
        logits, labels = self.answer_logits(theta, rows), rows.answer_labels()
        return target_mean_loss(logits, labels)

    @torch.no_grad()
    def accuracy(self, theta: Tensor, rows: TokenRows) -> Tensor:
        """Exact match [K] of each adapter on its rows (K * R of them, ordered adapter by adapter)."""
        rows = rows.to(self.initial.device)
        logits, labels = self.answer_logits(theta, rows), rows.answer_labels()
        right = ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1).float()
        shares: Tensor = right.reshape(theta.shape[0], -1).mean(1)
        return shares


def stack_rows(sets: Sequence[TokenRows]) -> TokenRows:
    """Concatenate equally wide row sets."""
    return TokenRows(
        torch.cat([s.input_ids for s in sets]),
        torch.cat([s.attention_mask for s in sets]),
        torch.cat([s.labels for s in sets]),
    )


def batch_indices(seed: Sequence[int], rows: int, batch: int, steps: int) -> np.ndarray:
    """Row numbers [steps, batch] for one shadow set: shuffled passes over the rows, from its own seed."""
    rng = np.random.default_rng(list(seed))
    passes = -(-steps * batch // rows)
    return np.concatenate([rng.permutation(rows) for _ in range(passes)])[: steps * batch].reshape(steps, batch)


@dataclass(frozen=True)
class PlainRecipe:
    """Plain LoRA fine-tuning: Adam, linear decay to zero, gradient norm clipped per adapter."""

    steps: int = 150
    batch: int = 12
    rate: float = 1.5e-2
    max_norm: float = 1.0


RowLosses = Callable[[Tensor, TokenRows, float], Tensor]
"""(adapters theta, a batch's rows, share of training done) -> losses [K * R]."""


def descend(
    stack: StackedAdapters,
    rows: TokenRows,
    adapters: int,
    recipe: PlainRecipe,
    seeds: Sequence[Sequence[int]],
    losses_of: RowLosses,
    start: Tensor | None = None,
) -> Iterator[Tensor]:
    """Tune ``adapters`` adapters, each on its own len(rows)/adapters rows; after each step their values.

    Args:
        start: updates [adapters, blocks, block_dim] to begin from; None: the initial adapter.

    Yields:
        float32 [adapters, blocks, block_dim], absolute values, changed in place by the next step.
    """
    per_set, rows = len(rows) // adapters, rows.to(stack.initial.device)
    index = np.stack([batch_indices(s, per_set, recipe.batch, recipe.steps) for s in seeds])
    index += (np.arange(adapters) * per_set)[:, None, None]
    theta = nn.Parameter(stack.initial.repeat(adapters, 1, 1) + (0 if start is None else start))
    optimizer = torch.optim.Adam([theta], lr=recipe.rate, fused=True)
    for step in range(recipe.steps):
        done = step / recipe.steps
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * (1 - done)
        losses = losses_of(theta, rows.take(torch.from_numpy(index[:, step].reshape(-1))), done)
        optimizer.zero_grad()
        torch.autograd.backward(losses.reshape(adapters, -1).mean(1).sum())
        assert theta.grad is not None
        norms = theta.grad.flatten(1).norm(dim=1)
        theta.grad *= (recipe.max_norm / (norms + 1e-6)).clamp(max=1.0)[:, None, None]
        optimizer.step()
        yield theta.detach()


def fine_tune_stacked(
    stack: StackedAdapters,
    rows: TokenRows,
    adapters: int,
    recipe: PlainRecipe,
    seeds: Sequence[Sequence[int]],
    snapshots: Sequence[int],
    progress: StepsDone | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Fine-tune ``adapters`` adapters, each on its own len(rows)/adapters rows; updates at the snapshot steps.

    ``start``: see `descend`.

    Returns:
        float32 [snapshots, adapters, blocks, block_dim], differences to the initial adapter.
    """

    def losses(theta: Tensor, part: TokenRows, _: float) -> Tensor:
        return stack.row_losses(theta, part)

    taken = []
    for step, theta in enumerate(descend(stack, rows, adapters, recipe, seeds, losses, start), 1):
        if step in snapshots:
            taken.append(theta - stack.initial)
        if progress is not None:
            progress(step, recipe.steps)
    return torch.stack(taken)


@dataclass(frozen=True)
class DpRecipe:
    """What organizations run: DP-SGD with Adam at a constant rate, in rounds that start from the group's mean."""

    rounds: int = 3
    steps: int = 50
    batch: int = 64
    clip: float = 0.5
    rate: float = 1e-2


def dp_fine_tune_stacked(
    stack: StackedAdapters,
    rows: TokenRows,
    groups: Sequence[int],
    sigmas: Sequence[float],
    recipe: DpRecipe,
    seed: Sequence[int],
    progress: StepsDone | None = None,
) -> Tensor:
    """Shadow federations: adapter k belongs to federation ``groups[k]`` and trains with noise ``sigmas[k]``.

    Poisson batches with q = batch / rows, rows of norm <= 1, Gaussian noise sigma on that scale, a fresh Adam state
    each round; at the end of a round every adapter of a group continues from the group's mean, as organizations do.

    Returns:
        float32 [rounds, K, blocks, block_dim]: each adapter's update BEFORE it is averaged with its group.
    """
    adapters = len(groups)
    per_set, device = len(rows) // adapters, stack.initial.device
    rows = rows.to(device)
    rng = np.random.default_rng(list(seed))
    noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
    group = torch.as_tensor(groups, device=device)
    sizes = torch.bincount(group).float()[:, None, None]
    sigma = torch.tensor(sigmas, device=device)[:, None, None]
    theta = stack.initial.repeat(adapters, 1, 1)
    taken = []
    for round_number in range(recipe.rounds):
        theta.grad = None
        optimizer = torch.optim.Adam([theta], lr=recipe.rate, fused=True)
        for step in range(recipe.steps):
            chosen = np.flatnonzero(rng.random(adapters * per_set) < recipe.batch / per_set)
            owner = torch.from_numpy(chosen // per_set).to(device)
            copies = theta.detach()[owner].requires_grad_(True)
            torch.autograd.backward(stack.row_losses(copies, rows.take(torch.from_numpy(chosen))).sum())
            assert copies.grad is not None
            factors = unit_factors(exact(copies.grad).flatten(1).norm(dim=1), recipe.clip).to(copies.grad)
            total = torch.zeros_like(theta).index_add_(0, owner, copies.grad * factors[:, None, None])
            total += sigma * torch.randn(theta.shape, generator=noise).to(device) * stack.mask
            theta.grad = total * (recipe.clip / recipe.batch)
            optimizer.step()
            if progress is not None:
                progress(round_number * recipe.steps + step + 1, recipe.rounds * recipe.steps)
        taken.append(theta.detach().clone() - stack.initial)
        means = theta.new_zeros(len(sizes), *theta.shape[1:]).index_add_(0, group, theta) / sizes
        theta = means[group]
    return torch.stack(taken)
