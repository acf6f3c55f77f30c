"""What a ledger's rows say: JSON bodies read into charges, without touching files.

Kinds of row: ``genesis`` (whose ledger, delta, key, budget), ``budget`` (a changed lifetime budget),
``reserve`` (a charge, written before training), ``settle`` (what was observed), ``abort`` (never settled).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from gradtf_fl.privacy.chain import Entry, Problem
from gradtf_fl.privacy.events import ACCOUNTANT, ADJACENCY, NOISE_UNRECORDED, SAMPLER, UNIT, DpEvent
from gradtf_fl.privacy.skellam import SkellamEvent

FORMAT = "gradtf-fl ledger 1"
ChargeState = Literal["reserved", "settled", "aborted", "released"]


@dataclass(frozen=True)
class Genesis:
    """The first row: what every figure of this ledger refers to. ``public_key`` is Ed25519, 32 bytes."""

    organization: str
    delta: float
    public_key: bytes
    created: str
    unit: str = UNIT
    adjacency: str = ADJACENCY
    sampler: str = SAMPLER
    accountant: str = ACCOUNTANT

    def body(self) -> str:
        """Canonical JSON."""
        document = {**vars(self), "public_key": self.public_key.hex(), "format": FORMAT}
        return canonical(document)

    @classmethod
    def parse(cls, body: str) -> Genesis:
        """Genesis of `body`'s form; ValueError on any other."""
        document = _document(body)
        if document.get("format") != FORMAT:
            raise ValueError(f"format {FORMAT!r} is expected")
        names = ("organization", "created", "unit", "adjacency", "sampler", "accountant")
        texts = {name: _text(document, name) for name in names}
        key = bytes.fromhex(_text(document, "public_key"))
        delta = _number(document, "delta")
        if not 0 < delta < 1:
            raise ValueError(f"delta {delta} lies outside 0..1")
        return cls(delta=delta, public_key=key, **texts)


@dataclass(frozen=True)
class Charge:
    """One training run's cost.

    Attributes:
        reservation: number of its ``reserve`` row.
        state: reserved (counted in full), settled (observed event counted), aborted (counted in full),
            released (nothing was trained: not counted).
        event: what counts; the reserved one until settled.
        client_level: the Skellam noise on the sum that the update goes into, where the round has that layer.
    """

    reservation: int
    run_id: str
    round: int
    attempt: int
    event: DpEvent
    note: str
    noise: str
    when: str
    state: ChargeState = "reserved"
    client_level: SkellamEvent | None = None

    @property
    def counted(self) -> bool:
        """Whether epsilon includes it."""
        return self.state != "released"


@dataclass(frozen=True)
class Replay:
    """A ledger's content: budget in epsilon (may be inf), charges in order, and rows that make no sense."""

    genesis: Genesis
    budget: float
    charges: tuple[Charge, ...]
    problems: tuple[Problem, ...]

    @property
    def events(self) -> tuple[DpEvent, ...]:
        """Every event that counts, in order."""
        return tuple(charge.event for charge in self.charges if charge.counted)

    @property
    def client_level(self) -> tuple[SkellamEvent, ...]:
        """Skellam events of every charge that counts, whether or not its round ended well."""
        return tuple(charge.client_level for charge in self.charges if charge.counted and charge.client_level)


def canonical(document: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces; floats by ``repr``, so they round-trip exactly. NaN is refused."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def budget_body(budget: float, when: str) -> str:
    """Body of a ``budget`` row; an infinite budget is null."""
    return canonical({"budget": None if math.isinf(budget) else budget, "when": when})


def event_document(event: DpEvent) -> dict[str, Any]:
    """JSON form of an event."""
    return {"sigma": event.sigma, "q": event.q, "steps": event.steps}


def skellam_document(event: SkellamEvent) -> dict[str, Any]:
    """JSON form of a Skellam event."""
    return asdict(event)


def replay(entries: Sequence[Entry]) -> Replay:
    """Read all rows in order; bad rows become problems. ValueError when there is no readable genesis."""
    if not entries or entries[0].kind != "genesis":
        raise ValueError("the first row is no genesis row")
    genesis = Genesis.parse(entries[0].body)
    budget = math.inf
    charges: dict[int, Charge] = {}
    problems: list[Problem] = []
    for entry in entries[1:]:
        try:
            document = _document(entry.body)
            if entry.kind == "budget":
                budget = math.inf if document.get("budget") is None else _number(document, "budget")
            elif entry.kind == "reserve":
                charges[entry.number] = _charge(entry.number, document)
            else:
                reservation = _whole(document, "reservation")
                charges[reservation] = _close(charges[reservation], entry.kind, document)
        except (ValueError, KeyError) as error:
            problems.append(Problem(entry.number, f"a {entry.kind} row that makes no sense ({error})"))
    return Replay(genesis, budget, tuple(charges.values()), tuple(problems))


def _charge(number: int, document: Mapping[str, Any]) -> Charge:
    texts = {name: _text(document, name) for name in ("run_id", "note", "noise", "when")}
    counts = {name: _whole(document, name) for name in ("round", "attempt")}
    skellam = document.get("client_level")
    client_level = None if skellam is None else _skellam(skellam)
    return Charge(number, event=_event(document), client_level=client_level, **texts, **counts)  # type: ignore[arg-type]


def _close(charge: Charge, kind: str, document: Mapping[str, Any]) -> Charge:
    if charge.state != "reserved":
        raise ValueError(f"reservation {charge.reservation} is {charge.state} already")
    if kind == "settle":
        noise = _text(document, "noise")
        noise = charge.noise if noise == NOISE_UNRECORDED else noise
        return replace(charge, event=_event(document), state="settled", noise=noise)
    if kind == "abort":
        return replace(charge, state="aborted" if document.get("released") is not False else "released")
    raise ValueError(f"unknown kind {kind!r}")


def _document(body: str) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except RecursionError as error:
        raise ValueError("the body is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("the body is no JSON object")
    return document


def _event(document: Mapping[str, Any]) -> DpEvent:
    return DpEvent(_number(document, "sigma"), _number(document, "q"), _whole(document, "steps"))


def _skellam(document: object) -> SkellamEvent:
    if not isinstance(document, dict):
        raise ValueError("client_level is no object")
    reals = {name: _number(document, name) for name in ("variance", "l2", "l1")}
    return SkellamEvent(**reals, releases=_whole(document, "releases"), noisers=_whole(document, "noisers"))


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return value


def _number(document: Mapping[str, Any], name: str) -> float:
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is no number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} is too large") from error


def _whole(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is no whole number")
    return value
