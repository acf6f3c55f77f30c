"""A ledger's history as Google's dp-accounting describes one (`dp_accounting.DpEvent`), in JSON, and back.

dp-accounting has no JSON form of its own, but a form in named tuples (``DpEvent.to_named_tuple``). The JSON here is
that form, field by field: an object with ``module_name``, ``class_name`` and the event's fields. The mapping, per
dataset:

    a charge: steps releases at (sigma, q)   SelfComposed(PoissonSampled(q, Gaussian(sigma)), steps)
    all charges of a dataset, in order       Composed([...])

sigma is the noise multiplier, standard deviation over L2 sensitivity, in both. Charges that release nothing (no steps,
or q = 0) are left out, those given back too; open and aborted ones stand in full, as they count.

What a DpEvent does not carry stands alongside: whose epsilon it is (the unit), delta, budget, noise generator, and the
Skellam noise on sums, another mechanism with another unit, for which there is no class. Lost are run and round of a
charge, times, and every signature, so any proof. An import is signed by whoever imports it.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.errors import ConfigError
from gradtf_fl.privacy.accounting.events import ACCOUNTANT, NOISE_UNRECORDED, DpEvent, Unit
from gradtf_fl.privacy.accounting.skellam import SkellamEvent
from gradtf_fl.privacy.ledger.books import DatasetAccount, Replay
from gradtf_fl.privacy.ledger.export import import_ledger
from gradtf_fl.privacy.ledger.ledger import Ledger
from gradtf_fl.privacy.ledger.reading import ledger_rows
from gradtf_fl.privacy.ledger.records import (
    check_dataset,
    read_body,
    read_skellam,
    read_unit,
    skellam_document,
    unit_document,
)

if TYPE_CHECKING:
    from dp_accounting import dp_event

FORMAT = "gradtf-fl history of dp-accounting events 1"
MODULE = "dp_accounting.dp_event"
NOTE = "imported from a history of dp-accounting events"
LOST = (
    "A DpEvent says which mechanism ran, and how often. It says neither whose epsilon that is (see unit) nor what the "
    "noise came from (see noise), and it carries no signature: this file proves nothing. The ledger, or its signed "
    "export, does."
)
MOST_EVENTS = 1_000_000


@dataclass(frozen=True)
class DatasetHistory:
    """What was released of one dataset.

    Attributes:
        name: of the dataset.
        unit: whose epsilon it is.
        budget: lifetime limit of that epsilon; may be inf.
        events: in order.
        client_level: the Skellam noise on the sum that each event went into; None where there was none.
        noise: what each event's noise came from.
    """

    name: str
    unit: Unit
    budget: float
    events: tuple[DpEvent, ...]
    client_level: tuple[SkellamEvent | None, ...]
    noise: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """What a ledger says was released, without its proof.

    Attributes:
        organization: whose ledger.
        delta: that its epsilons refer to.
        datasets: each with its own account.
    """

    organization: str
    delta: float
    datasets: tuple[DatasetHistory, ...]


def history_of(content: Replay) -> History:
    """What the rows of a ledger add up to."""
    genesis = content.genesis
    return History(genesis.organization, genesis.delta, tuple(_dataset(account) for account in content.datasets))


def history_text(history: History) -> str:
    """The JSON file; equal histories give equal bytes."""
    document = {
        "format": FORMAT,
        "not_carried": LOST,
        "accountant": ACCOUNTANT,
        "organization": history.organization,
        "delta": history.delta,
        "datasets": [_document(dataset) for dataset in history.datasets],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def looks_like_history(content: bytes) -> bool:
    """Whether a file is one of these, be it a damaged one."""
    return FORMAT.encode() in content[:512]


def read_history(path: Path) -> History:
    """The history in a file.

    Raises:
        ConfigError: no such file, another form, or a mechanism that this ledger does not know.
    """
    try:
        document = read_body(path.read_text(encoding="utf-8"))
        if document.get("format") != FORMAT:
            raise ValueError(f"format {FORMAT!r} is expected")
        datasets = tuple(_read_dataset(one) for one in document["datasets"])
        names = [dataset.name for dataset in datasets]
        if not names or len(set(names)) != len(names):
            raise ValueError("a dataset is missing, or there twice")
        return History(str(document["organization"]), float(document["delta"]), datasets)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ConfigError:
        raise
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: no history of dp-accounting events ({error})") from error


def import_history(history: History, key: Ed25519PrivateKey, target: Path) -> None:
    """Make a ledger of ``history`` at ``target``, signed by ``key``: its events count as charged, whatever the budget.

    Raises:
        ConfigError: the place is taken, or the history says what no ledger can.
    """
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / target.name
        for dataset in history.datasets:
            _charge(draft, history, dataset, key)
        import_ledger(ledger_rows(draft), target)


def _charge(draft: Path, history: History, dataset: DatasetHistory, key: Ed25519PrivateKey) -> None:
    def opened(budget: float) -> Ledger:
        return Ledger.open(
            draft,
            identity_key=key,
            organization=history.organization,
            delta=history.delta,
            budget={dataset.name: budget},
            unit=dataset.unit,
        )

    with opened(math.inf) as ledger:  # what was spent is spent
        for number, event in enumerate(dataset.events, 1):
            noise, sums = dataset.noise[number - 1], dataset.client_level[number - 1]
            ledger.settle(
                ledger.reserve(
                    "imported", number, 0, event, NOTE, dataset=dataset.name, noise=noise, client_level=sums
                ),
                event,
                noise=noise,
            )
    with opened(dataset.budget):
        pass


def as_dp_event(events: Sequence[DpEvent]) -> dp_event.ComposedDpEvent:
    """A history as dp-accounting's own value, for any of its accountants.

    >>> from gradtf_fl.privacy.ledger.dpevent import as_dp_event
    >>> as_dp_event([DpEvent(sigma=1.0, q=0.25, steps=3)]).events[0].count
    3
    """
    from dp_accounting import dp_event

    return dp_event.ComposedDpEvent(
        [
            dp_event.SelfComposedDpEvent(
                dp_event.PoissonSampledDpEvent(event.q, dp_event.GaussianDpEvent(event.sigma)), event.steps
            )
            for event in events
            if not event.releases_nothing
        ]
    )


def _dataset(account: DatasetAccount) -> DatasetHistory:
    charges = [charge for charge in account.charges if charge.counted and not charge.event.releases_nothing]
    return DatasetHistory(
        account.name,
        account.unit,
        account.budget,
        tuple(charge.event for charge in charges),
        tuple(charge.client_level for charge in charges),
        tuple(charge.noise for charge in charges),
    )


def _document(dataset: DatasetHistory) -> dict[str, Any]:
    return {
        "name": dataset.name,
        **unit_document(dataset.unit),
        "adjacency": dataset.unit.adjacency,
        "sampler": dataset.unit.sampler,
        "budget": None if math.isinf(dataset.budget) else dataset.budget,
        "noise": list(dataset.noise),
        "client_level": [None if one is None else skellam_document(one) for one in dataset.client_level],
        "event": _fields(as_dp_event(dataset.events).to_named_tuple()),
    }


def _fields(value: Any) -> Any:
    """A named tuple as an object of its fields, and what is in it."""
    if hasattr(value, "_fields"):
        return {name: _fields(getattr(value, name)) for name in value._fields}
    return [_fields(one) for one in value] if isinstance(value, list) else value


def _read_dataset(document: Mapping[str, Any]) -> DatasetHistory:
    events = tuple(_flat(document["event"], 1))
    noise = document.get("noise") or [NOISE_UNRECORDED] * len(events)
    sums = document.get("client_level") or [None] * len(events)
    if not len(events) == len(noise) == len(sums) <= MOST_EVENTS:
        raise ValueError(f"{len(events)} events, {len(noise)} noise generators, {len(sums)} client_level entries")
    budget = document.get("budget")
    return DatasetHistory(
        check_dataset(str(document["name"])),
        read_unit(document),
        math.inf if budget is None else float(budget),
        events,
        tuple(None if one is None else read_skellam(one) for one in sums),
        tuple(map(str, noise)),
    )


def _flat(document: Mapping[str, Any], count: int) -> list[DpEvent]:
    """Our events of dp-accounting's, each ``count`` times. Classes are told by name: nothing is imported by a file."""
    name = document["class_name"]
    if document["module_name"] != MODULE:
        raise ValueError(f"module {MODULE!r} is expected")
    if name == "ComposedDpEvent":
        return [event for one in document["events"] for event in _flat(one, count)]
    if name == "SelfComposedDpEvent":
        return _flat(document["event"], count * _count(document["count"]))
    if name == "PoissonSampledDpEvent":
        (inner,) = _flat(document["event"], 1)
        if document["event"]["class_name"] != "GaussianDpEvent":
            raise ValueError("only the Gaussian mechanism may be sampled")
        return [DpEvent(inner.sigma, float(document["sampling_probability"]), count)]
    if name == "GaussianDpEvent":
        return [DpEvent(float(document["noise_multiplier"]), 1.0, count)]
    if name == "NoOpDpEvent":
        return []
    raise ValueError(f"{name}: this ledger knows the Poisson-subsampled Gaussian mechanism alone")


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("count is not a whole number >= 0")
    return value
