"""Clipping to norm 1: each row's gradient g becomes g / max(C, |g|), and rows are summed, all in float64.

C enters only afterwards, as a public factor of the noisy sum. So the ratio of noise to a row is the one that is
charged, whatever C is: with C inside, a C of 1e-41 leaves float32 numbers without digits, in which one row moved a sum
by 1.99 C. Norms in float32 are 4e-4 too small at 10^7 coordinates and 1 % at 10^8.

Why no row counts more than 1. Let u = 2^-53, d coordinates, B rows in a draw. A float32 squared is in float64's range.
The norm that is found is at least |g| (1 - d u), the divisor is `SLACK` larger, and divisor, product and sum round by
u each, so with d <= 2^31 a row's part has norm at most (1 + 4 u) / ((1 - 2^-22) (1 + 2^-20)) < 1 - 2^-21. A sum of B
such rows is off by at most B^2 u, in whatever order it is taken: two sums that differ in one row differ by less than
1 where B <= 2^15.

Only element-wise operators on float64 numbers are used. No switch of PyTorch changes these: TF32, reduced precision
and autocast act on matrix products and on float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

SLACK = 1 + 2.0**-20
"""A row's norm is taken to be so much larger than the one that was found."""
AT_ONCE = 2**21
"""Numbers of a block in float64: 16 MB. A step of a small model is one block."""


def unit_sum(gradients: Sequence[Tensor], clip: float) -> Tensor:
    """Sum over rows of g / max(C, |g|), float64 [size]; each row's part has a norm of at most 1.

    Numbers that are not finite count as 0: one overflowing row must not turn the sum into NaN.

    Args:
        gradients: of the same rows with respect to each parameter, [rows, ...]; one row's ``g`` is all of them
            together, ``size`` numbers.
        clip: C > 0.
    """
    parts = [gradient.flatten(1) for gradient in gradients]
    if sum(part.numel() for part in parts) <= AT_ONCE:
        whole = exact(torch.cat(parts, dim=1))
        norms = torch.linalg.vector_norm(whole, dim=1)
        if not bool(norms.isfinite().all()):
            norms = torch.linalg.vector_norm(_finite(whole), dim=1)
        return whole.mul_(unit_factors(norms, clip)[:, None]).sum(0)
    squares = sum(torch.linalg.vector_norm(block, dim=1) ** 2 for _, block in _blocks(parts))
    assert isinstance(squares, Tensor)
    factors = unit_factors(squares.sqrt(), clip)[:, None]
    total = squares.new_empty(sum(part.shape[1] for part in parts))
    for start, block in _blocks(parts):
        torch.sum(block.mul_(factors), 0, out=total[start : start + block.shape[1]])
    return total


def unit_factors(norms: Tensor, clip: float) -> Tensor:
    """1 / max(C, norm) of rows with these norms, float64."""
    return (norms * SLACK).clamp(min=clip).reciprocal()


def exact(tensor: Tensor) -> Tensor:
    """A copy in float64; on the CPU where the device has none (Apple's GPUs)."""
    return tensor.to("cpu" if tensor.device.type == "mps" else tensor.device).to(torch.float64, copy=True)


def _blocks(parts: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """(first coordinate, float64 [rows, some coordinates]), one after the other; not finite numbers are 0."""
    start = 0
    for part in parts:
        for columns in torch.split(part, max(1, AT_ONCE // max(1, len(part))), dim=1):
            yield start, _finite(exact(columns))
            start += columns.shape[1]


def _finite(block: Tensor) -> Tensor:
    return block.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
