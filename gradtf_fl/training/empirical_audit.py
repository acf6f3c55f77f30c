"""One-run auditing of the real DP-SGD trainer on the embedded TinyLM: train once, guess, bound.

The trainer is called as organizations call it. Rows, canaries and the model's hooks are the auditor's
(`canaries`); what the guesses prove is counted in `gradtf_fl.privacy.empirical`. The same is done once more with
sigma = 0: an audit whose positive control is not caught has no power, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradtf_fl.adapters import AdaptedModel, AdapterSpec
from gradtf_fl.errors import VerificationFailed
from gradtf_fl.privacy import Bools, Floats, Guesses, LowerBound, lower_bound, score_guesses
from gradtf_fl.tasks import Persons, Row, TokenRows, encode_rows, house_rules_federation
from gradtf_fl.training.audit_plan import GRADIENT_NORM, RANK, SCORES, AuditPlan
from gradtf_fl.training.canaries import (
    Directions,
    GradientCanaries,
    NoisyGradients,
    b_matrices,
    blank,
    coordinate_energy,
    join,
    repeated,
    row_losses,
)
from gradtf_fl.training.dp_sgd import train_dp
from gradtf_fl.training.sensitivity import Sensitivity, Trainer, measure_sensitivity

AuditProgress = Callable[[str, int, int], None]
"""Called with (what happens now, steps done, steps in all)."""
CODES = 100


@dataclass(frozen=True)
class ScoreResult:
    """What one way of scoring proved; ``bound`` compares it with the claim."""

    guesses: Guesses
    bound: LowerBound

    def to_json(self) -> dict[str, Any]:
        """Guesses, lower bounds on epsilon and p-values of the claim."""
        return {
            **asdict(self.guesses),
            "lower_bound": self.bound.epsilon,
            "by_pair": self.bound.pair,
            "by_curve": self.bound.curve,
            "noise_multiplier_below": self.bound.noise,
            "p_value_pair": self.bound.pair_p,
            "p_value_curve": self.bound.curve_p,
            "refutes_claim": self.bound.refutes,
        }


@dataclass(frozen=True)
class Play:
    """One training run: the coins of each kind of canary [m], and a result for each of `SCORES`."""

    gradient_coins: Bools
    row_coins: Bools
    steps_seen: int
    scores: Mapping[str, ScoreResult]

    @property
    def lower_bound(self) -> float:
        """The greatest bound, which holds together with all the others."""
        return max(result.bound.epsilon for result in self.scores.values())

    @property
    def refuting(self) -> list[str]:
        """Scores that refute the claim."""
        return [name for name, result in self.scores.items() if result.bound.refutes]

    def to_json(self) -> dict[str, Any]:
        """Results by score, and the coins as hexadecimal bits, first canary first."""
        return {
            "lower_bound": self.lower_bound,
            "scores": {name: result.to_json() for name, result in self.scores.items()},
            "gradient_coins": np.packbits(self.gradient_coins).tobytes().hex(),
            "row_coins": np.packbits(self.row_coins).tobytes().hex(),
        }


@dataclass(frozen=True)
class AuditResult:
    """The audited run, its positive control without noise, and the trainer's sensitivity."""

    plan: AuditPlan
    audit: Play
    control: Play
    sensitivity: Sensitivity

    @property
    def problems(self) -> list[str]:
        """Why the audit fails; empty when the claim stands."""
        found = [
            f"the {name} score proves epsilon above {self.audit.scores[name].bound.epsilon:.2f}; "
            f"claimed is {self.plan.claimed_epsilon:.2f}"
            for name in self.audit.refuting
        ]
        if self.audit.steps_seen != self.plan.steps:
            found.append(f"the trainer took {self.audit.steps_seen} steps, {self.plan.steps} are accounted for")
        found += self.sensitivity.problems
        if not self.control.refuting:
            found.append(
                "the positive control (no noise) was not caught: this audit has no power; use more canaries or a "
                "smaller epsilon"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """The audit document."""
        return {
            "plan": self.plan.to_json(),
            "plan_sha256": self.plan.sha256,
            "claimed_epsilon": self.plan.claimed_epsilon,
            "delta": self.plan.delta,
            "lower_bound": self.audit.lower_bound,
            "confidence": self.plan.confidence,
            "bound_confidence": self.plan.bound_confidence,
            "attainable": self.plan.attainable,
            "audit": self.audit.to_json(),
            "control": self.control.to_json(),
            "control_caught_by": self.control.refuting,
            "sensitivity": asdict(self.sensitivity),
            "passed": not self.problems,
            "problems": self.problems,
        }


def run_audit(plan: AuditPlan, progress: AuditProgress, train: Trainer = train_dp) -> AuditResult:
    """Check the trainer's sensitivity, play once with the planned noise and once without, and bound.

    Args:
        train: called as `train_dp`; tests pass broken ones.

    Raises:
        VerificationFailed: the trainer's gradients are not seen, or what it trained is not a number.
    """
    total = 2 * plan.steps
    progress("sensitivity", 0, total)
    sensitivity = measure_sensitivity(train)
    audit = play(plan, plan.sigma, plan.seed, train, lambda done: progress("train", done, total))
    control = play(plan, 0.0, plan.seed + 1, train, lambda done: progress("control", plan.steps + done, total))
    return AuditResult(plan, audit, control, sensitivity)


def play(plan: AuditPlan, sigma: float, seed: int, train: Trainer, on_step: Callable[[int], None]) -> Play:
    """Toss the coins, train once with noise ``sigma``, score every canary and count the guesses."""
    rng = np.random.default_rng([seed, 0x41554449])
    tiny = AdaptedModel.load("embedded:tiny", AdapterSpec(rank=RANK, alpha=2.0 * RANK, train_a=False))
    model = tiny.attach()
    rows, wrong = _task_rows(plan, tiny.tokenizer, rng)
    directions = Directions.draw(coordinate_energy(model, join([rows, wrong])), plan.gradient_canaries, rng)
    gradient_coins = rng.integers(0, 2, plan.gradient_canaries).astype(bool)
    row_coins = rng.integers(0, 2, plan.row_canaries).astype(bool)
    matrices = b_matrices(model)
    with torch.no_grad():
        first_loss, start = row_losses(model, wrong), _flat(matrices)
    with GradientCanaries(model, directions, GRADIENT_NORM * plan.clip) as canaries, NoisyGradients(matrices) as seen:
        marked = canaries.rows(rows.input_ids.shape[1])
        copies = plan.rows_per_canary
        played = [repeated(blank(wrong, row_coins), copies), repeated(blank(marked, gradient_coins), copies)]
        train(
            model,
            join([rows, *played]),
            sigma=sigma,
            clip=plan.clip,
            batch=plan.batch,
            steps=plan.steps,
            rate=plan.rate,
            seed=seed if plan.replay else None,
            progress=lambda done, _: on_step(done),
            **({"persons": _persons(plan)} if plan.unit == "person" else {}),
        )
    if not seen.steps:
        raise VerificationFailed("no gradient was seen between the trainer and its optimizer: nothing can be audited")
    with torch.no_grad():
        last_loss, end = row_losses(model, wrong), _flat(matrices)
    moved = directions.along(seen.stacked()) * plan.batch / plan.clip
    scores = {
        "steps": (likelihood_ratio(moved, plan.event.q, plan.sigma), gradient_coins, plan.gradient_guesses),
        "update": (directions.along(start - end), gradient_coins, plan.gradient_guesses),
        "loss": ((first_loss - last_loss).double().numpy(), row_coins, plan.row_guesses),
    }
    results = {name: _result(plan, *scores[name]) for name in SCORES}
    return Play(gradient_coins, row_coins, len(seen.steps), results)


def likelihood_ratio(moved: NDArray[np.float64], q: float, sigma: float) -> Floats:
    """Log likelihood ratio [m] of "in" against "out", from each canary's part of the steps [steps, m] in units of C.

    A canary that is out shows Normal(0, sigma^2); one that is in is drawn with probability q and then shows
    Normal(1, sigma^2) (Neyman and Pearson's test of the subsampled Gaussian).
    """
    drawn = (2 * moved - 1) / (2 * sigma**2)
    with np.errstate(divide="ignore"):  # q = 1: log 0
        ratio: Floats = np.logaddexp(np.log1p(-q), np.log(q) + drawn).sum(0)
    return ratio


def _result(plan: AuditPlan, scores: Floats, coins: Bools, guesses: int) -> ScoreResult:
    if not np.isfinite(scores).all():
        raise VerificationFailed("the trained adapter holds numbers that are not finite: nothing can be audited")
    made = score_guesses(scores, coins, guesses, guesses)
    return ScoreResult(made, lower_bound(made, plan.event, plan.delta, plan.bound_confidence))


def _task_rows(plan: AuditPlan, tokenizer: Any, rng: np.random.Generator) -> tuple[TokenRows, TokenRows]:
    """Rows that follow one House Rule, and row canaries: other codes, each with a wrong answer of its own."""
    count = plan.rows + plan.row_canaries
    made = house_rules_federation("same", 1, count, 1, int(rng.integers(2**31)))[0].train
    wrong = [Row(row.prompt, _other_answer(row.answer, rng)) for row in made[plan.rows :]]
    return encode_rows(made[: plan.rows], tokenizer), encode_rows(wrong, tokenizer)


def _persons(plan: AuditPlan) -> Persons:
    """Each ordinary row and each canary, with all of its rows, is a person."""
    rows, copies = plan.rows, plan.rows_per_canary
    canaries = plan.row_canaries + plan.gradient_canaries
    alone = [(row,) for row in range(rows)]
    several = [tuple(range(rows + copies * one, rows + copies * (one + 1))) for one in range(canaries)]
    return Persons((*alone, *several), copies)


def _other_answer(answer: str, rng: np.random.Generator) -> str:
    return f"{(int(answer) + int(rng.integers(1, CODES))) % CODES:02d}"


def _flat(matrices: list[torch.nn.Parameter]) -> torch.Tensor:
    return torch.cat([b.detach().flatten() for b in matrices])
