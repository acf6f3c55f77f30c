"""Which public rules leave the LLM something to add: the pool that `gradtf simulate --rules same` draws from.

    python -m experiments.embedded.rules_with_a_gap   # prints RULES_WITH_A_GAP of gradtf_fl/tasks/house_rules.py

A rule is in the pool when the TinyLM, tuned on public rows without DP, is right on at most .90 of fresh public rows,
and the untuned LLM on at most .09. On the others (digit-wise sums, say) the tuned TinyLM is as good as any LLM: no gap
is left to recover. The Grad-Transformer's own accuracy plays no part in the choice.
"""

from __future__ import annotations

import numpy as np

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.curation import CurationConfig, as_token_rows, single_task
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.training import StackedAdapters, fine_tune_stacked, stack_rows

TINY_AT_MOST, BASE_AT_MOST = 0.90, 0.09
ROWS = 1024


def rules_with_a_gap(seed: int = 7) -> list[hr.Rule]:
    """The pool, in `ALL_RULES` order."""
    rules = list(hr.split_rules()[0])
    recipe, spec = CurationConfig().plain, AdapterSpec()
    tiny, llm = (StackedAdapters.load(f"embedded:{name}", spec) for name in ("tiny", "llm"))
    rng = np.random.default_rng([seed, 1])
    train, test = (
        stack_rows([as_token_rows(single_task(rule).draw(rng, ROWS, "public")) for rule in rules]) for _ in range(2)
    )
    seeds = [[seed, number] for number in range(len(rules))]
    updates = fine_tune_stacked(tiny, train, len(rules), recipe, seeds, [recipe.steps])[0]
    tuned = tiny.accuracy(tiny.initial + updates, test)
    base = llm.accuracy(llm.initial.expand(len(rules), -1, -1), test)
    return [
        rule
        for rule, t, b in zip(rules, tuned.tolist(), base.tolist(), strict=True)
        if t <= TINY_AT_MOST and b <= BASE_AT_MOST
    ]


if __name__ == "__main__":
    print(" ".join(rule.name for rule in rules_with_a_gap()))
