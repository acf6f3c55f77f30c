"""Are an organization's private rows near enough to the public ones? Runs at the organization; the answer stays there.

Two looks at the same rows. Nearness: a private row has a near public row if its greatest cosine to any of them is no
lower than that of 95 of 100 public rows to the other public ones. Rows of the public distribution fail that in 1 case
out of 20, whatever the task. Tellable: the classifier of `divergence`. It also sees mere style: on GSM8K against AQuA,
both mathematics, it is right always, while most rows do have a near one.

What it cannot see: two rows with the same words and different answers. The rule that turns prompts into answers may
differ where the texts do not (House Rules), so "near" is necessary for a good transfer, not sufficient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.tasks import Row
from gradtf_fl.theory.divergence import Divergence, Interval, area, estimate
from gradtf_fl.theory.features import Bag, Rarity, bag, sources, unit_rows, words

KEEP_LOCAL = "Computed from private rows without noise: keep this output at the organization."
MOST_ROWS = 2000
"""A side; more are sampled down."""
OWN_QUANTILE = 0.05
NEAR_SHARE, FAR_SHARE = 0.10, 0.35
"""Share of rows without a near public one: at most .10 is near, at least .35 is far. Measured with up to 2,000 rows a
side (docs/theory.md): .05 to .09 inside a data set, .13 to .31 between related rows, mostly .33 to .90 otherwise."""
NEAR_AUC, FAR_AUC = 0.90, 0.99
"""Near also means that a classifier can't tell most rows apart."""
FAR_RANK = 0.80
"""Far too is what the classifier always tells apart when rows are lonelier than public ones in 80 of 100 pairs: public
rows that differ much among themselves (DROP) leave hardly any row without a "near" one. Measured: .49 to .55 inside a
data set, .79 for AQuA against GSM8K, .83 and above between unrelated ones."""
CLASSIFIER_FEATURES = 2048
KIND_ROWS, KIND_SHARE = 10, 0.15
"""A kind of rows is named when it has at least 10 rows, and is three times as frequent as among public rows."""


@dataclass(frozen=True)
class RowKind:
    """A kind that 5 % of public rows are of: its share of the private rows, and how many of them lack a near one."""

    what: str
    share: float
    without_near: float


@dataclass(frozen=True)
class Readiness:
    """The verdict and what it rests on.

    Attributes:
        verdict: "near", "some way off" or "far".
        without_near: share of private rows that have no near public row; the interval is Wilson's, 95 %.
        lonelier: chance that a private row is farther from its nearest public row than a public row from its own;
            .5 for rows of one distribution.
        divergence: what the classifier found.
        compared: (private, public) rows compared, after duplicates and sampling.
        given: (private, public) rows given.
        identical: private rows compared that are also a public row, word for word.
        kinds: kinds of rows to look at, the most frequent first.
        farthest: positions, in the rows given, of the compared private rows without a near public one, farthest first.
    """

    verdict: str
    without_near: Interval
    lonelier: float
    divergence: Divergence
    compared: tuple[int, int]
    given: tuple[int, int]
    identical: int
    kinds: tuple[RowKind, ...]
    farthest: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Figures only: no row, no word of a row."""
        return {
            "verdict": self.verdict,
            "without_near_public_row": asdict(self.without_near) | {"expected": OWN_QUANTILE},
            "lonelier_than_a_public_row": self.lonelier,
            "auc": asdict(self.divergence.auc),
            "kl_at_least": asdict(self.divergence.kl),
            "js_at_least": asdict(self.divergence.js),
            "saturated": self.divergence.saturated,
            "rows": {
                "private": self.given[0],
                "public": self.given[1],
                "private_compared": self.compared[0],
                "public_compared": self.compared[1],
                "identical_to_a_public_row": self.identical,
            },
            "kinds": [asdict(kind) for kind in self.kinds],
            "thresholds": {
                "near": {"share_at_most": near_limit(*self.compared), "auc_at_most": NEAR_AUC},
                "far": {"share_at_least": FAR_SHARE, "or_lonelier_and_auc_at_least": [FAR_RANK, FAR_AUC]},
            },
            "keep_local": KEEP_LOCAL,
        }


def assess(private: Sequence[Row], public: Sequence[Row], seed: int = 0) -> Readiness:
    """Compare the two sides; ``seed`` samples and deals folds.

    Raises ConfigError when fewer than 50 different rows are left on a side.
    """
    rng = np.random.default_rng([seed, 0x52454144])
    mine, theirs = _sample(private, rng), _sample(public, rng)
    rows, others = [private[i] for i in mine], [public[i] for i in theirs]
    bags, other_bags = [bag(row) for row in rows], [bag(row) for row in others]
    origins = sources(rows, others)
    told_apart = [unit_rows(side, dimension=CLASSIFIER_FEATURES) for side in (bags, other_bags)]
    divergence = estimate(told_apart[0], told_apart[1], (origins[0], origins[1]), seed)
    rarity = Rarity(other_bags)
    nearest, own = _nearest(unit_rows(bags, rarity), unit_rows(other_bags, rarity), origins[1])
    lacking = nearest < np.quantile(own, OWN_QUANTILE)
    order = np.argsort(nearest, kind="stable")
    known = {_words(row) for row in others}
    lonelier = area(own, nearest)
    return Readiness(
        verdict(float(lacking.mean()), lonelier, divergence.auc.value, near_limit(len(rows), len(others))),
        _wilson(int(lacking.sum()), len(lacking)),
        lonelier,
        divergence,
        (len(rows), len(others)),
        (len(private), len(public)),
        sum(_words(row) in known for row in rows),
        _kinds(rows, others, rarity, lacking),
        tuple(int(mine[i]) for i in order if lacking[i]),
    )


def verdict(without_near: float, lonelier: float, auc: float, near_share: float = NEAR_SHARE) -> str:
    """The word for a share of rows without a near public one, how much lonelier they are, and the classifier's AUC.

    ``near_share`` is the greatest share that is near, see `near_limit`.
    """
    if without_near >= FAR_SHARE or (lonelier >= FAR_RANK and auc >= FAR_AUC):
        return "far"
    return "near" if without_near <= near_share and auc <= NEAR_AUC else "some way off"


def near_limit(private: int, public: int) -> float:
    """`NEAR_SHARE`, or what chance alone may give with so few rows: three standard errors above 5 %."""
    error = math.sqrt(OWN_QUANTILE * (1 - OWN_QUANTILE) * (1 / private + 1 / public))
    return max(NEAR_SHARE, OWN_QUANTILE + 3 * error)


def _sample(rows: Sequence[Row], rng: np.random.Generator) -> list[int]:
    """Positions of at most `MOST_ROWS` different rows, in order."""
    first = list({row: number for number, row in reversed(list(enumerate(rows)))}.values())
    if len(first) > MOST_ROWS:
        first = [first[i] for i in rng.choice(len(first), MOST_ROWS, replace=False)]
    return sorted(first)


def _words(row: Row) -> tuple[str, str]:
    """Its texts, in whatever form it came."""
    return row.prompt.strip(), row.answer.strip()


def _nearest(
    private: NDArray[np.float32], public: NDArray[np.float32], origin: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Greatest cosine of each private row to a public one, and of each public row to one of another origin."""
    to_public: NDArray[np.float32] = (private @ public.T).max(axis=1)
    among = public @ public.T
    among[origin[:, None] == origin] = -1
    own: NDArray[np.float32] = among.max(axis=1)
    return to_public, own


def _wilson(count: int, total: int) -> Interval:
    z = 1.96
    share, weight = count / total, 1 / (1 + z * z / total)
    centre = weight * (share + z * z / (2 * total))
    half = weight * z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def _kinds(
    private: Sequence[Row], public: Sequence[Row], rarity: Rarity, lacking: NDArray[np.bool_]
) -> tuple[RowKind, ...]:
    """Kinds of rows more frequent here than among public rows; the limits come from the public rows alone."""
    ours = np.array([_measures(row, rarity.rows_with, 0) for row in private])
    theirs = np.array([_measures(row, rarity.rows_with, 1) for row in public])
    found = []
    for column, (more, less) in enumerate(MEASURES):
        low, high = np.quantile(theirs[:, column], [OWN_QUANTILE, 1 - OWN_QUANTILE])
        for what, chosen in ((more, ours[:, column] > high), (less, ours[:, column] < low)):
            if what and chosen.sum() >= KIND_ROWS and chosen.mean() >= KIND_SHARE:
                found.append(RowKind(what, float(chosen.mean()), float(lacking[chosen].mean())))
    return tuple(sorted(found, key=lambda kind: -kind.share))


MEASURES = (
    ("prompts longer than 95 % of the public ones", "prompts shorter than 95 % of the public ones"),
    ("answers longer than 95 % of the public ones", "answers shorter than 95 % of the public ones"),
    ("more numbers than 95 % of the public rows have", "fewer numbers than 95 % of the public rows have"),
    ("more words that no public row has than is usual among public rows", ""),
    ("more letters beyond a-z than 95 % of the public rows have", ""),
)
"""Names of many and of few, in the order of `_measures`; an empty name is not a kind."""


def _measures(row: Row, rows_with: Bag, itself: int) -> tuple[float, ...]:
    """Length of prompt and answer, and shares of numbers, of words in no other public row, and of letters beyond a-z.

    ``itself`` is 1 for a public row: it has each of its own words.
    """
    found = words(row.prompt) + words(row.answer)
    count = max(1, len(found))
    text = row.prompt + row.answer
    return (
        float(len(row.prompt)),
        float(len(row.answer)),
        found.count("0") / count,
        sum(rows_with[word] <= itself if word in rows_with else True for word in found) / count,
        sum(ord(letter) > 127 for letter in text) / max(1, len(text)),
    )
