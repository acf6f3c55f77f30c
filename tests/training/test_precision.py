"""Norms, clipped sums and noise are float32, whatever this process allows its matrix products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gradtf_fl.tasks import TokenRows
from gradtf_fl.training.dp_sgd import RowLosses, noisy_step, private_optimizer
from gradtf_fl.training.private_adam import clipped_sum, products_are_exact
from gradtf_fl.training.randomness import Draws

from .conftest import lora_model, trainable

NONE = torch.tensor([], dtype=torch.long)
PRODUCTS = ("mm", "mv", "bmm", "addmm", "addmv", "baddbmm", "matmul", "linear", "dot")


@contextmanager
def rounded_products(how: str) -> Iterator[None]:
    """Matrix products in TF32 or bfloat16 where the hardware has them, by each of torch's switches."""
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            yield
        return
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(how)
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Operators(TorchDispatchMode):
    """Which operators ran, and on which types."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        self.types |= {made.dtype} if isinstance(made, torch.Tensor) else set()
        return made


@pytest.mark.parametrize("how", ["high", "medium"])
def test_a_clipped_sum_is_no_product_where_products_are_rounded(how: str) -> None:
    """TF32 is CUDA's, bfloat16 that of some CPUs: that neither is asked shows without either."""
    gradients = torch.randn(64, 500, generator=torch.Generator().manual_seed(0))
    expected = clipped_sum(gradients, 0.5)
    assert products_are_exact()
    with rounded_products(how), Operators() as ran:
        assert not products_are_exact()
        found = clipped_sum(gradients, 0.5)
    assert not set(ran.names) & set(PRODUCTS)
    assert ran.types <= {torch.float32, torch.bool}
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", ["high", "medium", "autocast"])
def test_noise_has_the_same_bits_and_a_row_counts_at_most_the_clip(random_rows: TokenRows, how: str) -> None:
    def steps() -> tuple[torch.Tensor, float]:
        model = lora_model()
        with private_optimizer(model, trainable(model), 1.5, 0.4, 8.0, 1e-2, Draws.make(3)) as optimizer:
            noisy_step(optimizer, RowLosses(model, random_rows), NONE, 512)
            noise = optimizer.gradient.clone()
        model = lora_model()
        with private_optimizer(model, trainable(model), 0.0, 1e-3, 1.0, 1e-2, Draws.make(3)) as optimizer:
            noisy_step(optimizer, RowLosses(model, random_rows), torch.tensor([3]), 512)
            return noise, float(optimizer.gradient.double().norm())

    expected, _ = steps()
    with rounded_products(how):
        noise, norm = steps()
    assert torch.equal(noise, expected)
    assert 0.99e-3 < norm < 1e-3 * (1 + 1e-6)
