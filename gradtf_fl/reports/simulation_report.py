"""The document that ``gradtf simulate`` writes and prints (fields: the command line contract)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gradtf_fl.deployment import identifiability_document
from gradtf_fl.errors import CorruptFile
from gradtf_fl.files import PUBLIC, replace_file
from gradtf_fl.privacy import Unit
from gradtf_fl.reports.quantiles import quantiles

State = Literal["completed", "budget", "aborted"]
Accuracy = Mapping[str, float | None]

TINY_COLUMNS = ("tiny_base", "tiny_tuned", "tiny_global")
COLUMNS = (*TINY_COLUMNS, "llm_base", "llm_generated", "llm_ceiling")
TASK_LIBRARY = "task_library"
CONTROLS = ("mean_update", "nearest_update", "ridge")
PLAIN_COLUMNS = (*TINY_COLUMNS, "tiny_ceiling")
"""Of a federation without a Grad-Transformer."""
NAMED = 3
"""Worst and best organizations that are named."""


@dataclass(frozen=True)
class OrganizationResult:
    """One organization's figures on its own private test rows.

    Attributes:
        rule: what its rows follow, in words.
        accuracy: score by the federation's metric, by `COLUMNS` and `CONTROLS`; None: not measured.
        loss: nats a character of the test rows' answers, by the same names.
        rows, test_rows: how many it has.
        persons: whose training rows they are, None where the unit is a row.
        holds: its training rows by label.
        epsilon: spent, from its ledger, all rounds composed jointly (PRV accountant).
        budget: lifetime limit.
        client_epsilon: of one whole organization in the opened sums, by their Skellam noise; None without it.
    """

    name: str
    rule: str
    epsilon: float
    delta: float
    budget: float
    accuracy: Accuracy
    client_epsilon: float | None = None
    loss: Accuracy = field(default_factory=dict)
    rows: int = 0
    test_rows: int = 0
    persons: int | None = None
    holds: Mapping[str, int] = field(default_factory=dict)

    @property
    def pgr(self) -> float | None:
        """Performance gap recovered, see `gap_recovered`."""
        return gap_recovered(self.accuracy)


@dataclass(frozen=True)
class SimulationReport:
    """A whole simulated federation.

    Attributes:
        state: ``completed``; ``budget`` when the organizations refused a round; ``aborted`` when one failed.
        reason: one line for a person when the state is not ``completed``.
        rounds: one mapping per attempted round.
        seconds: wall time by stage of the run.
        metric: of ``accuracy``: ``exact_match``, ``rouge1``, or ``loss``: nats a character, of which less is better.
        pictures: files of charts by name.
    """

    config: Mapping[str, Any]
    state: State
    reason: str
    wall_s: float
    organizations: tuple[OrganizationResult, ...]
    rounds: tuple[Mapping[str, Any], ...]
    seconds: Mapping[str, float]
    out: str
    metric: str = "exact_match"
    pictures: Mapping[str, str] = field(default_factory=dict)

    @property
    def unit(self) -> Unit:
        """Whose the epsilons are."""
        named = self.config.get("unit", "row")
        return Unit(None if named == "row" else str(named))

    @property
    def is_plain(self) -> bool:
        """Whether the federation had no Grad-Transformer: its sum is an adapter of the TinyLM."""
        return self.config.get("transformer") == "none"

    @property
    def names(self) -> tuple[str, ...]:
        """What is compared."""
        return PLAIN_COLUMNS if self.is_plain else COLUMNS + self.controls

    @property
    def controls(self) -> tuple[str, ...]:
        """The simpler ways to make an LLM update; the task library only where the project has one."""
        has_library = any(TASK_LIBRARY in organization.accuracy for organization in self.organizations)
        return (*CONTROLS, TASK_LIBRARY) if has_library else CONTROLS

    @property
    def accuracy(self) -> dict[str, float | None]:
        """Means over organizations."""
        return {key: mean([o.accuracy.get(key) for o in self.organizations]) for key in self.names}

    @property
    def loss(self) -> dict[str, float | None]:
        """Means over organizations, nats a character."""
        return {key: mean([o.loss.get(key) for o in self.organizations]) for key in self.names}

    @property
    def quantiles(self) -> dict[str, Any]:
        """Over organizations: of ``accuracy`` and ``loss`` by name, of ``pgr``, ``epsilon`` and ``rows``."""
        return {
            "accuracy": {key: quantiles([o.accuracy.get(key) for o in self.organizations]) for key in self.names},
            "loss": {key: quantiles([o.loss.get(key) for o in self.organizations]) for key in self.names},
            "pgr": quantiles([o.pgr for o in self.organizations]),
            "epsilon": quantiles([o.epsilon for o in self.organizations]),
            "rows": quantiles([o.rows for o in self.organizations]),
        }

    @property
    def worst(self) -> tuple[OrganizationResult, ...]:
        """The organizations with the worst score of the delivered model, the worst first; `NAMED` at most."""
        return self._ordered()[:NAMED]

    @property
    def best(self) -> tuple[OrganizationResult, ...]:
        """Those with the best score, the best first."""
        return self._ordered()[::-1][:NAMED]

    def _ordered(self) -> tuple[OrganizationResult, ...]:
        """All that were scored, the worst first; in the order of the report where scores are the same."""
        name = "tiny_global" if self.is_plain else "llm_generated"
        scored = [(o.accuracy[name], o) for o in self.organizations if o.accuracy.get(name) is not None]
        sign = -1.0 if self.metric == "loss" else 1.0
        return tuple(o for _, o in sorted(scored, key=lambda pair: sign * (pair[0] or 0.0)))

    @property
    def pgr(self) -> float | None:
        """Performance gap recovered by the means."""
        return gap_recovered(self.accuracy)

    @property
    def gains(self) -> dict[str, float | None]:
        """Share of what tuning the LLM itself gains, by everything that makes an LLM update, by the means."""
        return {
            key: gain_recovered(self.accuracy, key) for key in ("llm_generated", *self.controls) if not self.is_plain
        }

    @property
    def finished_rounds(self) -> int:
        """Rounds that ended with an adapter."""
        return sum(r["state"] == "completed" for r in self.rounds)

    def to_json(self) -> dict[str, Any]:
        """The contract's document; NaN becomes null."""
        organizations = [
            {
                "name": o.name,
                "rule": o.rule,
                "epsilon": o.epsilon,
                "client_epsilon": o.client_epsilon,
                "delta": o.delta,
                "budget": o.budget,
                "rows": o.rows,
                "persons": o.persons,
                "test_rows": o.test_rows,
                "holds": dict(o.holds),
                "accuracy": dict(o.accuracy),
                "loss": dict(o.loss),
                "pgr": o.pgr,
            }
            for o in self.organizations
        ]
        document: dict[str, Any] = {
            "config": dict(self.config),
            "unit": self.unit.text,
            "adjacency": self.unit.adjacency,
            "state": self.state,
            "reason": self.reason,
            "wall_s": round(self.wall_s, 2),
            "metric": self.metric,
            "accuracy": self.accuracy,
            "loss": self.loss,
            "pgr": self.pgr,
            "gain_recovered": self.gains,
            "quantiles": self.quantiles,
            "worst": [o.name for o in self.worst],
            "best": [o.name for o in self.best],
            "pictures": dict(self.pictures),
            "organizations": organizations,
            "rounds": [dict(r) for r in self.rounds],
            "identifiability": identifiability_document(self.rounds),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "out": self.out,
        }
        return {key: _without_nan(value) for key, value in document.items()}

    @classmethod
    def read(cls, path: Path) -> SimulationReport:
        """The report that `write` wrote; CorruptFile where it can't be read."""
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except OSError as error:
            raise CorruptFile(f"{path}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            raise CorruptFile(f"{path}: no report of a simulation ({error.error_count()} problems)") from error

    def write(self, path: Path) -> None:
        """Write the document; a reader sees the old file or the whole new one."""
        replace_file(path, json.dumps(self.to_json(), indent=1, allow_nan=False).encode(), PUBLIC)


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of what was measured; None when nothing was."""
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if measured else None


def gap_recovered(accuracy: Accuracy) -> float | None:
    """PGR = (llm_generated - tiny_tuned) / (llm_ceiling - tiny_tuned); None without a gap."""
    generated, weak, ceiling = (accuracy.get(k) for k in ("llm_generated", "tiny_tuned", "llm_ceiling"))
    if generated is None or weak is None or ceiling is None or ceiling == weak:
        return None
    return (generated - weak) / (ceiling - weak)


def gain_recovered(accuracy: Accuracy, name: str) -> float | None:
    """(name - llm_base) / (llm_ceiling - llm_base): the LLM's own gain from tuning; None without one."""
    made, base, ceiling = (accuracy.get(k) for k in (name, "llm_base", "llm_ceiling"))
    if made is None or base is None or ceiling is None or ceiling == base:
        return None
    return (made - base) / (ceiling - base)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
