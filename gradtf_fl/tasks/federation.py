"""Private rows of a House Rules federation: who holds which rule, and the rows of each organization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradtf_fl.config import Rules
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.tasks.rows import Row

MIXTURE_OPERATIONS = 3
DIRICHLET_ALPHA = 0.5


@dataclass(frozen=True)
class OrganizationData:
    """One organization's private rows. ``rule`` says in words what they follow (known to the simulation only)."""

    name: str
    train: list[Row]
    test: list[Row]
    rule: str


@dataclass(frozen=True)
class HiddenTask:
    """What prompts show and what they hide: one rule for each value of the shown tags.

    Attributes:
        rules: the rules in play; with no shown tag there is exactly one.
        shown: which of the three tags (input form, operation, output form) the prompt shows.
    """

    rules: tuple[hr.Rule, ...]
    shown: tuple[bool, bool, bool] = (False, False, False)

    def draw(self, rng: np.random.Generator, rows: int, pool: hr.Pool, weights: np.ndarray | None = None) -> hr.Ints:
        """Token ids [rows, 11]: codes without repetition (while the pool lasts), rules by ``weights``."""
        pairs = hr.code_pairs(pool)
        pairs = pairs[rng.choice(len(pairs), rows, replace=rows > len(pairs))]
        index = np.array([rule.index for rule in self.rules])
        which = index[rng.choice(len(index), rows, p=weights)]
        return hr.encode(which, pairs[:, 0], pairs[:, 1], np.tile(np.array(self.shown), (rows, 1)))


def tokens_to_rows(tokens: hr.Ints) -> list[Row]:
    """Token ids [N, 11] as prompt and answer text."""
    texts = hr.to_text(tokens)
    return [Row(text[:-2], text[-2:]) for text in texts]


def draw_task(rules: Rules, rng: np.random.Generator) -> HiddenTask:
    """The federation's hidden task: one seen rule, one unseen rule, or three seen rules told apart by operation.

    ``same`` draws from `house_rules.RULES_WITH_A_GAP`: on other seen rules the TinyLM needs no LLM.
    """
    seen, unseen = hr.split_rules()
    if rules == "same":
        return HiddenTask((hr.rule_named(hr.RULES_WITH_A_GAP[rng.integers(len(hr.RULES_WITH_A_GAP))]),))
    if rules == "unseen":
        return HiddenTask((unseen[rng.integers(len(unseen))],))
    if rules != "mixed":
        raise ConfigError(f"rules {rules!r}: same, mixed or unseen")
    operations = rng.choice(len(hr.OPERATIONS), MIXTURE_OPERATIONS, replace=False)
    drawn = []
    for operation in sorted(operations):
        candidates = [rule for rule in seen if rule.operation == operation]
        drawn.append(candidates[rng.integers(len(candidates))])
    return HiddenTask(tuple(drawn), (False, True, False))


def house_rules_federation(
    rules: Rules, organizations: int, rows: int, test_rows: int, seed: int, alpha: float = DIRICHLET_ALPHA
) -> list[OrganizationData]:
    """Private and test rows of each organization, from the private and test code pairs.

    ``mixed``: each organization's rows are a Dirichlet(``alpha``) mixture of the three rules, test rows included.
    """
    rng = np.random.default_rng([seed, 0x484F5553])
    task = draw_task(rules, rng)
    words = "; ".join(f"{rule.name}: {rule.describe()}" for rule in task.rules)
    made = []
    for number in range(1, organizations + 1):
        weights = rng.dirichlet([alpha] * len(task.rules)) if len(task.rules) > 1 else None
        train = tokens_to_rows(task.draw(rng, rows, "private", weights))
        test = tokens_to_rows(task.draw(rng, test_rows, "test", weights))
        made.append(OrganizationData(f"org-{number}", train, test, words))
    return made


def public_rows(rules: Rules, rows: int, seed: int) -> list[Row]:
    """Rows in the federation's prompt format from the public code pairs, whose answers follow any public rule: what a
    provider can know who knows which tags prompts show, and no more."""
    rng = np.random.default_rng([seed, 0x50524F4D])
    seen = hr.split_rules()[0]
    shown = (False, rules == "mixed", False)
    pairs = hr.code_pairs("public")
    pairs = pairs[rng.choice(len(pairs), rows, replace=rows > len(pairs))]
    index = np.array([seen[i].index for i in rng.integers(len(seen), size=rows)])
    return tokens_to_rows(hr.encode(index, pairs[:, 0], pairs[:, 1], np.tile(np.array(shown), (rows, 1))))
