"""The organization's privacy ledger: local, append-only, signed, and the authority on what was spent.

A charge is written before the first noisy gradient can leave (`Ledger.reserve`) and settled with the observed
steps afterwards. A crash in between leaves the reservation counted: over-counting is the only error allowed.
What passes the budget is refused before anything is written and before data is touched.

    with Ledger.open(path, identity_key=key, organization="clinic", delta=1e-5, budget=8.0) as ledger:
        reservation = ledger.reserve("run-1", 1, 0, DpEvent(sigma=1.0, q=1 / 16, steps=50))
        outcome = train_dp(...)
        ledger.settle(reservation, outcome.event, noise=outcome.noise)

Each dataset has a budget of its own: a row is in one dataset, so it pays only for training on that one. Whose epsilon
that is, a row's or a person's, is fixed with the dataset's first budget.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.errors import BudgetExhausted, ConfigError, VerificationFailed
from gradtf_fl.privacy.accounting.accountants import Epsilons, epsilon_prv, epsilons, fits
from gradtf_fl.privacy.accounting.events import NOISE_UNRECORDED, ROW_UNIT, DpEvent, Unit
from gradtf_fl.privacy.accounting.skellam import SkellamEvent
from gradtf_fl.privacy.ledger.books import Books, DatasetAccount
from gradtf_fl.privacy.ledger.chain import GENESIS_HASH, Entry, Problem, seal
from gradtf_fl.privacy.ledger.reading import read_ledger
from gradtf_fl.privacy.ledger.records import (
    TRAIN,
    Charge,
    Genesis,
    budget_document,
    canonical,
    check_dataset,
    event_document,
    skellam_document,
    unit_document,
)
from gradtf_fl.privacy.ledger.rotation import ROTATE, rotation_document
from gradtf_fl.privacy.ledger.session import Session


class Ledger:
    """One organization's ledger. Every call is a transaction of its own; threads and processes take turns.

    Use `Ledger.open`. The file stays open from the first call to `close` (or to the end of a ``with``, of the
    instance, or of the process). The first call verifies the whole chain, later ones what was added since; each
    raises `VerificationFailed` where it is broken.

    A reservation is on disk when `reserve` returns. A settlement or an abort gets there with the next reservation,
    with `head` or with `close`: a power cut that takes it back leaves the reservation counted in full.

    >>> from tempfile import mkdtemp
    >>> from gradtf_fl import DpEvent, Identity, Ledger
    >>> path, key = f"{mkdtemp()}/ledger.sqlite", Identity.generate().private
    >>> with Ledger.open(path, identity_key=key, organization="clinic", delta=1e-5, budget=8.0) as ledger:
    ...     reservation = ledger.reserve("run-1", 1, 0, DpEvent(sigma=1.0, q=1 / 16, steps=50))  # before training
    ...     ledger.settle(reservation, DpEvent(sigma=1.0, q=1 / 16, steps=50))  # what training did
    ...     ledger.events(), ledger.verify()
    ((DpEvent(sigma=1.0, q=0.0625, steps=50),), ())
    """

    def __init__(self, path: Path, key: Ed25519PrivateKey) -> None:
        self.path = path
        self._session = Session(path, key)
        self._finalizer = weakref.finalize(self, self._session.close)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        identity_key: Ed25519PrivateKey,
        organization: str,
        delta: float,
        budget: float | Mapping[str, float],
        unit: Unit = ROW_UNIT,
    ) -> Ledger:
        """Open or create the ledger at ``path`` (mode 0600); a new or changed budget is recorded as a row.

        Args:
            budget: lifetime epsilon by dataset; a number is that of the dataset "train".
            unit: whose epsilon: that of a row, or of a person.

        Raises:
            ConfigError: delta, a dataset or a budget outside its range, another organization's ledger, another
                key's, another delta, or another unit of a dataset.
            VerificationFailed: the ledger does not verify, or was deleted while its head is still there.
        """
        budgets = dict(budget) if isinstance(budget, Mapping) else {TRAIN: budget}
        problems = [] if 0 < delta < 1 else [f"delta must lie between 0 and 1, not {delta}"]
        problems += [f"the privacy budget must be above 0, not {each}" for each in budgets.values() if not each > 0]
        if problems:
            raise ConfigError(problems)
        for dataset in budgets:
            check_dataset(dataset)
        ledger = cls(Path(path), identity_key)
        public = identity_key.public_key().public_bytes_raw()
        genesis = Genesis(organization, delta, public, _now(), unit.text, unit.adjacency, unit.sampler)
        ledger._session.create(lambda: _first_rows(genesis, budgets, unit, identity_key))
        with ledger._session.transaction() as writing:
            _check_owner(ledger.path, writing.books.genesis, writing.chain.key, genesis)
            _check_units(ledger.path, writing.books, budgets, unit)
            for dataset, epsilon in budgets.items():
                if writing.books.budgets.get(dataset) != epsilon:
                    writing.add("budget", budget_document(dataset, epsilon, unit, _now()))
        ledger._session.secure()
        return ledger

    def reserve(
        self,
        run_id: str,
        round: int,
        attempt: int,
        event: DpEvent,
        note: str = "",
        *,
        dataset: str = TRAIN,
        noise: str = NOISE_UNRECORDED,
        client_level: SkellamEvent | None = None,
    ) -> int:
        """Charge ``event`` before training. Returns the reservation, to be settled or aborted once.

        Args:
            dataset: whose rows will be trained on, and whose budget pays.
            client_level: the Skellam noise on the sum that the update will go into: recorded and reported as a
                second epsilon. The budget is of the first, which holds without the other organizations.

        Raises:
            BudgetExhausted: everything charged to the dataset so far and ``event``, composed jointly by PRV,
                pass its budget. Nothing is written then.
            ConfigError: the dataset has no budget.
        """
        body: dict[str, object] = {"run_id": run_id, "round": round, "attempt": attempt, "note": note, "noise": noise}
        if client_level is not None:
            body["client_level"] = skellam_document(client_level)
        with self._session.transaction() as writing:
            _check_budget(self.path, writing.books, dataset, event, round)
            unit = unit_document(writing.books.units[dataset])
            document = {**body, **event_document(event), **unit, "dataset": dataset, "when": _now()}
            return writing.add("reserve", document)

    def settle(self, reservation: int, observed: DpEvent, *, noise: str = NOISE_UNRECORDED) -> None:
        """Replace a reservation's event by what was observed.

        Raises:
            ValueError: no such open reservation.
            VerificationFailed: ``observed`` costs more than was reserved. It is recorded and counts; the
                caller must not release the update.
        """
        charge = self._close(reservation, "settle", {**event_document(observed), "noise": noise})
        if not charge.event.covers(observed):
            self._session.secure()
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

    def rotate(self, new_key: Ed25519PrivateKey) -> None:
        """Hand the ledger over to ``new_key``: the old key signs the row, the new one its body and all that follows.

        From then on `Ledger.open` wants the new key. The old one stays on the record: a leaked old key cannot
        add rows, but could fork the chain before this row, which a known head reveals.
        """
        with self._session.transaction() as writing:
            writing.add(ROTATE, rotation_document(new_key, writing.last_hash, _now()))
        self._session.sign_with(new_key)

    def events(self, dataset: str = TRAIN) -> tuple[DpEvent, ...]:
        """Every event that counts for ``dataset``, in order: settled as observed, open reservations in full."""
        return self._account(dataset)[0].events

    def charges(self) -> tuple[Charge, ...]:
        """Every charge of every dataset with its run, round and state."""
        with self._session.transaction() as writing:
            return tuple(writing.books.charges.values())

    def spent(self, dataset: str = TRAIN) -> Epsilons:
        """Epsilon of everything that counts for ``dataset``, composed jointly, by three accountants."""
        account, delta = self._account(dataset)
        return epsilons(account.events, delta)

    def remaining(self, dataset: str = TRAIN) -> float:
        """Budget of ``dataset`` less what it spent (PRV), at least 0; inf without a budget."""
        account, delta = self._account(dataset)
        return max(0.0, account.budget - epsilon_prv(account.events, delta))

    @property
    def head(self) -> bytes:
        """Hash of the last row (32 bytes), sent in every signed advert; that row is on disk."""
        return self._session.secure()

    def verify(self) -> tuple[Problem, ...]:
        """Every break of the chain, the head file or the structure, read again from disk; empty when all is well."""
        return read_ledger(self.path, public_keys=[self._session.public]).problems

    def close(self) -> None:
        """Let go of the file. A later call opens it again."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _account(self, dataset: str) -> tuple[DatasetAccount, float]:
        with self._session.transaction() as writing:
            _known_dataset(self.path, writing.books, dataset)
            return writing.books.picture().dataset(dataset), writing.books.genesis.delta

    def _close(self, reservation: int, kind: str, document: dict[str, object]) -> Charge:
        with self._session.transaction(durable=False) as writing:
            charge = writing.books.charges.get(reservation)
            if charge is None or charge.state != "reserved":
                raise ValueError(f"no open reservation {reservation}")
            writing.add(kind, {**document, "reservation": reservation, "when": _now()})
            return charge


def _first_rows(genesis: Genesis, budgets: Mapping[str, float], unit: Unit, key: Ed25519PrivateKey) -> Sequence[Entry]:
    rows = [seal(1, "genesis", genesis.body(), GENESIS_HASH, key)]
    for dataset, budget in budgets.items():
        body = canonical(budget_document(dataset, budget, unit, genesis.created))
        rows.append(seal(len(rows) + 1, "budget", body, rows[-1].hash, key))
    return rows


def _check_owner(path: Path, found: Genesis, signer: bytes, wanted: Genesis) -> None:
    problems = []
    if signer != wanted.public_key:
        problems.append(f"ledger {path}: it is signed by another identity key")
    if found.organization != wanted.organization:
        problems.append(f"ledger {path}: it is {found.organization!r}'s, not {wanted.organization!r}'s")
    if found.delta != wanted.delta:
        problems.append(f"ledger {path}: its delta is {found.delta:g}, fixed for good, not {wanted.delta:g}")
    if problems:
        raise ConfigError(problems)


def _check_units(path: Path, books: Books, datasets: Iterable[str], unit: Unit) -> None:
    problems = [
        f"ledger {path}: dataset {dataset!r} has the unit {books.units[dataset]}, fixed for good, not {unit}: "
        "only rows that were never trained on may have a new dataset with another unit"
        for dataset in datasets
        if books.units.get(dataset, unit) != unit
    ]
    if problems:
        raise ConfigError(problems)


def _known_dataset(path: Path, books: Books, dataset: str) -> None:
    if dataset not in books.budgets:
        raise ConfigError(f"ledger {path}: dataset {dataset!r} has no budget")


def _check_budget(path: Path, books: Books, dataset: str, event: DpEvent, round: int) -> None:
    _known_dataset(path, books, dataset)
    budget, spent, delta = books.budgets[dataset], books.spent(dataset), books.genesis.delta
    if not fits(spent, event, delta, budget):
        raise BudgetExhausted(
            f"{books.genesis.organization}: round {round} would take epsilon of dataset {dataset!r} from "
            f"{epsilon_prv(spent, delta):.3f} to {epsilon_prv((*spent, event), delta):.3f}, past the budget of "
            f"{budget:g} (delta {delta:g})"
        )


def _now() -> str:
    return _written(int(time.time()))


@lru_cache(maxsize=1)
def _written(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
