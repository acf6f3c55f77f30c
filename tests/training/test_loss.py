"""The loss of a row: the mean over its own labels, however many positions are taken at a time."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from gradtf_fl.training import loss, row_mean_loss
from gradtf_fl.training.memory import peak_bytes

VOCABULARY = 50


def drawn(rows: int, tokens: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels that begin a position later from row to row; the last row has none."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(vocabulary, (rows, tokens), generator=generator)
    labels[torch.arange(tokens) < torch.arange(rows)[:, None]] = loss.IGNORED
    labels[-1] = loss.IGNORED
    return torch.randn(rows, tokens, vocabulary, generator=generator), labels


@pytest.mark.parametrize("positions", [1, 4, 7, 1000])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_it_is_each_rows_own_mean(positions: int, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", positions * VOCABULARY)
    logits, labels = drawn(5, 7, VOCABULARY)
    given = logits.to(kind).requires_grad_()
    losses = row_mean_loss(given, labels)
    wanted = given.detach().float().requires_grad_()
    each = [functional.cross_entropy(row[:-1], own[1:]) for row, own in zip(wanted[:-1], labels[:-1], strict=True)]
    assert losses.dtype == torch.float32
    assert losses[-1] == 0
    torch.testing.assert_close(losses[:-1], torch.stack(each))
    losses.sum().backward()
    torch.stack(each).sum().backward()
    assert given.grad is not None
    assert wanted.grad is not None
    torch.testing.assert_close(given.grad, wanted.grad.to(kind))


def test_a_large_vocabulary_has_no_further_copy_of_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 16 * 20_000)
    logits, labels = drawn(8, 16, 20_000)
    logits.requires_grad_()
    size = logits.nbytes
    peak = peak_bytes(lambda: torch.autograd.backward(row_mean_loss(logits, labels).sum()))
    assert peak < 2.3 * size  # the gradient in parts and as a whole; 2.8 with a transposed copy
