"""Benchmarks: what ``gradtf bench`` measures, and the measurements that are started by module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from experiments.bench.dp import FULL_DP, QUICK_DP, bench_dp
    from experiments.bench.federation import FULL_FEDERATION, QUICK_FEDERATION, bench_federation
    from experiments.bench.flower_private import (
        Key,
        dequantize,
        generate_key_pairs,
        generate_shared_key,
        pseudo_rand_gen,
    )
    from experiments.bench.flower_secagg import FlowerClient, Residues, ServerView, pair_mask_sign, play_round
    from experiments.bench.secagg import FULL_SECAGG, QUICK_SECAGG, bench_secagg
    from experiments.bench.secagg_round import MeasuredRound
    from experiments.bench.vector_sizes import ALL_SIZES, QUICK_SIZES, bench_sizes
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ALL_SIZES",
    "FULL_DP",
    "FULL_FEDERATION",
    "FULL_SECAGG",
    "QUICK_DP",
    "QUICK_FEDERATION",
    "QUICK_SECAGG",
    "QUICK_SIZES",
    "FlowerClient",
    "Key",
    "MeasuredRound",
    "Residues",
    "ServerView",
    "bench_dp",
    "bench_federation",
    "bench_secagg",
    "bench_sizes",
    "dequantize",
    "generate_key_pairs",
    "generate_shared_key",
    "pair_mask_sign",
    "play_round",
    "pseudo_rand_gen",
]
