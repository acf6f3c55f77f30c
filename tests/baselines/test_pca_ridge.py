"""Per-block PCA ridge on planted maps."""

from __future__ import annotations

import numpy as np
import pytest

from gradtf_fl.baselines import PcaRidge
from gradtf_fl.errors import ConfigError


def planted(count: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Tuples whose TinyLM blocks hold 3 hidden factors each; LLM block j mixes the factors of BOTH TinyLM blocks."""
    maps = np.random.default_rng(0)
    into, out = maps.normal(size=(2, 3, 20)), maps.normal(size=(4, 6, 30))
    rng = np.random.default_rng(count)
    factors = rng.normal(size=(count, 2, 3))
    tiny = np.einsum("nbf,bfd->nbd", factors, into) + noise * rng.normal(size=(count, 2, 20))
    llm = np.einsum("nf,jfd->njd", factors.reshape(count, 6), out) + 1.0
    return tiny.astype(np.float32), llm.astype(np.float32)


def test_recovers_a_planted_linear_map_across_blocks() -> None:
    tiny, llm = planted(60)
    fresh_tiny, fresh_llm = planted(5)
    ridge = PcaRidge.fit(tiny, llm)
    made = np.stack([ridge.generate(update) for update in fresh_tiny])
    assert np.linalg.norm(made - fresh_llm) / np.linalg.norm(fresh_llm) < 1e-3
    assert made.dtype == np.float32


def test_rank_and_penalty_answer_to_the_tuples() -> None:
    exact = PcaRidge.fit(*planted(60)).choices
    assert all(choice.rank >= 6 and choice.penalty <= 1e-4 for choice in exact)  # a target block has six factors
    tiny, llm = planted(60)
    unrelated = PcaRidge.fit(np.random.default_rng(1).normal(size=tiny.shape).astype(np.float32), llm)
    assert all(choice.penalty >= 1 for choice in unrelated.choices)  # nothing to learn: shrink to the mean
    far = unrelated.generate(tiny[0])
    assert np.linalg.norm(far - llm.mean(0)) < 0.5 * np.linalg.norm(llm[0] - llm.mean(0))


def test_a_given_rank_limits_the_result() -> None:
    tiny, llm = planted(60)
    ridge = PcaRidge.fit(tiny, llm, ranks=(2,))
    shifts = np.stack([ridge.generate(update)[0] - llm[:, 0].mean(0) for update in tiny])
    assert np.linalg.matrix_rank(shifts, tol=1e-2) == 2


def test_too_few_tuples_are_refused() -> None:
    tiny, llm = planted(9)
    with pytest.raises(ConfigError, match="wanted 10 tuples"):
        PcaRidge.fit(tiny, llm)
