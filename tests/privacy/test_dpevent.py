"""A ledger's history as dp-accounting's DpEvents in JSON: theirs to read, exact on its way back, else refused."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dp_accounting import dp_event, privacy_accountant
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

from gradtf_fl.errors import BudgetExhausted, ConfigError
from gradtf_fl.privacy import (
    NOISE_CSPRNG,
    DpEvent,
    Ledger,
    SkellamEvent,
    Unit,
    epsilons,
    history_of,
    read_history,
    read_ledger,
)
from gradtf_fl.privacy.ledger.dpevent import as_dp_event, history_text
from gradtf_fl.secagg import Identity

from .conftest import EVENT
from .test_export import failure, run

DELTA = 1e-5
OTHER = DpEvent(sigma=0.1 + 1.1, q=1 / 3, steps=7)
SUMS = SkellamEvent(variance=100.0, l2=2.0, l1=5.0, releases=1, noisers=4)
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def full(tmp_path: Path, key: Ed25519PrivateKey) -> Path:
    """Two datasets with other units, and charges in every state: settled, open, aborted, given back, empty."""
    path = tmp_path / "ledger.sqlite"
    about: dict[str, Any] = {"identity_key": key, "organization": "clinic", "delta": DELTA}
    with Ledger.open(path, budget=math.inf, **about) as ledger:
        ledger.settle(ledger.reserve("run", 1, 0, EVENT), EVENT, noise=NOISE_CSPRNG)
        ledger.reserve("run", 2, 0, OTHER, client_level=SUMS)
        ledger.abort(ledger.reserve("run", 3, 0, EVENT))
        ledger.abort(ledger.reserve("run", 4, 0, EVENT), released=False)
        ledger.settle(ledger.reserve("run", 5, 0, EVENT), DpEvent(EVENT.sigma, EVENT.q, 0))
    with Ledger.open(path, budget={"visits": 9.5}, unit=Unit("patient"), **about) as ledger:
        ledger.reserve("run", 1, 0, OTHER, dataset="visits")
    return path


@pytest.fixture
def exported(full: Path, tmp_path: Path) -> Path:
    out = tmp_path / "history.json"
    assert run("export", "--ledger", full, "--format", "dpevent", "--out", out).exit_code == 0
    return out


def theirs(document: dict[str, Any]) -> dp_event.DpEvent:
    """dp-accounting's own reading of the JSON form: objects to named tuples, and those to events."""

    def as_tuple(value: Any) -> Any:
        if isinstance(value, dict):
            return namedtuple("Event", list(value))(**{name: as_tuple(one) for name, one in value.items()})  # type: ignore[misc]
        return [as_tuple(one) for one in value] if isinstance(value, list) else value

    return dp_event.DpEvent.from_named_tuple(as_tuple(document))


def test_dp_accounting_reads_it_and_its_epsilon_is_ours(exported: Path) -> None:
    """PLD on the same mesh is our own cross-check to the last digits; PRV, which enforces budgets, lies just above."""
    for dataset in json.loads(exported.read_text())["datasets"]:
        event = theirs(dataset["event"])
        accountant = PLDAccountant(privacy_accountant.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-4)
        assert accountant.supports(event)
        found = float(accountant.compose(event).get_epsilon(DELTA))
        history = {one.name: one for one in read_history(exported).datasets}[dataset["name"]]
        ours = epsilons(history.events, DELTA)
        assert found == pytest.approx(ours.pld, abs=1e-6)
        assert ours.pld <= ours.prv + 1e-3  # two upper bounds: PLD's mesh is finer
        assert found <= ours.prv <= found + 0.03
        assert found < ours.rdp


def test_what_counts_is_there_in_order_and_nothing_else(full: Path, exported: Path) -> None:
    train, visits = read_history(exported).datasets
    assert train.events == (EVENT, OTHER, EVENT)  # settled, open, aborted
    assert train.client_level == (None, SUMS, None)
    assert train.noise[0] == NOISE_CSPRNG
    assert (train.unit, train.budget) == (Unit(), math.inf)
    assert (visits.events, visits.unit, visits.budget) == ((OTHER,), Unit("patient"), 9.5)
    content = read_ledger(full).content
    assert [tuple(e for e in d.events if not e.releases_nothing) for d in content.datasets] == [
        train.events,
        visits.events,
    ]


def test_a_round_trip_is_exact(full: Path, exported: Path, tmp_path: Path) -> None:
    Identity.generate().save(tmp_path / "identity.key")
    copy = tmp_path / "new" / "ledger.sqlite"
    result = run("import", exported, "--ledger", copy, "--identity-key", tmp_path / "identity.key")
    assert result.exit_code == 0, result.output
    reading = read_ledger(copy)
    assert reading.problems == ()
    assert history_of(reading.content) == history_of(read_ledger(full).content) == read_history(exported)
    assert reading.keys == (Identity.load(tmp_path / "identity.key").public,)
    assert run("export", "--ledger", copy, "--format", "dpevent").stdout == exported.read_text()
    assert {charge.note for charge in reading.content.charges} == {"imported from a history of dp-accounting events"}


def test_what_was_spent_is_imported_past_its_budget(exported: Path, tmp_path: Path) -> None:
    """And then nothing more fits."""
    document = json.loads(exported.read_text())
    document["datasets"][0]["budget"] = 0.5
    exported.write_text(json.dumps(document))
    key = Identity.generate()
    key.save(tmp_path / "identity.key")
    copy = tmp_path / "new" / "ledger.sqlite"
    assert run("import", exported, "--ledger", copy, "--identity-key", tmp_path / "identity.key").exit_code == 0
    with Ledger(copy, key.private) as ledger, pytest.raises(BudgetExhausted, match=r"past the budget of 0\.5"):
        ledger.reserve("run", 9, 0, EVENT)


def test_a_file_says_what_it_cannot_carry(exported: Path) -> None:
    document = json.loads(exported.read_text())
    assert "carries no signature" in document["not_carried"]
    for dataset in document["datasets"]:
        assert {"unit", "adjacency", "sampler", "noise", "client_level", "budget"} <= set(dataset)


def test_a_history_needs_a_key_and_an_export_none(full: Path, exported: Path, tmp_path: Path) -> None:
    target, key = tmp_path / "new" / "ledger.sqlite", tmp_path / "identity.key"
    Identity.generate().save(key)
    assert "--identity-key FILE is missing" in str(failure("import", exported, "--ledger", target))
    signed = tmp_path / "signed.jsonl"
    assert run("export", "--ledger", full, "--out", signed).exit_code == 0
    assert "only for a history" in str(failure("import", signed, "--ledger", target, "--identity-key", key))
    assert not target.exists()


def test_an_import_overwrites_nothing(full: Path, exported: Path, tmp_path: Path) -> None:
    Identity.generate().save(tmp_path / "identity.key")
    before = full.read_bytes()
    assert "never overwritten" in str(
        failure("import", exported, "--ledger", full, "--identity-key", tmp_path / "identity.key")
    )
    assert full.read_bytes() == before


def test_a_broken_ledger_is_not_exported(full: Path, tmp_path: Path) -> None:
    full.with_name("ledger.head").unlink()
    assert failure("export", "--ledger", full, "--format", "dpevent", "--out", tmp_path / "out").exit_code == 5
    assert not (tmp_path / "out").exists()


def test_events_of_any_nesting_are_the_same_history(exported: Path) -> None:
    """Another tool may write the same mechanism otherwise."""
    gaussian = dp_event.GaussianDpEvent(1.5)
    event = dp_event.ComposedDpEvent(
        [
            dp_event.SelfComposedDpEvent(
                dp_event.ComposedDpEvent([dp_event.PoissonSampledDpEvent(0.25, gaussian), gaussian]), 4
            ),
            dp_event.NoOpDpEvent(),
            dp_event.SelfComposedDpEvent(dp_event.SelfComposedDpEvent(gaussian, 2), 3),
        ]
    )
    rewrite(exported, lambda dataset: dataset.update(event=as_document(event), noise=None, client_level=None))
    wanted = DpEvent(1.5, 0.25, 4), DpEvent(1.5, 1.0, 4), DpEvent(1.5, 1.0, 6)
    assert read_history(exported).datasets[0].events == wanted


def as_document(event: dp_event.DpEvent) -> dict[str, Any]:
    from gradtf_fl.privacy.ledger.dpevent import _fields

    found: dict[str, Any] = _fields(event.to_named_tuple())
    return found


def rewrite(path: Path, change: Change) -> None:
    document = json.loads(path.read_text())
    change(document["datasets"][0])
    path.write_text(json.dumps(document))


LAPLACE = dp_event.LaplaceDpEvent(1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["event"].update(module_name="os"), "module 'dp_accounting.dp_event' is expected"),
        (lambda d: d.update(event=as_document(LAPLACE)), "LaplaceDpEvent: this ledger knows"),
        (lambda d: d.update(event=as_document(dp_event.PoissonSampledDpEvent(0.5, LAPLACE))), "LaplaceDpEvent"),
        (
            lambda d: d.update(
                event=as_document(
                    dp_event.PoissonSampledDpEvent(
                        0.5, dp_event.PoissonSampledDpEvent(0.5, dp_event.GaussianDpEvent(1.0))
                    )
                )
            ),
            "only the Gaussian mechanism may be sampled",
        ),
        (lambda d: d["event"]["events"][0].update(count=-1), "count is not a whole number"),
        (lambda d: d["event"]["events"][0].update(count=1.5), "count is not a whole number"),
        (lambda d: d["event"]["events"][0]["event"].update(sampling_probability=2.0), "q must lie in 0..1"),
        (lambda d: d["event"]["events"].pop(), "2 events, 3 noise generators"),
        (lambda d: d.update(unit="village"), "neither row nor person"),
        (lambda d: d.pop("event"), "event"),
        (lambda d: d.update(event=[]), "no history"),
        (lambda d: d.update(name="../x"), "dataset '../x'"),
    ],
)
def test_what_is_no_history_of_ours_is_refused(exported: Path, change: Change, said: str) -> None:
    rewrite(exported, change)
    with pytest.raises(ConfigError) as caught:
        read_history(exported)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": "gradtf-fl history of dp-accounting events 1"}', "[" * 100_000]
)
def test_another_file_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="no history of dp-accounting events"):
        read_history(path)


def test_equal_histories_give_equal_bytes(full: Path, exported: Path) -> None:
    assert history_text(history_of(read_ledger(full).content)) == exported.read_text()
    assert as_dp_event([EVENT, DpEvent(0.0, 0.0, 5)]) == as_dp_event([EVENT])
