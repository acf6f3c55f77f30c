"""An organization's protocol state between two messages: a member's, and what its ledger and adapters need.

Beside `MemberStore`'s tables: the ledger's reservation that is trained for, plans that were too dear, runs whose
adapters came, and the hash of the last delivered global update.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence

from gradtf_fl.flower import MemberStore, Refused, RoundKey
from gradtf_fl.round_messages import RUN_START, Refusal, TrainingPlan

LOOKED_AT = 0.5
"""Share of a refused plan's cost that another plan may cost at most, to be compared with the budget at all."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS unfinished (
    one INTEGER PRIMARY KEY CHECK (one = 1), run_id TEXT NOT NULL, round INTEGER NOT NULL, reservation INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS too_dear (dataset TEXT PRIMARY KEY, budget REAL NOT NULL, epsilon REAL NOT NULL);
CREATE TABLE IF NOT EXISTS adapter_runs (number INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS delivered (
    run_id TEXT PRIMARY KEY, round INTEGER NOT NULL, update_sha256 BLOB NOT NULL
);
"""


def started(run_id: str) -> str:
    """When a run began, as its name says; "" for the names of runs before 0.2 and of simulations."""
    found = RUN_START.match(run_id)
    return found[0] if found else ""


class NodeStore(MemberStore):
    """The file of a whole organization."""

    schema: str = MemberStore.schema + _SCHEMA

    def goes_on(self, pinned: str, plan: str) -> bool:
        """Whether a run that began with ``pinned`` may continue with ``plan``; each as `TrainingPlan.canonical`."""
        return plan == pinned or TrainingPlan.from_canonical(plan).goes_on_from(TrainingPlan.from_canonical(pinned))

    def plan_of(self, run_id: str) -> TrainingPlan | None:
        """The plan that this organization has trained by in a run; None before its first round there."""
        with self._transaction() as database:
            row = database.execute("SELECT plan FROM plan_of_run WHERE run_id = ?", (run_id,)).fetchone()
        return None if row is None else TrainingPlan.from_canonical(row[0])

    def take_run(self, run_id: str, known: Sequence[str]) -> None:
        """Take ``run_id`` for the newest run whose adapters come; a run is never newest twice.

        Args:
            known: runs whose adapters came before this store counted them, oldest first.

        Raises:
            Refused: with ``adapter`` when another run came after it, or its name says that it started before.
        """
        with self._transaction() as database:
            if database.execute("SELECT 1 FROM adapter_runs").fetchone() is None:
                for run in dict.fromkeys(known):
                    database.execute("INSERT INTO adapter_runs (run_id) VALUES (?)", (run,))
            newest = database.execute("SELECT run_id FROM adapter_runs ORDER BY number DESC").fetchone()
            if newest is not None and newest[0] != run_id:
                seen = database.execute("SELECT 1 FROM adapter_runs WHERE run_id = ?", (run_id,)).fetchone()
                if seen is not None or started(run_id) < started(newest[0]):
                    raise Refused(
                        Refusal.ADAPTER, f"run {run_id!r} is older than {newest[0]!r}, whose adapters came since"
                    )
            database.execute("INSERT OR IGNORE INTO adapter_runs (run_id) VALUES (?)", (run_id,))

    def unfinished(self, key: RoundKey) -> int | None:
        """The ledger's reservation for a training of this round that is not at its end; None without one.

        It stands here and not in the ledger alone: a ledger may be restored from its export, where a charge is open
        that was settled and released since.
        """
        with self._transaction() as database:
            row = database.execute(
                "SELECT reservation FROM unfinished WHERE run_id = ? AND round = ?", (key.run_id, key.round)
            ).fetchone()
        return None if row is None else int(row[0])

    def training_begins(self, key: RoundKey, reservation: int) -> None:
        """``reservation`` was made for a training of this round."""
        with self._transaction() as database:
            row = (key.run_id, key.round, reservation)
            database.execute("INSERT OR REPLACE INTO unfinished VALUES (1, ?, ?, ?)", row)

    def training_ends(self) -> None:
        """Nobody may train for its reservation any more."""
        with self._transaction() as database:
            database.execute("DELETE FROM unfinished")

    def compares(self, dataset: str, budget: float, epsilon: float) -> bool:
        """Whether a plan of this cost is compared with what is left of a dataset's budget.

        Plans that do not fit cost nothing, so a server could try one after the other until one fits, and would know
        what is left. After a refusal only plans of half its cost are looked at: it learns that to a factor of two, from
        a handful of refusals. Another ``budget``, which only the organization sets, begins afresh.
        """
        with self._transaction() as database:
            row = database.execute("SELECT budget, epsilon FROM too_dear WHERE dataset = ?", (dataset,)).fetchone()
        return row is None or row[0] != budget or epsilon <= LOOKED_AT * row[1]

    def too_dear(self, dataset: str, budget: float, epsilon: float) -> None:
        """Note that a plan of this cost did not fit."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO too_dear VALUES (?, ?, ?)", (dataset, budget, epsilon))

    def deliver(self, run_id: str, round_number: int, update_sha256: bytes) -> None:
        """Note the global update that a signed adapter of ``round_number`` came with; only later rounds replace it.

        Raises:
            Refused: with ``model_hash`` when the round came with another update before.
        """
        with self._transaction() as database:
            known = _delivered(database, run_id)
            if known is None or known[0] < round_number:
                row = run_id, round_number, update_sha256
                database.execute("INSERT OR REPLACE INTO delivered VALUES (?, ?, ?)", row)
            elif known[0] == round_number and known[1] != update_sha256:
                raise Refused(Refusal.MODEL_HASH, f"round {round_number} was delivered with another global update")

    def check_start(self, run_id: str, round_number: int, update: bytes) -> None:
        """Whether a round begins where the run's last delivered one ended.

        The first round starts at zero. Who missed the round before cannot compare, and takes the start as it is.

        Raises:
            Refused: with ``stale`` for a round that was delivered, with ``model_hash`` for another start.
        """
        with self._transaction() as database:
            known = _delivered(database, run_id)
        if known is not None and known[0] >= round_number:
            raise Refused(Refusal.STALE, f"round {known[0]} was delivered, round {round_number} is over")
        if round_number == 1 and any(update):
            raise Refused(Refusal.MODEL_HASH, "the first round of a run starts at a global update that is not zero")
        if known is not None and known[0] == round_number - 1 and known[1] != hashlib.sha256(update).digest():
            raise Refused(Refusal.MODEL_HASH, f"the round does not start where round {known[0]} was signed to end")


def _delivered(database: sqlite3.Connection, run_id: str) -> tuple[int, bytes] | None:
    row = database.execute("SELECT round, update_sha256 FROM delivered WHERE run_id = ?", (run_id,)).fetchone()
    return (int(row[0]), bytes(row[1])) if row else None
