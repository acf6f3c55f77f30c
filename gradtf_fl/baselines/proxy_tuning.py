"""Proxy tuning (Liu et al. 2024, arXiv 2401.08565): steer the LLM at decode time, without tuning it.

logits = LLM base + (TinyLM tuned - TinyLM base), at every position. There is no LLM update: the provider, or whoever
runs the LLM, keeps both TinyLMs alongside it and pays three forward passes a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradtf_fl.baselines.interface import Case, Outcome, Pair
from gradtf_fl.baselines.vocabulary import require_one_vocabulary, shared_width
from gradtf_fl.tasks import TokenRows


@dataclass(frozen=True)
class ProxyTuning:
    """Teacher-forced proxy tuning; greedy exact match equals that of decoding (see `tasks.exact_match`).

    >>> import torch
    >>> from gradtf_fl import AdapterSpec, Case, Pair, ProxyTuning, Row, run_baseline
    >>> pair = Pair.load("embedded:tiny", "embedded:llm", AdapterSpec())
    >>> case = Case(torch.zeros(2, *pair.tiny.initial.shape), seed=0)  # two organizations that did not train
    >>> outcome = run_baseline(ProxyTuning(), pair, case)
    >>> row = Row("[_][_][_]37?58=", "13")
    >>> [0 <= share <= 1 for share in outcome.score([[row], [row]]).exact_match]
    [True, True]
    """

    name: str = "proxy-tuning"
    private_rows_leave: bool = False
    source: str = "Liu et al. 2024, arXiv 2401.08565"

    def run(self, pair: Pair, case: Case) -> Outcome:
        """Logits from three models; ConfigError when the pair has two vocabularies."""
        require_one_vocabulary(pair, "proxy tuning")
        adapters, width = case.organizations, shared_width(pair)
        llm_base = pair.llm.initial.expand(adapters, -1, -1)
        tiny_base = pair.tiny.initial.expand(adapters, -1, -1)
        tiny_tuned = pair.tiny.initial + case.updates

        def logits(rows: TokenRows) -> Tensor:
            tuned = pair.tiny.answer_logits(tiny_tuned, rows)[..., :width]
            shift = tuned - pair.tiny.answer_logits(tiny_base, rows)[..., :width]
            return pair.llm.answer_logits(llm_base, rows)[..., :width] + shift

        return Outcome(None, logits, pair.llm.tokenizer, min(pair.tiny.max_tokens, pair.llm.max_tokens))
