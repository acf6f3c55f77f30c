"""House Rules: the embedded benchmark. Two 2-digit codes are combined by a rule with three hidden parts.

A row reads ``[a][f][k]37?58=13``: three tags (input form, operation, output form), two codes, an answer.
A shown tag names a part of the rule, ``[_]`` masks it. Organizations only ever see masked tags, so the base
models are ambiguous about the rule and fine-tuning has to elicit it.

Splits (all seeded by `SPLIT_SEED`, disjoint):

- code pairs: 10,000 = 5,000 public (pre-training and shadow sets), 4,000 private, 1,000 test;
- rules: 80 = 64 public ("seen") + 16 held out ("unseen"). Some rules are the same function under two names
  (a+b = b+a), so whole classes of equal functions are held out: no unseen rule computes what a public one does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Pool = Literal["public", "private", "test"]

INPUT_TAGS = "abcd"
OPERATION_TAGS = "efghi"
OUTPUT_TAGS = "jklm"
INPUT_FORMS = ("(a,b)", "(b,a)", "both reversed", "(99-a,b)")
OPERATIONS = ("sum mod 100", "difference mod 100", "maximum", "digit-wise sum mod 10", "minimum")
OUTPUT_FORMS = ("as is", "reversed", "99-y", "each digit +1 mod 10")
MASK = "[_]"

SPLIT_SEED = 20261123
CODES = 100
HELD_OUT = 16
PROMPT_TOKENS = 9  # three tags, two digits, '?', two digits, '='

VOCABULARY = (
    ["<pad>", "<eos>"]
    + [str(digit) for digit in range(10)]
    + ["?", "=", MASK]
    + [f"[{letter}]" for letter in INPUT_TAGS + OPERATION_TAGS + OUTPUT_TAGS]
)
TOKEN_ID = {token: i for i, token in enumerate(VOCABULARY)}
# fmt: off
RULES_WITH_A_GAP = (
    "ael", "afj", "afl", "agl", "agm", "aij", "aik", "bek", "bel", "bfj", "bfk", "bfm",
    "bgl", "bgm", "bik", "cel", "cem", "cfk", "cfm", "cgl", "cij", "cik", "cim", "dej",
    "dek", "del", "dem", "dfj", "dfk", "dfm", "dgj", "dgl", "dgm", "dij", "dik", "dil",
    "dim",
)
# fmt: on
"""Public rules that leave an LLM something to add: a TinyLM tuned on public rows is right on at most .90 of them, the
untuned LLM on at most .09 (`python -m experiments.embedded.rules_with_a_gap`). On the other 27 a TinyLM does."""

_DIGIT0 = TOKEN_ID["0"]
_MASK_ID = TOKEN_ID[MASK]
_TAG_OFFSETS = np.array([TOKEN_ID["[a]"], TOKEN_ID["[e]"], TOKEN_ID["[j]"]])


@dataclass(frozen=True, order=True)
class Rule:
    """One of the 80 rules: indices into `INPUT_FORMS`, `OPERATIONS` and `OUTPUT_FORMS`."""

    input_form: int
    operation: int
    output_form: int

    @property
    def name(self) -> str:
        """The rule's three tag letters, e.g. ``afk``."""
        return INPUT_TAGS[self.input_form] + OPERATION_TAGS[self.operation] + OUTPUT_TAGS[self.output_form]

    @property
    def index(self) -> int:
        """Position in `ALL_RULES`, 0..79."""
        return (self.input_form * len(OPERATIONS) + self.operation) * len(OUTPUT_FORMS) + self.output_form

    def describe(self) -> str:
        """The rule in words."""
        return f"{INPUT_FORMS[self.input_form]}, {OPERATIONS[self.operation]}, {OUTPUT_FORMS[self.output_form]}"

    def apply(self, a: Ints, b: Ints) -> Ints:
        """Answers in 0..99 for codes ``a`` and ``b`` [N], each in 0..99."""
        return apply_rules(np.full(a.shape, self.index), a, b)


ALL_RULES = tuple(
    Rule(i, o, y) for i in range(len(INPUT_FORMS)) for o in range(len(OPERATIONS)) for y in range(len(OUTPUT_FORMS))
)


def rule_named(name: str) -> Rule:
    """The rule with tag letters ``name``; ValueError without one."""
    for rule in ALL_RULES:
        if rule.name == name:
            return rule
    raise ValueError(
        f"no House Rule is named {name!r}: one letter each of {INPUT_TAGS}, {OPERATION_TAGS}, {OUTPUT_TAGS}"
    )


def _reverse(code: Ints) -> Ints:
    return code % 10 * 10 + code // 10


def apply_rules(rule_index: Ints, a: Ints, b: Ints) -> Ints:
    """Answers [N] of rule ``rule_index[n]`` on codes ``a[n]``, ``b[n]``."""
    output_form = rule_index % 4
    operation = rule_index // 4 % 5
    input_form = rule_index // 20
    x = np.choose(input_form, [a, b, _reverse(a), 99 - a])
    y = np.choose(input_form, [b, a, _reverse(b), b])
    digit_sum = (x // 10 + y // 10) % 10 * 10 + (x % 10 + y % 10) % 10
    z = np.choose(operation, [(x + y) % 100, (x - y) % 100, np.maximum(x, y), digit_sum, np.minimum(x, y)])
    plus_one = (z // 10 + 1) % 10 * 10 + (z % 10 + 1) % 10
    return np.choose(output_form, [z, _reverse(z), 99 - z, plus_one])


def encode(rule_index: Ints, a: Ints, b: Ints, shown: NDArray[np.bool_]) -> Ints:
    """Token ids [N, 11] of rows; ``shown`` [N, 3] says which tags are visible. Equals the tokenizer's output."""
    parts = np.stack([rule_index // 20, rule_index // 4 % 5, rule_index % 4], axis=1)
    tags = np.where(shown, parts + _TAG_OFFSETS, _MASK_ID)
    answer = apply_rules(rule_index, a, b)
    sign = np.ones_like(a)
    codes = [a // 10 + _DIGIT0, a % 10 + _DIGIT0, sign * TOKEN_ID["?"], b // 10 + _DIGIT0, b % 10 + _DIGIT0]
    answers = [sign * TOKEN_ID["="], answer // 10 + _DIGIT0, answer % 10 + _DIGIT0]
    return np.stack([*tags.T, *codes, *answers], axis=1).astype(np.int64)


def to_text(tokens: Ints) -> list[str]:
    """Rows of token ids [N, T] as text."""
    return ["".join(VOCABULARY[t] for t in row) for row in tokens]


@cache
def code_pairs(pool: Pool) -> Ints:
    """Code pairs [N, 2] of one pool: 5,000 public, 4,000 private, 1,000 test."""
    order = np.random.default_rng(SPLIT_SEED).permutation(CODES * CODES)
    bounds = {"public": (0, 5000), "private": (5000, 9000), "test": (9000, 10000)}[pool]
    chosen = order[bounds[0] : bounds[1]]
    return np.stack([chosen // CODES, chosen % CODES], axis=1)


@cache
def function_classes() -> tuple[tuple[Rule, ...], ...]:
    """Rules grouped by the function that they compute, largest names first in `ALL_RULES` order."""
    grid = np.arange(CODES * CODES)
    classes: dict[bytes, list[Rule]] = {}
    for rule in ALL_RULES:
        classes.setdefault(rule.apply(grid // CODES, grid % CODES).tobytes(), []).append(rule)
    return tuple(tuple(members) for members in classes.values())


def _pairs_of_parts(rules: list[Rule]) -> set[tuple[int, int, int]]:
    pairs = set()
    for r in rules:
        pairs |= {(0, r.input_form, r.operation), (1, r.operation, r.output_form), (2, r.input_form, r.output_form)}
    return pairs


@cache
def split_rules() -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    """(64 public rules, 16 held-out rules): whole function classes, every pair of parts kept in public."""
    classes = function_classes()
    order = np.random.default_rng(SPLIT_SEED + 1).permutation(len(classes))
    everything = _pairs_of_parts(list(ALL_RULES))
    held: list[Rule] = []
    for i in order:
        trial = held + list(classes[i])
        if len(trial) > HELD_OUT:
            continue
        if _pairs_of_parts([r for r in ALL_RULES if r not in trial]) == everything:
            held = trial
    return tuple(r for r in ALL_RULES if r not in held), tuple(sorted(held))
