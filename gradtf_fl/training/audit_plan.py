"""The plan of an empirical audit: fixed, hashed and written down before anything is trained. Loads no torch."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gradtf_fl.errors import ConfigError
from gradtf_fl.privacy import DpEvent, attainable_bound, epsilon_prv, noise_multiplier
from gradtf_fl.round_messages import MAX_CLIP, MIN_CLIP
from gradtf_fl.version import __version__

SCORES = {
    "steps": "gradient canaries: log likelihood ratio of drawn against not drawn, over every noisy gradient",
    "update": "gradient canaries: inner product of the canary's direction with the released update",
    "loss": "row canaries: fall of the row's loss from the initial to the released adapter",
}
"""White box (what epsilon covers), white box (what a server sees at most), black box."""
BOUNDS_PER_SCORE = 2
AuditUnit = Literal["row", "person"]
RANK = 32
"""LoRA rank of the audited adapter: 4,096 coordinates in B of the embedded TinyLM, one for each gradient canary."""
MAX_GRADIENT_CANARIES = 4096
MAX_ROWS = 4000
"""Rows and row canaries: the private code pairs of House Rules, each used once."""
GRADIENT_NORM = 20.0
"""Norm of a gradient canary before clipping, in units of the clipping bound."""


@dataclass(frozen=True)
class AuditPlan:
    """What is trained, who is guessed about, and how many guesses are made; `make` fills it in.

    Attributes:
        epsilon, delta: the claim to be tested.
        sigma: the noise multiplier that makes it (PRV).
        confidence: of all bounds together; each has 1 - (1 - confidence) / 6.
        steps, batch, clip, rate: as of `train_dp`.
        rows: ordinary rows of the task.
        gradient_canaries, row_canaries: canaries of each kind; about half of them
            are in, the others are blank, so that the number of rows reveals nothing.
        gradient_guesses, row_guesses: how many canaries are guessed to be in, and how many to be out.
        seed: of coins, canaries and rows.
        replay: the trainer's noise and draws are seeded too.
        unit: what the trainer draws and clips as one, and what the claim is of.
        rows_per_canary: equal rows of each canary, as one person may have: a claim of rows must not be believed of
            it, one of persons must hold.
    """

    epsilon: float
    delta: float
    sigma: float
    confidence: float
    steps: int
    batch: int
    clip: float
    rate: float
    rows: int
    gradient_canaries: int
    row_canaries: int
    gradient_guesses: int
    row_guesses: int
    seed: int
    replay: bool
    unit: AuditUnit = "row"
    rows_per_canary: int = 1

    @classmethod
    def make(
        cls,
        *,
        epsilon: float = 8.0,
        delta: float = 1e-5,
        confidence: float = 0.95,
        steps: int = 50,
        batch: int = 320,
        clip: float = 0.5,
        rate: float = 0.03,
        rows: int = 64,
        gradient_canaries: int = 1500,
        row_canaries: int = 200,
        seed: int | None = None,
        unit: AuditUnit = "row",
        rows_per_canary: int = 1,
    ) -> AuditPlan:
        """A plan with calibrated noise; guessed each way: two fifths of the gradient canaries, a quarter of the others.

        Args:
            seed: replays everything. ``None`` draws a seed for coins and canaries and leaves the trainer's noise to
                the operating system, as in deployment.

        Raises:
            ConfigError: every argument out of range.
        """
        copies = rows_per_canary if unit == "row" else 1
        total = rows + copies * (gradient_canaries + row_canaries)
        problems = [] if rows_per_canary >= 1 else [f"rows of a canary must be at least 1, not {rows_per_canary}"]
        if not 0 < confidence < 1:
            problems.append(f"confidence must lie between 0 and 1, not {confidence}")
        if not 12 <= gradient_canaries <= MAX_GRADIENT_CANARIES:
            problems.append(f"gradient canaries must be 12 to {MAX_GRADIENT_CANARIES}, not {gradient_canaries}")
        if row_canaries < 12 or rows < 1 or rows + row_canaries > MAX_ROWS:
            problems.append(f"rows and at least 12 row canaries, {MAX_ROWS} together at most: {rows} + {row_canaries}")
        if not 1 <= batch <= total:
            problems.append(f"batch must be 1 to the {total} {unit}s of this audit, not {batch}")
        if not MIN_CLIP <= clip <= MAX_CLIP:
            problems.append(f"clip must be {MIN_CLIP:g} to {MAX_CLIP:g}, not {clip}")
        if not (math.isfinite(rate) and rate > 0):
            problems.append(f"rate must be a finite number above 0, not {rate}")
        sigma = math.nan
        try:
            sigma = noise_multiplier(epsilon, delta, 1 if problems else batch / total, steps)
        except ConfigError as error:
            problems.extend(error.problems)
        if problems:
            raise ConfigError(problems)
        return cls(
            epsilon=epsilon,
            delta=delta,
            sigma=sigma,
            confidence=confidence,
            steps=steps,
            batch=batch,
            clip=clip,
            rate=rate,
            rows=rows,
            gradient_canaries=gradient_canaries,
            row_canaries=row_canaries,
            gradient_guesses=2 * gradient_canaries // 5,
            row_guesses=row_canaries // 4,
            seed=secrets.randbits(48) if seed is None else seed,
            replay=seed is not None,
            unit=unit,
            rows_per_canary=rows_per_canary,
        )

    @property
    def total_units(self) -> int:
        """N, of rows or of persons: rows and canaries, blank ones included."""
        copies = self.rows_per_canary if self.unit == "row" else 1
        return self.rows + copies * (self.gradient_canaries + self.row_canaries)

    @property
    def event(self) -> DpEvent:
        """The run as an accountant sees it."""
        return DpEvent(self.sigma, self.batch / self.total_units, self.steps)

    @property
    def claimed_epsilon(self) -> float:
        """PRV's epsilon of `event`, a little below ``epsilon``."""
        return epsilon_prv([self.event], self.delta)

    @property
    def bound_confidence(self) -> float:
        """Of each single bound, so that all hold together with ``confidence``."""
        return 1 - (1 - self.confidence) / (len(SCORES) * BOUNDS_PER_SCORE)

    @property
    def attainable(self) -> float:
        """The greatest (epsilon, delta) bound: every guess about the gradient canaries is right."""
        return attainable_bound(self.gradient_canaries, 2 * self.gradient_guesses, self.delta, self.bound_confidence)

    def to_json(self) -> dict[str, Any]:
        """Everything that is fixed in advance."""
        return {
            "format": "gradtf-fl empirical audit plan 2",
            "version": __version__,
            **asdict(self),
            "q": self.event.q,
            "rank": RANK,
            "gradient_norm_in_clips": GRADIENT_NORM,
            "scores": SCORES,
            "ranking": "guessed in: the highest scores; guessed out: the lowest; equal scores by their position",
        }

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON: whoever has it can check that the plan was not changed afterwards."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
