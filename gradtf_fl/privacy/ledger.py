"""The organization's privacy ledger: local, append-only, signed, and the authority on what was spent.

A charge is written before the first noisy gradient can leave (`Ledger.reserve`) and settled with the observed
steps afterwards. A crash in between leaves the reservation counted: over-counting is the only error allowed.
What passes the budget is refused before anything is written and before data is touched.

    ledger = Ledger.open(path, identity_key=key, organization="clinic", delta=1e-5, budget=8.0)
    reservation = ledger.reserve("run-1", 1, 0, DpEvent(sigma=1.0, q=1 / 16, steps=50))
    outcome = train_dp(...)
    ledger.settle(reservation, outcome.event, noise=outcome.noise)
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.errors import BudgetExhausted, ConfigError, VerificationFailed
from gradtf_fl.privacy.accountants import Epsilons, epsilon_prv, epsilons
from gradtf_fl.privacy.chain import GENESIS_HASH, Entry, Problem, chain_problems, seal
from gradtf_fl.privacy.events import NOISE_UNRECORDED, DpEvent
from gradtf_fl.privacy.records import Charge, Genesis, Replay, budget_body, canonical, event_document, replay
from gradtf_fl.privacy.store import (
    Head,
    append,
    create,
    head_path,
    read_entries,
    read_head,
    reading,
    transaction,
    write_head,
)

ROUNDING = 1e-9
"""Slack of the budget comparison: a plan calibrated to exactly the budget is within it."""


@dataclass(frozen=True)
class LedgerReading:
    """A ledger as found on disk: its content, its head (32 bytes) and every break of its chain."""

    path: Path
    content: Replay
    head: bytes
    rows: int
    problems: tuple[Problem, ...]


def read_ledger(
    path: str | Path, *, public_key: bytes | None = None, advertised: bytes | None = None
) -> LedgerReading:
    """Read and check a ledger without changing it.

    Args:
        path: the SQLite file; its head file is expected beside it.
        public_key: the key (32 bytes) the organization is known by; without it the ledger's own is believed.
        advertised: a head (32 bytes) that the organization once announced; it must lie on the chain.

    Raises:
        ConfigError: there is no file, or it is no ledger.
        VerificationFailed: so damaged that nothing can be read from it.
    """
    path = Path(path)
    entries, problems = _load(path)
    try:
        content = replay(entries)
    except ValueError as error:
        raise VerificationFailed(f"{path}: row 1: {error}") from error
    key = content.genesis.public_key
    if public_key is not None and key != public_key:
        problems.append(Problem(1, f"the ledger belongs to another key, {key.hex()[:16]}..."))
    problems += [*chain_problems(entries, key), *content.problems, *_head_problems(path, entries)]
    if advertised is not None and advertised != GENESIS_HASH and advertised not in {e.hash for e in entries}:
        problems.append(Problem(0, f"the advertised head {advertised.hex()[:16]}... is not on this chain"))
    return LedgerReading(
        path, content, entries[-1].hash, len(entries), tuple(sorted(problems, key=lambda p: p.row))
    )


def _load(path: Path) -> tuple[list[Entry], list[Problem]]:
    lost = VerificationFailed(f"{path}: {head_path(path).name} is there, but the ledger is gone or emptied")
    headed = head_path(path).exists()
    if not path.is_file():
        raise lost if headed else ConfigError(f"ledger {path}: there is no such file")
    with path.open("rb") as file:
        magic = file.read(16)
    if magic != b"SQLite format 3\0":
        raise (
            lost
            if headed and not magic
            else ConfigError(f"ledger {path}: not a privacy ledger (no SQLite file)")
        )
    try:
        with reading(path) as connection:
            return read_entries(connection)
    except ConfigError as error:
        raise lost if headed else ConfigError(f"ledger {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise VerificationFailed(f"{path}: the file is damaged ({error})") from error


def _head_problems(path: Path, entries: list[Entry]) -> list[Problem]:
    """A head behind the chain is a crash before it was renewed (rows are signed); all else is a break."""
    name = head_path(path).name
    try:
        head = read_head(path)
    except ValueError as error:
        return [Problem(0, str(error))]
    if head is None:
        return [Problem(0, f"{name} is missing")] if len(entries) > 2 else []
    if head.rows > len(entries):
        return [
            Problem(len(entries) + 1, f"rows are cut off: {name} knows {head.rows}, {len(entries)} are left")
        ]
    if head.rows < 1 or entries[head.rows - 1].hash != head.hash:
        return [Problem(max(head.rows, 0), f"is not the row that {name} knows")]
    return []


class Ledger:
    """One organization's ledger. Every call is a transaction of its own; processes take turns.

    Use `Ledger.open`. No connection stays open, so an instance may cross threads and outlive crashes.
    """

    def __init__(self, path: Path, key: Ed25519PrivateKey) -> None:
        self.path = path
        self._key = key

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        identity_key: Ed25519PrivateKey,
        organization: str,
        delta: float,
        budget: float,
    ) -> Ledger:
        """Open or create the ledger at ``path`` (mode 0600); a changed budget is recorded as a row.

        Raises:
            ConfigError: delta or budget outside its range, another organization's ledger, or another delta.
            VerificationFailed: the ledger does not verify, or was deleted while its head is still there.
        """
        problems = []
        if not 0 < delta < 1:
            problems.append(f"delta must lie between 0 and 1, not {delta}")
        if not budget > 0:
            problems.append(f"the privacy budget must be above 0, not {budget}")
        if problems:
            raise ConfigError(problems)
        path = Path(path)
        if not path.exists() and head_path(path).exists():
            raise VerificationFailed(
                f"{path}: the ledger is gone while {head_path(path).name} is still there"
            )
        create(path)
        ledger = cls(path, identity_key)
        public = identity_key.public_key().public_bytes_raw()
        with transaction(path) as connection:
            entries, structure = read_entries(connection)
            now = _now()
            if not entries and not structure and not head_path(path).exists():
                genesis = Genesis(organization, delta, public, now)
                first = seal(1, "genesis", genesis.body(), GENESIS_HASH, identity_key)
                append(connection, first)
                append(connection, seal(2, "budget", budget_body(budget, now), first.hash, identity_key))
            else:
                content = ledger._verified(entries, structure)
                _check_owner(path, content.genesis, organization, delta, public)
                if content.budget != budget:
                    ledger._append(connection, entries, "budget", budget_body(budget, now))
        ledger._renew_head()
        return ledger

    def reserve(
        self,
        run_id: str,
        round: int,
        attempt: int,
        event: DpEvent,
        note: str = "",
        *,
        noise: str = NOISE_UNRECORDED,
    ) -> int:
        """Charge ``event`` before training. Returns the reservation, to be settled or aborted once.

        Raises:
            BudgetExhausted: everything charged so far and ``event``, composed jointly by PRV, pass the
                budget. Nothing is written then.
        """
        with transaction(self.path) as connection:
            entries, structure = read_entries(connection)
            content = self._verified(entries, structure)
            after = epsilon_prv((*content.events, event), content.genesis.delta)
            if after > content.budget + ROUNDING:
                before = epsilon_prv(content.events, content.genesis.delta)
                raise BudgetExhausted(
                    f"{content.genesis.organization}: round {round} would take epsilon from {before:.3f} to "
                    f"{after:.3f}, past the budget of {content.budget:g} (delta {content.genesis.delta:g})"
                )
            body = {
                "run_id": run_id,
                "round": round,
                "attempt": attempt,
                "note": note,
                "noise": noise,
                "when": _now(),
            }
            reservation = self._append(
                connection, entries, "reserve", canonical({**body, **event_document(event)})
            )
        self._renew_head()
        return reservation

    def settle(self, reservation: int, observed: DpEvent, *, noise: str = NOISE_UNRECORDED) -> None:
        """Replace a reservation's event by what was observed.

        Raises:
            ValueError: no such open reservation.
            VerificationFailed: ``observed`` costs more than was reserved. It is recorded and counts; the
                caller must not release the update.
        """
        charge = self._close(reservation, "settle", {**event_document(observed), "noise": noise})
        if not charge.event.covers(observed):
            raise VerificationFailed(f"training used {observed}, more than the reserved {charge.event}")

    def abort(self, reservation: int, *, released: bool = True) -> None:
        """Close a reservation that will not be settled.

        Args:
            released: whether anything derived from data may exist. The charge then stays counted in full.
                Only ``False``, right for nothing but an abort BEFORE training, takes it back.
        """
        self._close(reservation, "abort", {"released": released})

    def events(self) -> tuple[DpEvent, ...]:
        """Every event that counts, in order: settled as observed, open reservations in full."""
        return self._content().events

    def charges(self) -> tuple[Charge, ...]:
        """Every charge with its run, round and state."""
        return self._content().charges

    def spent(self) -> Epsilons:
        """Epsilon of everything that counts, composed jointly, by three accountants."""
        content = self._content()
        return epsilons(content.events, content.genesis.delta)

    def remaining(self) -> float:
        """Budget less spent (PRV), at least 0; inf without a budget."""
        content = self._content()
        return max(0.0, content.budget - epsilon_prv(content.events, content.genesis.delta))

    @property
    def head(self) -> bytes:
        """Hash of the last row (32 bytes), sent in every signed advert."""
        return read_ledger(self.path).head

    def verify(self) -> tuple[Problem, ...]:
        """Every break of the chain, the head file or the structure; empty when all is well."""
        return read_ledger(self.path, public_key=self._key.public_key().public_bytes_raw()).problems

    def _content(self) -> Replay:
        reading = read_ledger(self.path, public_key=self._key.public_key().public_bytes_raw())
        _raise_first(self.path, reading.problems)
        return reading.content

    def _verified(self, entries: list[Entry], structure: list[Problem]) -> Replay:
        try:
            content = replay(entries)
        except ValueError as error:
            raise VerificationFailed(f"{self.path}: row 1: {error}") from error
        chain = chain_problems(entries, content.genesis.public_key)
        _raise_first(self.path, (*structure, *chain, *content.problems, *_head_problems(self.path, entries)))
        return content

    def _append(self, connection: sqlite3.Connection, entries: list[Entry], kind: str, body: str) -> int:
        entry = seal(len(entries) + 1, kind, body, entries[-1].hash, self._key)
        append(connection, entry)
        return entry.number

    def _close(self, reservation: int, kind: str, document: dict[str, object]) -> Charge:
        with transaction(self.path) as connection:
            entries, structure = read_entries(connection)
            open_charges = {
                c.reservation: c for c in self._verified(entries, structure).charges if c.state == "reserved"
            }
            if reservation not in open_charges:
                raise ValueError(f"there is no open reservation {reservation}")
            body = canonical({"reservation": reservation, "when": _now(), **document})
            self._append(connection, entries, kind, body)
        self._renew_head()
        return open_charges[reservation]

    def _renew_head(self) -> None:
        """Write the newest head, in a transaction, so that an older one never replaces a newer one."""
        with transaction(self.path) as connection:
            entries, _ = read_entries(connection)
            write_head(self.path, Head(len(entries), entries[-1].hash))


def _check_owner(path: Path, genesis: Genesis, organization: str, delta: float, public: bytes) -> None:
    problems = []
    if genesis.public_key != public:
        problems.append(f"ledger {path}: it is signed by another identity key")
    if genesis.organization != organization:
        problems.append(f"ledger {path}: it is {genesis.organization!r}'s, not {organization!r}'s")
    if not math.isclose(genesis.delta, delta, rel_tol=1e-12):
        problems.append(f"ledger {path}: its delta is {genesis.delta:g}, fixed for good, not {delta:g}")
    if problems:
        raise ConfigError(problems)


def _raise_first(path: Path, problems: tuple[Problem, ...]) -> None:
    if problems:
        raise VerificationFailed(f"{path}: {problems[0]}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
