"""What the fault tests of one session found, for the table at the end."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class FaultRecord:
    """One fault.

    Attributes:
        rounds_lost: attempts that ended without a sum. epsilon_error: largest overcount of an organization's ledger
            that this fault left. recovery_s: from the fault (or its end) to a round that has everyone again.
    """

    fault: str
    happened: list[str] = field(default_factory=list)
    rounds_lost: int = 0
    epsilon_error: float = 0.0
    recovery_s: float | None = None

    def note(self, text: str) -> None:
        """Add to what happened."""
        self.happened.append(text)


RECORDS: list[FaultRecord] = []


def table() -> list[str]:
    """Lines for the terminal."""
    rows = [("fault", "rounds lost", "epsilon over", "recovery s", "what happened")]
    rows += [
        (
            record.fault,
            str(record.rounds_lost),
            f"{record.epsilon_error:.3f}",
            "" if record.recovery_s is None else f"{record.recovery_s:.0f}",
            "; ".join(record.happened),
        )
        for record in RECORDS
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(row[i].ljust(widths[i]) for i in range(4)), row[4]]).rstrip() for row in rows]
