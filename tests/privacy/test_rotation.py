"""Key rotation: both keys sign the hand-over, and a hand-over that either of them did not sign is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.cli.audit.audit import audit
from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.privacy import Ledger, read_ledger
from gradtf_fl.privacy.ledger.chain import seal
from gradtf_fl.privacy.ledger.reading import ledger_rows
from gradtf_fl.privacy.ledger.records import canonical
from gradtf_fl.privacy.ledger.rotation import ROTATE, rotation_document
from gradtf_fl.privacy.ledger.store import LedgerFile, append
from gradtf_fl.reports.audit import report_ledger
from gradtf_fl.secagg import Identity

from .conftest import EVENT

WHEN = "2025-01-01T00:00:00+00:00"


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def reopen(ledger: Ledger, key: Ed25519PrivateKey) -> Ledger:
    return Ledger.open(ledger.path, identity_key=key, organization="clinic", delta=1e-5, budget=2.0)


def add_by_hand(path: Path, kind: str, body: str, signer: Ed25519PrivateKey) -> None:
    """A row that `Ledger` would not write."""
    rows = ledger_rows(path)
    file = LedgerFile(path)
    with file.transaction() as connection:
        append(connection, seal(len(rows) + 1, kind, body, rows[-1].hash, signer))
    file.close()


def problems(path: Path) -> list[str]:
    return [str(problem) for problem in read_ledger(path).problems]


def test_the_new_key_goes_on_where_the_old_one_stopped(ledger: Ledger, key: Ed25519PrivateKey) -> None:
    new, newest = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    ledger.settle(ledger.reserve("run", 1, 0, EVENT), EVENT)
    ledger.rotate(new)
    open_then = ledger.reserve("run", 2, 0, EVENT)
    ledger.rotate(newest)
    ledger.settle(open_then, EVENT)
    assert ledger.verify() == ()
    reading = read_ledger(ledger.path)
    assert reading.keys == (public(key), public(new), public(newest))
    assert reading.content.events == (EVENT, EVENT)
    assert reopen(ledger, newest).events() == (EVENT, EVENT)
    (report,) = report_ledger(ledger.path)
    assert report.sound
    assert report.to_json()["chain"]["public_key"] == public(newest).hex()


def test_the_old_key_is_out(ledger: Ledger, key: Ed25519PrivateKey) -> None:
    still_open = reopen(ledger, key)
    still_open.reserve("run", 1, 0, EVENT)
    ledger.rotate(Ed25519PrivateKey.generate())
    with pytest.raises(ConfigError, match="another identity key"):
        reopen(ledger, key)
    with pytest.raises(ConfigError, match="not by ours"):
        still_open.reserve("run", 2, 0, EVENT)
    add_by_hand(ledger.path, "budget", '{"budget":99.0,"dataset":"train"}', key)
    assert problems(ledger.path) == ["row 5: its signature is not the organization's"]


def test_every_key_of_the_ledger_is_a_pin_and_no_other(ledger: Ledger, key: Ed25519PrivateKey) -> None:
    new = Ed25519PrivateKey.generate()
    ledger.rotate(new)
    for known in (key, new):
        assert read_ledger(ledger.path, public_keys=[public(known)]).problems == ()
    stranger = public(Ed25519PrivateKey.generate())
    assert "another key" in str(read_ledger(ledger.path, public_keys=[stranger]).problems[0])


def test_a_rotation_that_the_old_key_did_not_sign_is_found(ledger: Ledger) -> None:
    """Whoever holds the file but no key hands the ledger over to a key of his own and charges on."""
    thief = Ed25519PrivateKey.generate()
    body = canonical(rotation_document(thief, ledger_rows(ledger.path)[-1].hash, WHEN))
    add_by_hand(ledger.path, ROTATE, body, thief)
    add_by_hand(ledger.path, "budget", '{"budget":99.0,"dataset":"train"}', thief)
    expected = [f"row {row}: its signature is not the organization's" for row in (3, 4)]
    assert problems(ledger.path) == expected
    assert [str(p) for p in report_ledger(ledger.path)[0].reading.problems] == expected  # reads only some signatures
    with pytest.raises(VerificationFailed, match="row 3"):
        reopen(ledger, thief)


@pytest.mark.parametrize("how", ["another key", "another place", "no proof", "no key", "no JSON", "too deep"])
def test_a_rotation_that_the_new_key_did_not_sign_is_found(
    ledger: Ledger, key: Ed25519PrivateKey, tmp_path: Path, how: str
) -> None:
    """Even the owner cannot hand the ledger over to somebody who does not know of it."""
    victim = Ed25519PrivateKey.generate()
    previous = ledger_rows(ledger.path)[-1].hash
    document = rotation_document(victim, previous if how != "another place" else bytes(32), WHEN)
    if how == "another key":
        document["proof"] = rotation_document(key, previous, WHEN)["proof"]
    elif how == "no proof":
        del document["proof"]
    elif how == "no key":
        document["public_key"] = "00" * 31
    body = {"no JSON": "rotate", "too deep": "[" * 100_000}.get(how, canonical(document))
    add_by_hand(ledger.path, ROTATE, body, key)
    assert problems(ledger.path)[0].startswith("row 3: hands over to no key")


def test_a_rotation_cannot_be_moved_to_another_ledger(ledger: Ledger, key: Ed25519PrivateKey, tmp_path: Path) -> None:
    new = Ed25519PrivateKey.generate()
    ledger.rotate(new)
    body = ledger_rows(ledger.path)[-1].body
    other = Ledger.open(tmp_path / "other" / "l", identity_key=key, organization="clinic", delta=1e-5, budget=3.0)
    add_by_hand(other.path, ROTATE, body, key)
    assert problems(other.path) == ["row 3: hands over to no key (the new key did not sign it)"]


def test_two_rotations_do_not_make_a_fork_sound(ledger: Ledger, key: Ed25519PrivateKey, tmp_path: Path) -> None:
    """The owner forks the ledger at the rotation: both histories are sound, but none holds the other's head."""
    ledger.close()
    shutil.copytree(ledger.path.parent, tmp_path / "fork", ignore=shutil.ignore_patterns("fork"))
    fork = Ledger(tmp_path / "fork" / "ledger.sqlite", key)
    ledger.rotate(Ed25519PrivateKey.generate())
    fork.rotate(Ed25519PrivateKey.generate())
    assert (ledger.verify(), fork.verify()) == ((), ())
    assert ledger.head not in [row.hash for row in ledger_rows(fork.path)]


def test_the_verb(ledger: Ledger, key: Ed25519PrivateKey, tmp_path: Path) -> None:
    old, new = Identity(key), Identity.generate()
    old.save(tmp_path / "old.key")
    new.save(tmp_path / "new.key")
    ledger.close()
    arguments = ["rotate", "--ledger", str(ledger.path.parent), "--identity-key", str(tmp_path / "old.key")]
    result = CliRunner().invoke(audit, [*arguments, "--new-key", str(tmp_path / "new.key")])
    assert result.exit_code == 0, result.exception
    reading = read_ledger(ledger.path)
    assert reading.keys == (old.public, new.public)
    assert reading.head.hex() in result.output
    assert reading.problems == ()
    again = CliRunner().invoke(audit, [*arguments, "--new-key", str(tmp_path / "new.key")])
    assert isinstance(again.exception, ConfigError)
    assert ledger_rows(ledger.path)[-1].number == 3
