"""The paper's bounds (section 5, appendix B) as functions: Lemma 5.1, Theorem 5.2, Corollary 5.3. All in nats.

Both follow from one step. For laws P and Q and any f, Donsker and Varadhan give E_P[f] <= KL(P || Q) + log E_Q[e^f].
Take f = lambda (mean loss of n rows - population loss): under Q the model is independent of the rows, the mean of n
independent sigma-subgaussian losses has log E_Q[e^f] <= lambda^2 sigma^2 / (2 n), and the best lambda of either sign
gives |E_P[gap]| <= sqrt(2 sigma^2 KL(P || Q) / n). docs/theory.md has the derivations, and where the paper is loose.

The loss has to be subgaussian for EVERY fixed model. Cross-entropy is not, unless it is clipped: `bounded_subgaussian`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from gradtf_fl.errors import ConfigError


def bounded_subgaussian(low: float, high: float) -> float:
    """Subgaussian parameter (high - low) / 2 of a loss clipped to [low, high] (Hoeffding's lemma), in the loss' unit.

    Raises ConfigError when the range is empty or not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"the loss must be clipped to a finite range, not [{low}, {high}]")
    return (high - low) / 2


def generalization_bound(*, mutual_information: float, rows: int, subgaussian: float) -> float:
    """Lemma 5.1, equation (13): |E[population loss - mean loss on the shadow rows]| <= sqrt(2 sigma^2 I / n).

    The expectation is over the draw of the rows and the randomness of training: a single run may exceed it.

    Args:
        mutual_information: I(W; D) or an upper bound of it, nats; W is everything that the scored model is made of.
        rows: n, independent rows of D. Rows drawn twice into overlapping shadow sets count once.
        subgaussian: sigma, see `bounded_subgaussian`.

    Returns:
        The bound in the unit of the loss; ``inf`` for infinite information.

    Raises:
        ConfigError: every argument outside its range.
    """
    _check({"mutual_information": mutual_information}, {"rows": rows}, subgaussian)
    return subgaussian * math.sqrt(2 * mutual_information / rows)


def absolute_gap_bound(*, mutual_information: float, rows: int, subgaussian: float) -> float:
    """E|population loss - mean loss on the shadow rows| <= sqrt(2 sigma^2 (I + log 2) / n).

    Lemma 5.1 bounds the absolute value of a mean. The mean of the absolute value costs log 2 more: in the proof,
    E_Q[e^|f|] <= E_Q[e^f] + E_Q[e^-f]. Arguments and errors as for `generalization_bound`.
    """
    _check({"mutual_information": mutual_information}, {"rows": rows}, subgaussian)
    return subgaussian * math.sqrt(2 * (mutual_information + math.log(2)) / rows)


def utility_bound(*, mutual_information: float, divergence: float, private_rows: int, subgaussian: float) -> float:
    """Theorem 5.2: |E[mean loss on the private rows - population loss under the shadow distribution]|
    <= sqrt(2 sigma^2 (I / m + KL)), which is sqrt(2 sigma^2 (I + KL of the whole data sets) / m).

    The divergence of the DATA SETS of m rows is m times that of one row, so the second term does not shrink with
    more private rows. Dividing a row's divergence by m gives a false statement (docs/theory.md, a counterexample).

    Args:
        mutual_information: I(W; D_private) or an upper bound of it, nats.
        divergence: KL(private || shadow) of ONE row, nats. An estimate from samples is a lower bound of it, and
            then this is no bound either.
        private_rows: m.
        subgaussian: sigma under the SHADOW distribution.

    Returns:
        The bound in the unit of the loss; ``inf`` when either term is.

    Raises:
        ConfigError: every argument outside its range.
    """
    terms = {"mutual_information": mutual_information, "divergence": divergence}
    _check(terms, {"private_rows": private_rows}, subgaussian)
    return subgaussian * math.sqrt(2 * (mutual_information / private_rows + divergence))


def shadow_information(per_set: Iterable[float]) -> float:
    """Corollary 5.3: I(phi; D) <= sum over shadow sets of I(theta'_i; D_i), nats; theta'_i: both shadow models.

    Holds when phi is made from the update-vector tuples ALONE (the ``mse`` objective) and each set is trained with
    its own randomness. A Grad-Transformer trained through the LLM's loss on shadow rows (``functional``) has read
    the rows themselves, and this says nothing about it.

    Raises ConfigError when a term is negative or missing.
    """
    terms = list(per_set)
    if not terms or any(math.isnan(term) or term < 0 for term in terms):
        raise ConfigError("mutual information: one figure >= 0 for each shadow set")
    return math.fsum(terms)


def _check(terms: dict[str, float], counts: dict[str, int], subgaussian: float) -> None:
    problems = [f"{name} must be >= 0, not {value}" for name, value in terms.items() if not value >= 0]
    problems += [f"{name} must be at least 1, not {value}" for name, value in counts.items() if value < 1]
    if not (math.isfinite(subgaussian) and subgaussian > 0):
        problems.append(f"subgaussian must be a finite number > 0, not {subgaussian}")
    if problems:
        raise ConfigError(problems)
