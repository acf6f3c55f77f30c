"""Invariants that hold whatever fails, checked around every fault against what was seen on the disks meanwhile.

`Watch` looks into each organization's protocol state a few times a second: which seed (from which every mask key of an
attempt is derived) is in use, and whether the update is masked already, that is: may have left.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from clients.adapters.statements import read_statement
from gradtf_fl.flower import RoundRecord
from gradtf_fl.privacy import read_ledger
from gradtf_fl.privacy.accounting.accountants import epsilon_prv
from gradtf_fl.privacy.ledger.reading import LedgerReading
from gradtf_fl.privacy.ledger.records import Charge
from gradtf_fl.secagg.client_state import ClientState
from tests.deployment.deployed_kit import Deployment
from tests.deployment.fault_report import RECORDS, FaultRecord
from tests.deployment.members import Member

LOOK_S = 0.25
Attempt = tuple[str, int, int]  # run id, round, attempt


class Watch:
    """A thread that looks at the organizations' open rounds.

    Attributes:
        seeds: organization -> attempt -> seeds seen. masked: organization -> attempts whose update was masked.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.seeds: dict[str, dict[Attempt, set[bytes]]] = defaultdict(lambda: defaultdict(set))
        self.masked: dict[str, set[Attempt]] = defaultdict(set)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            for member in self._deployment.organizations:
                with contextlib.suppress(sqlite3.Error, OSError):
                    self._look(member)

    def _look(self, member: Member) -> None:
        path = member.folder / "state.sqlite"
        if not path.exists():
            return
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1.0)
        try:
            row = database.execute("SELECT run_id, round, attempt, protocol, vector IS NULL FROM open_round").fetchone()
        finally:
            database.close()
        if row is None:
            return
        attempt = (str(row[0]), int(row[1]), int(row[2]))
        seed = ClientState.from_bytes(row[3]).seed
        if seed:
            self.seeds[member.name][attempt].add(seed)
        if row[4]:
            self.masked[member.name].add(attempt)

    def check(self) -> None:
        """No seed serves two attempts, no attempt has two seeds, no two organizations share one."""
        owners: dict[bytes, tuple[str, Attempt]] = {}
        for name, attempts in list(self.seeds.items()):
            for attempt, seeds in list(attempts.items()):
                assert len(seeds) == 1, f"{name}: two mask keys in {attempt}"
                owner = owners.setdefault(next(iter(seeds)), (name, attempt))
                assert owner == (name, attempt), f"{name}: {attempt} uses the keys of {owner}"


def attempt_of(charge: Charge) -> Attempt:
    """What a charge was for."""
    return charge.run_id, charge.round, charge.attempt


def paying(name: str, released: set[Attempt], counted: set[Attempt]) -> set[Attempt]:
    """Charges that pay for the released attempts: their own, or an earlier one of the round that released nothing."""
    found: set[Attempt] = set()
    for attempt in sorted(released):
        charges = [charge for charge in counted if charge[:2] == attempt[:2] and charge[2] <= attempt[2]]
        assert charges, f"{name}: released and not charged: {attempt}"
        assert max(charges) not in found, f"{name}: two attempts released under the charge of {max(charges)}"
        found.add(max(charges))
    return found


@dataclass
class Fault:
    """One fault at work: tests note what happens and who may be harmed by it.

    Attributes:
        victims: organization -> charges that may be counted though nothing of theirs was released.
        away: organizations that may miss deliveries.
    """

    record: FaultRecord
    victims: dict[str, int] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)

    def note(self, text: str) -> None:
        """For the table."""
        self.record.note(text)

    def hits(self, *members: Member, charges: int = 1) -> None:
        """These lose up to ``charges`` charges, and deliveries."""
        for member in members:
            self.victims[member.name] = self.victims.get(member.name, 0) + charges
            self.away.add(member.name)

    def ends(self) -> None:
        """Recovery is counted from here."""
        self.started = time.monotonic()

    def recovered(self) -> None:
        """It is as before."""
        self.record.recovery_s = time.monotonic() - self.started


class Invariants:
    """Checks of one deployment; `fault` wraps an injection."""

    def __init__(self, deployment: Deployment, watch: Watch) -> None:
        self.deployment, self.watch = deployment, watch
        self._explained: dict[str, set[Attempt]] = defaultdict(set)
        self._twice: dict[str, set[int]] = defaultdict(set)  # reservations of attempts that were reserved anew
        self._checked_adapters = 0
        self._harmed: set[str] = set()  # by the last fault

    @contextlib.contextmanager
    def fault(self, name: str) -> Iterator[Fault]:
        """Record a fault; on leaving, everything that has to hold is checked."""
        fault = Fault(FaultRecord(name))
        before = self._lost()
        for member in self.deployment.organizations:
            self._explained[member.name] |= self._over(member)[1]
        try:
            yield fault
        except BaseException:
            fault.note("FAILED")
            RECORDS.append(fault.record)
            raise
        finally:
            harmed, self._harmed = self._harmed, fault.away
        fault.record.rounds_lost = self._lost() - before
        fault.away = fault.away | harmed  # an adapter rides with the next round's begin, which an earlier fault may hit
        RECORDS.append(fault.record)
        try:
            self.check(fault)
        except BaseException:
            fault.note("FAILED")
            raise
        finally:
            self._checked_adapters = max(self._checked_adapters, int(self.deployment.run_state()["delivered"]))

    def _lost(self) -> int:
        """Attempts of completed rounds that ended without a sum."""
        return sum(record.attempt for record in self.deployment.completed())

    def check(self, fault: Fault) -> None:
        """Ledgers, attempts, keys, adapters."""
        records = self.deployment.records()
        completed = [record for record in records if record.state == "completed"]
        assert [record.round for record in completed] == list(range(1, len(completed) + 1)), "rounds with gaps"
        order = [(record.round, record.attempt) for record in records]
        assert order == sorted(set(order)), "an attempt's number was used twice"
        self.watch.check()
        for member in self.deployment.organizations:
            over = self._ledger(member, fault)
            fault.record.epsilon_error = max(fault.record.epsilon_error, over)
        self._adapters(fault, completed)

    def _over(self, member: Member) -> tuple[LedgerReading, set[Attempt]]:
        """The ledger, which must hold, and attempts that it counts although nothing of theirs may have left."""
        path = member.folder / "ledger.sqlite"
        records = self.deployment.records()
        last = max(((record.round, record.attempt) for record in records), default=(0, 0))
        reading = read_ledger(path)
        assert not reading.problems, f"{member.name}: {reading.problems}"
        charges = reading.content.charges
        counted = {attempt_of(charge) for charge in charges if charge.counted}
        settled = [attempt_of(charge) for charge in charges if charge.state == "settled"]
        assert len(set(settled)) == len(settled), f"{member.name}: an attempt was trained twice"
        run_id, key = str(self.deployment.run_state()["run_id"]), self.deployment.key(member)
        released = {(run_id, record.round, record.attempt) for record in records if key in record.included}
        released |= self.watch.masked[member.name]
        return reading, {attempt for attempt in counted - paying(member.name, released, counted) if attempt[1:] <= last}

    def _ledger(self, member: Member, fault: Fault) -> float:
        """The overcount that this fault left."""
        reading, over = self._over(member)
        new = over - self._explained[member.name]
        self._explained[member.name] |= new
        allowed = fault.record.rounds_lost + fault.victims.get(member.name, 0)
        assert len(new) <= allowed, f"{member.name}: {new} are counted for nothing; {allowed} at most should be"
        charges = [charge for charge in reading.content.charges if charge.counted]
        settled = {attempt_of(charge) for charge in charges if charge.state == "settled"}
        # a worker that died between its reservation and its claim reserves anew: the first one stays counted
        twice = {c.reservation for c in charges if c.state == "reserved" and attempt_of(c) in settled}
        twice -= self._twice[member.name]
        self._twice[member.name] |= twice
        assert len(twice) <= allowed, f"{member.name}: {len(twice)} reservations are counted for nothing"
        without = [c.event for c in charges if attempt_of(c) not in new and c.reservation not in twice]
        delta = reading.content.genesis.delta
        return epsilon_prv([c.event for c in charges], delta) - epsilon_prv(without, delta) if new or twice else 0.0

    def _adapters(self, fault: Fault, completed: list[RoundRecord]) -> None:
        """Organizations that were there hold the server's adapters; nobody holds another one."""
        delivered = int(self.deployment.run_state()["delivered"])
        for record in completed:
            if not self._checked_adapters < record.round <= delivered:
                continue
            for member in self.deployment.organizations:
                statement = read_statement(member.folder / "rounds" / str(record.round))
                if statement is None:
                    assert member.name in fault.away, f"{member.name} is without the adapter of round {record.round}"
                    continue
                assert statement.llm_adapter_sha256 == record.llm_adapter_sha256
                place = member.folder / "rounds" / str(record.round) / "llm_adapter"
                assert not statement.problems(place, record.round, self.deployment.invitation.provider_key)
