"""Norms, clipped sums and noise are float64, whatever this process allows its matrix products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import clipping
from gradtf_fl.training.clipping import unit_sum
from gradtf_fl.training.dp_sgd import RowLosses, noisy_step, private_optimizer
from gradtf_fl.training.randomness import Draws

from .conftest import lora_model, trainable

NONE = torch.tensor([], dtype=torch.long)
PRODUCTS = ("mm", "mv", "bmm", "addmm", "addmv", "baddbmm", "matmul", "linear", "dot")


SWITCHES = (
    "autocast",
    "autocast-half",
    "high",
    "medium",
    "cuda-tf32",
    "cuda-bf16-reduction",
    "cudnn-tf32",
    "mkldnn-bf16",
    "all-tf32",
)
"""Every way in which a process lets PyTorch round the products of float32 numbers, or cast them."""


@contextmanager
def switched(how: str) -> Iterator[None]:
    """One of `SWITCHES` on."""
    if how.startswith("autocast"):
        with torch.autocast("cpu", torch.float16 if how.endswith("half") else torch.bfloat16):
            yield
        return
    backends: Any = torch.backends
    owner, name, value = {
        "high": (None, "float32_matmul_precision", "high"),
        "medium": (None, "float32_matmul_precision", "medium"),
        "cuda-tf32": (backends.cuda.matmul, "allow_tf32", True),
        "cuda-bf16-reduction": (backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", True),
        "cudnn-tf32": (backends.cudnn, "allow_tf32", True),
        "mkldnn-bf16": (backends.mkldnn.matmul, "fp32_precision", "bf16"),
        "all-tf32": (backends, "fp32_precision", "tf32"),
    }[how]
    before = torch.get_float32_matmul_precision() if owner is None else getattr(owner, name)
    try:
        if owner is None:
            torch.set_float32_matmul_precision(value)
        else:
            setattr(owner, name, value)
        yield
    finally:
        if owner is None:
            torch.set_float32_matmul_precision(before)
        else:
            setattr(owner, name, before)


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


def clipped() -> torch.Tensor:
    """Of one block, and of several."""
    gradients = torch.randn(64, 500, generator=torch.Generator().manual_seed(0))
    return torch.stack([unit_sum([gradients], 0.5), unit_sum(torch.split(gradients, 100, dim=1), 0.5)])


@pytest.mark.parametrize("how", SWITCHES)
@pytest.mark.parametrize("block", [64 * 500, 64 * 30], ids=["whole", "blocks"])
def test_a_clipped_sum_has_the_same_bits_and_is_no_product(
    how: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TF32 is CUDA's, bfloat16 that of some CPUs: that neither is asked shows without either."""
    monkeypatch.setattr(clipping, "AT_ONCE", block)
    expected = clipped()
    with switched(how), Operators() as ran:
        found = clipped()
    assert torch.equal(found, expected)
    assert not set(ran.names) & set(PRODUCTS)
    assert ran.types <= {torch.float32, torch.float64, torch.bool}
    assert found.dtype == torch.float64


@pytest.mark.parametrize("how", SWITCHES)
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
    with switched(how):
        noise, norm = steps()
    assert torch.equal(noise, expected)
    assert 0.99e-3 < norm <= 1e-3
