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

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.errors import BudgetExhausted, ConfigError, VerificationFailed
from gradtf_fl.privacy.accountants import Epsilons, epsilon_prv, epsilons
from gradtf_fl.privacy.chain import GENESIS_HASH, Entry, Problem, seal
from gradtf_fl.privacy.events import NOISE_UNRECORDED, DpEvent
from gradtf_fl.privacy.reading import EMPTY_HEAD, check, head_or_problem, read_ledger, replay_or_fail
from gradtf_fl.privacy.records import Charge, Genesis, Replay, budget_body, canonical, event_document, skellam_document
from gradtf_fl.privacy.skellam import SkellamEvent
from gradtf_fl.privacy.store import Head, append, create, head_path, read_entries, transaction, write_head

ROUNDING = 1e-9
"""Slack of the budget comparison: a plan calibrated to exactly the budget is within it."""


@dataclass(frozen=True)
class _Writing:
    """One transaction: what the ledger holds, already verified, and the way to add a row."""

    connection: sqlite3.Connection
    entries: list[Entry]
    content: Replay
    key: Ed25519PrivateKey

    def add(self, kind: str, body: str) -> int:
        last = self.entries[-1]
        append(self.connection, seal(last.number + 1, kind, body, last.hash, self.key))
        return last.number + 1


class Ledger:
    """One organization's ledger. Every call is a transaction of its own; processes take turns.

    Use `Ledger.open`. No connection stays open, so an instance may cross threads and outlive crashes. Every
    call verifies the whole chain first and raises `VerificationFailed` where it is broken.
    """

    def __init__(self, path: Path, key: Ed25519PrivateKey) -> None:
        self.path = path
        self._key = key
        self._public = key.public_key().public_bytes_raw()

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
        ledger = cls(Path(path), identity_key)
        ledger._create(Genesis(organization, delta, ledger._public, _now()), budget)
        with ledger._writing() as writing:
            _check_owner(ledger.path, writing.content.genesis, organization, delta, ledger._public)
            if writing.content.budget != budget:
                writing.add("budget", budget_body(budget, _now()))
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
        client_level: SkellamEvent | None = None,
    ) -> int:
        """Charge ``event`` before training. Returns the reservation, to be settled or aborted once.

        Args:
            client_level: the Skellam noise on the sum that the update will go into: recorded and reported as a
                second epsilon. The budget is of the first, which holds without the other organizations.

        Raises:
            BudgetExhausted: everything charged so far and ``event``, composed jointly by PRV, pass the
                budget. Nothing is written then.
        """
        body: dict[str, object] = {"run_id": run_id, "round": round, "attempt": attempt, "note": note, "noise": noise}
        if client_level is not None:
            body["client_level"] = skellam_document(client_level)
        with self._writing() as writing:
            genesis, spent, budget = writing.content.genesis, writing.content.events, writing.content.budget
            after = epsilon_prv((*spent, event), genesis.delta)
            if after > budget + ROUNDING:
                raise BudgetExhausted(
                    f"{genesis.organization}: round {round} would take epsilon from "
                    f"{epsilon_prv(spent, genesis.delta):.3f} to {after:.3f}, past the budget of {budget:g} "
                    f"(delta {genesis.delta:g})"
                )
            return writing.add("reserve", canonical({**body, **event_document(event), "when": _now()}))

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
            reservation: what `reserve` returned.
            released: whether anything derived from data may exist. The charge then stays counted in full.
                Only ``False``, right for nothing but an abort BEFORE training, takes it back.

        Raises:
            ValueError: no such open reservation.
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
        return read_ledger(self.path, public_keys=[self._public]).problems

    def _content(self) -> Replay:
        reading = read_ledger(self.path, public_keys=[self._public])
        _raise_first(self.path, reading.problems)
        return reading.content

    def _create(self, genesis: Genesis, budget: float) -> None:
        """Make the files and the first two rows, unless they are there."""
        if not self.path.exists():
            if head_or_problem(self.path) not in (None, EMPTY_HEAD):
                name = head_path(self.path).name
                raise VerificationFailed(f"{self.path}: the ledger is gone while {name} is still there")
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_head(self.path, EMPTY_HEAD)
        create(self.path)
        with transaction(self.path) as connection:
            entries, structure = read_entries(connection)
            if not entries and not structure and head_or_problem(self.path) == EMPTY_HEAD:
                first = seal(1, "genesis", genesis.body(), GENESIS_HASH, self._key)
                append(connection, first)
                append(connection, seal(2, "budget", budget_body(budget, genesis.created), first.hash, self._key))

    def _close(self, reservation: int, kind: str, document: dict[str, object]) -> Charge:
        with self._writing() as writing:
            opened = {c.reservation: c for c in writing.content.charges if c.state == "reserved"}
            if reservation not in opened:
                raise ValueError(f"there is no open reservation {reservation}")
            writing.add(kind, canonical({**document, "reservation": reservation, "when": _now()}))
            return opened[reservation]

    @contextmanager
    def _writing(self) -> Iterator[_Writing]:
        """A transaction on the verified ledger; the head file follows once it is committed."""
        with transaction(self.path) as connection:
            entries, structure = read_entries(connection)
            content = replay_or_fail(self.path, entries)
            _raise_first(self.path, check(self.path, entries, structure, content))
            yield _Writing(connection, entries, content, self._key)
        with transaction(self.path) as connection:  # again, so that an older head never replaces a newer one
            entries, _ = read_entries(connection)
            write_head(self.path, Head(len(entries), entries[-1].hash))


def _check_owner(path: Path, genesis: Genesis, organization: str, delta: float, public: bytes) -> None:
    problems = []
    if genesis.public_key != public:
        problems.append(f"ledger {path}: it is signed by another identity key")
    if genesis.organization != organization:
        problems.append(f"ledger {path}: it is {genesis.organization!r}'s, not {organization!r}'s")
    if genesis.delta != delta:
        problems.append(f"ledger {path}: its delta is {genesis.delta:g}, fixed for good, not {delta:g}")
    if problems:
        raise ConfigError(problems)


def _raise_first(path: Path, problems: tuple[Problem, ...] | list[Problem]) -> None:
    if problems:
        raise VerificationFailed(f"{path}: {problems[0]}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
