"""A row's gradient does not depend on its place among other rows: nothing random is in a forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gradtf_fl.config import Sampler
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training.dp_sgd import RowLosses, private_optimizer, train_dp
from gradtf_fl.training.randomness import Draws
from gradtf_fl.training.trainable import check_trainable

from ..adapters.architectures import small_model
from .conftest import lora_model, trainable

DROPOUT: dict[str, dict[str, Any]] = {
    "opt": {"dropout": 0.1, "attention_dropout": 0.1, "layerdrop": 0.5},
    "gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    "llama": {"attention_dropout": 0.1},
    "mixtral": {"attention_dropout": 0.1, "router_jitter_noise": 0.1},
}
TARGETS = {"gpt2": ["c_attn"]}


def dropout_model(architecture: str) -> Any:
    """Dropout wherever the architecture has it, and in LoRA."""
    model = small_model(architecture, **DROPOUT[architecture])
    targets = TARGETS.get(architecture, ["q_proj", "v_proj"])
    config = LoraConfig(r=3, lora_alpha=5, target_modules=targets, lora_dropout=0.1, task_type="CAUSAL_LM")
    if architecture == "gpt2":
        config.fan_in_fan_out = True
    model = get_peft_model(model, config).train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in trainable(model).values():
            p += 0.2 * torch.randn(p.shape, generator=generator)
    return model


def gradients(model: nn.Module, rows: TokenRows, drawn: list[int], **options: Any) -> torch.Tensor:
    with private_optimizer(model, trainable(model), 0.0, 1.0, 8, 1e-2, Draws.make(0), **options) as optimizer:
        optimizer.sampler.backward(RowLosses(model, rows)(torch.tensor(drawn)))
        return optimizer.row_gradients()


@pytest.mark.parametrize("architecture", DROPOUT)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_one_more_row_changes_no_other_rows_gradient(
    random_rows: TokenRows, architecture: str, checkpointing: bool
) -> None:
    """Rows of equal length, one more in front of them, at every seed of the process: the same bits."""
    rows = TokenRows(
        *(tensor[:, :5] for tensor in (random_rows.input_ids, random_rows.attention_mask)), random_rows.labels[:, :5]
    )
    model = dropout_model(architecture)
    torch.manual_seed(1)
    alone = gradients(model, rows, [1, 2, 3, 4, 5, 6, 7], gradient_checkpointing=checkpointing)
    torch.manual_seed(2)
    joined = gradients(model, rows, [0, 1, 2, 3, 4, 5, 6, 7], gradient_checkpointing=checkpointing)
    assert float(alone.norm(dim=1).min()) > 1e-3
    assert torch.equal(joined[1:], alone)
    assert all(module.training for module in model.modules())  # as it was given


@pytest.mark.parametrize("sampler", ["lora", "opacus"])
def test_a_run_takes_nothing_from_the_process_and_dropout_is_off(random_rows: TokenRows, sampler: Sampler) -> None:
    states = []
    for seed, dropout in ((1, 0.5), (2, 0.0)):
        model = lora_model(lora_dropout=dropout)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        train_dp(model, random_rows, sigma=1.0, clip=1.0, batch=6, steps=2, rate=1e-2, seed=1, sampler=sampler)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(torch.cat([p.detach().flatten() for p in trainable(model).values()]))
    assert torch.equal(*states)


class Jitter(nn.Module):
    """Noise in eval mode too, from a generator of the process; or batch statistics, in both modes."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind
        self.own = torch.Generator().manual_seed(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "torch":
            x = x * (1 + 0.1 * torch.rand_like(x))
        elif self.kind == "numpy":
            import numpy as np

            x = x * (1 + 0.1 * np.random.random())
        elif self.kind == "random":
            import random

            x = x * (1 + 0.1 * random.random())
        elif self.kind == "own":
            x = x * (1 + 0.5 * torch.rand(x.shape, generator=self.own))
        elif self.kind == "batch":
            x = x - x.mean(0, keepdim=True)
        y: torch.Tensor = self.inner(x)
        return y


@pytest.mark.parametrize("kind", ["torch", "numpy", "random", "own", "batch"])
def test_what_is_random_or_couples_rows_even_so_is_refused(random_rows: TokenRows, kind: str) -> None:
    model = lora_model()
    layers: Any = model.get_base_model().model.layers
    layers[0].mlp = Jitter(layers[0].mlp, kind)
    message = "own gradient" if kind in ("own", "batch") else rf"draws random numbers.*\({kind}\)"
    with pytest.raises(ConfigError, match=message):
        check_trainable(model)
    with pytest.raises(ConfigError, match=message):
        train_dp(model, random_rows, sigma=1.0, clip=1.0, batch=6, steps=1, rate=1e-2)
