"""What a ledger's rows say: values written as JSON bodies and read back, without touching files.

Kinds of row: ``genesis`` (whose ledger, delta, key), ``budget`` (a dataset's lifetime budget), ``reserve`` (a
charge to one dataset, written before training), ``settle`` (what was observed), ``abort`` (never settled),
``rotate`` (another key signs from here on; `gradtf_fl.privacy.ledger.rotation`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from gradtf_fl.errors import ConfigError
from gradtf_fl.privacy.accounting.events import (
    ACCOUNTANT,
    ADJACENCY,
    NOISE_UNRECORDED,
    ROW_UNIT,
    SAMPLER,
    UNIT,
    DpEvent,
    Unit,
)
from gradtf_fl.privacy.accounting.skellam import SkellamEvent

FORMAT = "gradtf-fl ledger 3"
FORMATS = ("gradtf-fl ledger 1", "gradtf-fl ledger 2", FORMAT)
"""Ledgers that are read. Format 1 knew neither datasets (all of its charges are to `TRAIN`) nor rotation; 1 and 2 knew
no unit but the row."""
TRAIN = "train"
"""The dataset that is charged where none is named."""
ChargeState = Literal["reserved", "settled", "aborted", "released"]
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


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
    format: str = FORMAT

    def body(self) -> str:
        """Canonical JSON."""
        return canonical({**vars(self), "public_key": self.public_key.hex()})

    @classmethod
    def parse(cls, body: str) -> Genesis:
        """Genesis of `body`'s form; ValueError on any other."""
        document = read_body(body)
        if document.get("format") not in FORMATS:
            raise ValueError(f"format {FORMAT!r} is expected")
        names = ("organization", "created", "unit", "adjacency", "sampler", "accountant", "format")
        texts = {name: _text(document, name) for name in names}
        key = bytes.fromhex(_text(document, "public_key"))
        delta = _number(document, "delta")
        if not 0 < delta < 1:
            raise ValueError(f"delta {delta} lies outside 0..1")
        return cls(delta=delta, public_key=key, **texts)


@dataclass(frozen=True, slots=True)
class Charge:
    """One training run's cost.

    Attributes:
        reservation: number of its ``reserve`` row.
        state: reserved (counted in full), settled (observed event counted), aborted (counted in full),
            released (nothing was trained: not counted).
        event: what counts; the reserved one until settled.
        client_level: the Skellam noise on the sum that the update goes into, where the round has that layer.
        dataset: whose rows were trained on.
        unit: what was drawn and clipped as one.
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
    dataset: str = TRAIN
    unit: Unit = ROW_UNIT

    @property
    def counted(self) -> bool:
        """Whether epsilon includes it."""
        return self.state != "released"

    def closed(self, kind: str, document: Mapping[str, Any]) -> Charge:
        """This charge after its ``settle`` or ``abort`` row; ValueError where that makes no sense."""
        if self.state != "reserved":
            raise ValueError(f"reservation {self.reservation} is {self.state} already")
        if kind == "settle":
            noise = _text(document, "noise")
            noise = self.noise if noise == NOISE_UNRECORDED else noise
            return replace(self, event=_event(document), state="settled", noise=noise)
        return replace(self, state="aborted" if document.get("released") is not False else "released")


def check_dataset(name: str) -> str:
    """``name``; ConfigError where it cannot name a dataset."""
    if not _DATASET.fullmatch(name):
        raise ConfigError(f"dataset {name!r}: expected at most 64 letters, digits, '.', '_' and '-'")
    return name


def canonical(document: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces; floats by ``repr``, so they round-trip exactly. NaN is refused."""
    return _CANONICAL.encode(document)


def budget_document(dataset: str, budget: float, unit: Unit, when: str) -> dict[str, Any]:
    """What a ``budget`` row says; an infinite budget is null."""
    return {
        "dataset": dataset,
        "budget": None if math.isinf(budget) else budget,
        "when": when,
        **unit_document(unit),
    }


def read_budget(document: Mapping[str, Any]) -> tuple[str, float, Unit]:
    """Dataset, budget and unit of a ``budget`` row."""
    budget = math.inf if document.get("budget") is None else _number(document, "budget")
    return _text(document, "dataset", TRAIN), budget, read_unit(document)


def unit_document(unit: Unit) -> dict[str, Any]:
    """JSON form of a unit: its name, and the field that says whose a row is."""
    return {"unit": unit.name} | ({} if unit.person is None else {"person": unit.person})


def read_unit(document: Mapping[str, Any]) -> Unit:
    """The unit of a row's document; a row that names none is of a time that knew no other unit than the row."""
    name = _text(document, "unit", "row")
    if name not in ("row", "person"):
        raise ValueError(f"unit {name!r} is neither row nor person")
    if name == "row" and "person" in document:
        raise ValueError("the unit is a row, and a person is named")
    return Unit(_text(document, "person") if name == "person" else None)


def event_document(event: DpEvent) -> dict[str, Any]:
    """JSON form of an event."""
    return {"sigma": event.sigma, "q": event.q, "steps": event.steps}


def skellam_document(event: SkellamEvent) -> dict[str, Any]:
    """JSON form of a Skellam event."""
    return asdict(event)


def read_charge(number: int, document: Mapping[str, Any]) -> Charge:
    """The charge of a ``reserve`` row."""
    skellam = document.get("client_level")
    return Charge(
        reservation=number,
        run_id=_text(document, "run_id"),
        round=_whole(document, "round"),
        attempt=_whole(document, "attempt"),
        event=_event(document),
        note=_text(document, "note"),
        noise=_text(document, "noise"),
        when=_text(document, "when"),
        client_level=None if skellam is None else read_skellam(skellam),
        dataset=_text(document, "dataset", TRAIN),
        unit=read_unit(document),
    )


def read_reservation(document: Mapping[str, Any]) -> int:
    """Which reservation a ``settle`` or ``abort`` row closes."""
    return _whole(document, "reservation")


def read_body(body: str) -> dict[str, Any]:
    """A row's JSON object; ValueError for anything else."""
    try:
        document = json.loads(body)
    except RecursionError as error:
        raise ValueError("the body is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("the body is not a JSON object")
    return document


def _event(document: Mapping[str, Any]) -> DpEvent:
    return DpEvent(_number(document, "sigma"), _number(document, "q"), _whole(document, "steps"))


def read_skellam(document: object) -> SkellamEvent:
    """The event in `skellam_document`'s form; ValueError on any other."""
    if not isinstance(document, dict):
        raise ValueError("client_level is not an object")
    reals = {name: _number(document, name) for name in ("variance", "l2", "l1")}
    return SkellamEvent(**reals, releases=_whole(document, "releases"), noisers=_whole(document, "noisers"))


def _text(document: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = document.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"{name} is not text")
    return value


def _number(document: Mapping[str, Any], name: str) -> float:
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} is too large") from error


def _whole(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is not a whole number")
    return value
