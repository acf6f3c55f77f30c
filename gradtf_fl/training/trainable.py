"""Whether a model's adapter can be trained privately: shown on made-up rows, before a round or a charge.

Names of layers promise little: a layer may see the tokens of all rows in one run, in an order of its own, or a part of
them. So the rows' gradients that DP-SGD would clip are computed for a few made-up rows and compared with those of one
backward pass for each row on PEFT's own forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradtf_fl.adapters import devices_of
from gradtf_fl.config import Sampler
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training.grad_samplers import SAMPLERS, GradSampler
from gradtf_fl.training.preflight import adapter_parameters, learned_positions, unreadable_tokens
from gradtf_fl.training.row_gradients import trained_layers
from gradtf_fl.training.row_losses import RowLosses
from gradtf_fl.training.without_randomness import refused_randomness, without_randomness

LENGTHS = (5, 3, 4)
"""Tokens of the made-up rows: of different lengths, so that padding must have no say."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest error of a row's gradient as a share of the largest row's; where weights are rounded, `ROUNDED`."""
ROUNDED = 0.25
"""A row that is mixed up with another one, or left out, is off by its whole gradient."""


def check_trainable(
    model: nn.Module, sampler: Sampler = "lora", *, tokenizer: Any = None, max_tokens: int | None = None
) -> None:
    """Whether `train_dp` could train ``model``'s adapter: told without anybody's rows, before a round or a charge.

    The model is as before afterwards.

    Args:
        model: PEFT model with the adapter that is to be trained.
        sampler: who computes the rows' gradients.
        tokenizer: what rows are encoded and padded with, where that is to be checked too.
        max_tokens: tokens of a row at most.

    Raises:
        ConfigError: what is trainable is not a plain LoRA or LoRA-XS that `trained_layers` knows; the sampler's row
            gradients are not the rows' own; the tokenizer's rows don't fit the model.
    """
    parameters = adapter_parameters(model)
    trained_layers(model, parameters)
    problems = unreadable_tokens(model, tokenizer, max_tokens)
    if problems:
        raise ConfigError(problems)
    check_row_gradients(model, parameters, sampler)


def probe(sampler: GradSampler, model: nn.Module) -> None:
    """Two rows of made-up tokens, forth and back in the model's own mode: every trainable matrix gets their gradients.

    Catches, before private data is read, what `check_row_gradients` does not see: layers that no gradient reaches
    under gradient checkpointing. Raises ConfigError.
    """
    ids = torch.zeros(2, 3, dtype=torch.long)
    losses = RowLosses(model, TokenRows(ids, torch.ones_like(ids), ids))
    with refused_randomness(devices_of(model)):
        sampler.backward(losses(torch.arange(2)))


def check_row_gradients(model: nn.Module, parameters: Mapping[str, nn.Parameter], sampler: Sampler) -> None:
    """ConfigError where the sampler's gradients are not those of one row at a time, or a forward pass is random."""
    try:
        with without_randomness(model, parameters.values()), _off_zero(parameters):
            losses = RowLosses(model, _made_up_rows(model))
            drawn = torch.arange(len(losses.rows))
            with SAMPLERS[sampler](model, parameters) as attached:
                with refused_randomness(devices_of(model)):
                    attached.backward(losses(drawn))
                first = next(iter(parameters.values())).device
                found = torch.cat([_of_rows(p).to(first) for p in parameters.values()], 1)
            alone = [torch.autograd.grad(losses(row[None]).sum(), list(parameters.values())) for row in drawn]
            expected = torch.stack([_flat(gradients) for gradients in alone])
    except RuntimeError as error:  # of a forward pass: shapes, or an allocation
        raise ConfigError(f"the model can't be trained on made-up rows: {str(error).splitlines()[0]}") from error
    finally:
        _forget(parameters)
    largest = float(expected.norm(dim=1).max())
    error_share = float((found - expected).norm(dim=1).max()) / largest if largest > 0 else 0.0
    allowed = max(TOLERANCE.get(p.dtype, ROUNDED) for p in model.parameters())
    if not error_share <= allowed:
        raise ConfigError(
            f"sampler {sampler!r} does not find each row's own gradient in this model: on made-up rows it is off by "
            f"{error_share:.0%}; choose other targets, such as the attention projections"
        )


def _made_up_rows(model: nn.Module) -> TokenRows:
    base: Any = model
    longest = min(max(LENGTHS), learned_positions(model) or max(LENGTHS))
    lengths = torch.tensor([min(length, longest) for length in LENGTHS])
    vocabulary = base.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (len(LENGTHS), longest), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return TokenRows(ids * mask, mask, torch.where(mask == 1, ids, -100))


@contextmanager
def _off_zero(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Adapter matrices with noise added: where B is zero, A has no gradient."""
    generator = torch.Generator().manual_seed(1)
    before = [p.detach().clone() for p in parameters.values()]
    with torch.no_grad():
        for p in parameters.values():
            p.add_((0.05 * torch.randn(p.shape, generator=generator)).to(p))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters.values(), before, strict=True):
                p.copy_(value)


def _forget(parameters: Mapping[str, nn.Parameter]) -> None:
    for p in parameters.values():
        vars(p).pop("grad_sample", None)


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.flatten().to(gradients[0].device) for gradient in gradients])


def _of_rows(parameter: Any) -> Tensor:
    gradients: Tensor = parameter.grad_sample.flatten(1)
    return gradients
