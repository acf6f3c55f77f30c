"""The ledger's promises: refusal before writing, reserve before training, one writer at a time."""

from __future__ import annotations

import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.errors import BudgetExhausted, ConfigError, VerificationFailed
from gradtf_fl.privacy import NOISE_SEEDED, DpEvent, Ledger, epsilon_prv, noise_multiplier, read_ledger
from gradtf_fl.privacy.ledger import head as head_module
from gradtf_fl.privacy.ledger.head import Head, HeldHead, find_head

from .conftest import EVENT


def files(ledger: Ledger) -> dict[str, bytes]:
    """But for SQLite's shared memory, in which readers and writers take notes."""
    paths = sorted(ledger.path.parent.iterdir())
    return {path.name: path.read_bytes() for path in paths if not path.name.endswith("-shm")}


def test_a_round_is_reserved_settled_and_counted(ledger: Ledger) -> None:
    reservation = ledger.reserve("run", 1, 0, EVENT, "train.begin")
    assert ledger.events() == (EVENT,)
    observed = DpEvent(EVENT.sigma, EVENT.q, 37)
    ledger.settle(reservation, observed, noise=NOISE_SEEDED)
    assert ledger.events() == (observed,)
    assert ledger.spent().prv == epsilon_prv([observed], 1e-5)
    assert ledger.remaining() == 2.0 - ledger.spent().prv
    (charge,) = ledger.charges()
    assert (charge.state, charge.run_id, charge.round, charge.noise) == ("settled", "run", 1, NOISE_SEEDED)
    assert ledger.verify() == ()


def test_a_round_past_the_budget_is_refused_before_anything_is_written(ledger: Ledger) -> None:
    ledger.reserve("run", 1, 0, EVENT)
    ledger.settle(ledger.reserve("run", 2, 0, EVENT), EVENT)
    before = files(ledger)
    with pytest.raises(BudgetExhausted, match=r"from 1\.697 to 2\.078, past the budget of 2 \(delta 1e-05\)"):
        ledger.reserve("run", 3, 0, EVENT)
    assert files(ledger) == before


def test_a_plan_calibrated_to_the_budget_fits_it_exactly_once(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    event = DpEvent(noise_multiplier(2.0, 1e-5, 1 / 16, 150), 1 / 16, 50)
    ledger = Ledger.open(tmp_path / "l", identity_key=key, organization="o", delta=1e-5, budget=2.0)
    for round in (1, 2, 3):
        ledger.settle(ledger.reserve("run", round, 0, event), event)
    with pytest.raises(BudgetExhausted):
        ledger.reserve("run", 4, 0, event)


def test_no_noise_never_fits_a_finite_budget(ledger: Ledger) -> None:
    with pytest.raises(BudgetExhausted, match="inf"):
        ledger.reserve("run", 1, 0, DpEvent(0.0, 0.5, 1))


def test_an_aborted_round_stays_counted_unless_nothing_was_trained(ledger: Ledger) -> None:
    ledger.abort(ledger.reserve("run", 1, 0, EVENT))
    assert ledger.events() == (EVENT,)
    ledger.abort(ledger.reserve("run", 2, 0, EVENT), released=False)
    assert ledger.events() == (EVENT,)
    assert [charge.state for charge in ledger.charges()] == ["aborted", "released"]


def test_a_reservation_is_closed_once(ledger: Ledger) -> None:
    reservation = ledger.reserve("run", 1, 0, EVENT)
    ledger.settle(reservation, EVENT)
    for again in (lambda: ledger.settle(reservation, EVENT), lambda: ledger.abort(reservation, released=False)):
        with pytest.raises(ValueError, match="no open reservation 3"):
            again()
    assert ledger.events() == (EVENT,)


def test_using_more_than_reserved_is_recorded_and_raised(ledger: Ledger) -> None:
    reservation = ledger.reserve("run", 1, 0, EVENT)
    more = DpEvent(EVENT.sigma, EVENT.q, EVENT.steps + 1)
    with pytest.raises(VerificationFailed, match="more than the reserved"):
        ledger.settle(reservation, more)
    assert ledger.events() == (more,)


@pytest.mark.long
def test_a_crash_while_training_leaves_the_charge_counted(ledger: Ledger, key: Ed25519PrivateKey) -> None:
    code = (
        "import os\n" + PREPARE + "ledger.reserve('run', 1, 0, DpEvent(1.75, 1 / 16, 50))\nos._exit(9)  # in the middle"
    )
    assert run_python(code, ledger, key).wait() == 9
    assert ledger.verify() == ()
    assert ledger.events() == (EVENT,)


def test_a_crash_before_the_head_is_renewed_is_no_break(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(HeldHead, "write", lambda *_, **__: (_ for _ in ()).throw(OSError("power cut")))
        with pytest.raises(OSError, match="power cut"):
            ledger.reserve("run", 1, 0, EVENT)
    assert ledger.verify() == ()
    assert ledger.events() == (EVENT,)
    assert ledger.head  # renews it, whoever left it behind
    head = find_head(ledger.path)
    assert isinstance(head, Head)
    assert head.rows == 3
    ledger.reserve("run", 2, 0, EVENT)
    assert ledger.verify() == ()


def test_a_head_that_another_writer_holds_is_waited_for(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "WAIT_S", 0.05)
    with HeldHead(ledger.path), pytest.raises(TimeoutError, match=r"ledger\.head: another process"):
        ledger.reserve("run", 1, 0, EVENT)
    ledger.reserve("run", 1, 0, EVENT)
    assert ledger.events() == (EVENT,)


@pytest.mark.parametrize("left", ["nothing", "an empty head", "a head", "an empty ledger"])
def test_a_ledger_that_was_half_made_is_made(tmp_path: Path, key: Ed25519PrivateKey, left: str) -> None:
    path = tmp_path / "ledger.sqlite"
    if left == "an empty head":
        path.with_name("ledger.head").touch()
    elif left != "nothing":
        with HeldHead(path, create=True):
            pass
    if left == "an empty ledger":
        path.touch()
    ledger = Ledger.open(path, identity_key=key, organization="clinic", delta=1e-5, budget=2.0)
    assert ledger.verify() == ()


PREPARE = """
import sys
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from gradtf_fl.privacy import DpEvent, Ledger
key = load_pem_private_key(sys.argv[2].encode(), None)
ledger = Ledger.open(sys.argv[1], identity_key=key, organization="clinic", delta=1e-5, budget=2.0)
"""


def run_python(code: str, ledger: Ledger, key: Ed25519PrivateKey) -> subprocess.Popen[str]:
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    command = [sys.executable, "-c", code, str(ledger.path), pem]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


@pytest.mark.long
def test_two_processes_take_turns_and_share_one_budget(ledger: Ledger, key: Ed25519PrivateKey) -> None:
    code = (
        PREPARE
        + """
from gradtf_fl.errors import BudgetExhausted
granted = 0
for round in range(12):
    try:
        ledger.reserve("run", round, 0, DpEvent(1.75, 1 / 16, 10))
        granted += 1
    except BudgetExhausted:
        pass
print(granted)
"""
    )
    processes = [run_python(code, ledger, key) for _ in range(2)]
    granted = [int(process.communicate()[0]) for process in processes]
    assert ledger.verify() == ()
    assert sum(granted) == len(ledger.charges()) == 13  # 13 x 10 steps: 1.934; 14 x 10: 2.006
    assert ledger.spent().prv <= 2.0


def test_two_processes_may_create_it_at_once(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    fresh = Ledger(tmp_path / "new" / "ledger.sqlite", key)
    processes = [run_python(PREPARE, fresh, key) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert read_ledger(fresh.path).rows == 2
    assert fresh.verify() == ()


def test_only_the_owner_may_read_it(ledger: Ledger) -> None:
    ledger.reserve("run", 1, 0, EVENT)
    ledger.close()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in ledger.path.parent.iterdir()}
    assert modes == {"ledger.sqlite": 0o600, "ledger.head": 0o600}


def test_reading_leaves_the_folder_as_it_was(ledger: Ledger) -> None:
    ledger.reserve("run", 1, 0, EVENT)
    ledger.close()
    before = files(ledger)
    assert list(before) == ["ledger.head", "ledger.sqlite"]
    os.chmod(ledger.path.parent, 0o500)
    try:
        assert read_ledger(ledger.path).content.events == (EVENT,)
    finally:
        os.chmod(ledger.path.parent, 0o700)
    assert files(ledger) == before


def test_reopening_keeps_everything_and_records_a_new_budget(ledger: Ledger, key: Ed25519PrivateKey) -> None:
    ledger.reserve("run", 1, 0, EVENT)
    owner = {"identity_key": key, "organization": "clinic", "delta": 1e-5}
    again = Ledger.open(ledger.path, budget=1.0, **owner)
    assert again.events() == (EVENT,)
    assert again.remaining() == 0
    assert read_ledger(ledger.path).content.budgets == {"train": 1.0}
    unlimited = Ledger.open(ledger.path, budget=math.inf, **owner)
    unlimited.reserve("run", 2, 0, DpEvent(0.0, 0.5, 1))
    assert unlimited.spent().prv == math.inf


def test_another_owner_delta_or_key_is_refused_all_at_once(ledger: Ledger) -> None:
    with pytest.raises(ConfigError) as caught:
        Ledger.open(
            ledger.path,
            identity_key=Ed25519PrivateKey.generate(),
            organization="bank",
            delta=1e-6,
            budget=2.0,
        )
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError) as caught:
        Ledger.open(ledger.path, identity_key=Ed25519PrivateKey.generate(), organization="x", delta=0, budget=math.nan)
    assert len(caught.value.problems) == 2
