"""A member that seals garbage, through all of Flower's exchanges: named on record, and nobody pays twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gradtf_fl.flower import read_records
from gradtf_fl.privacy import read_ledger
from gradtf_fl.secagg import Evidence, Identity, Roster, SecAggClient
from gradtf_fl.secagg.wire.messages import CIPHERTEXT_BYTES, MessageKind, SealedShares, sealed_statement
from strategies import run_server
from tests.strategies.federation_kit import Kit

BODY = slice(41, -64)


def test_a_member_that_seals_garbage_is_on_record_and_the_round_goes_on(
    make_kit: Callable[..., Kit], monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = make_kit(organizations=4, rounds=1, steps=1)
    roster = Roster(tuple(Identity.load(folder / "identity.key").public for folder in kit.folders))
    liar = Identity.load(kit.folders[3] / "identity.key")
    honest = SecAggClient.share

    def share(self: SecAggClient, directory: bytes) -> bytes:
        message = honest(self, directory)
        if self._identity.public != liar.public:
            return message
        noise = bytes(CIPHERTEXT_BYTES)
        sealed = {
            j: noise + liar.sign(sealed_statement(self._state.adverts_root, self._me, j, noise))
            for j in SealedShares.decode(message[BODY]).by_peer
        }
        return self._signed(MessageKind.SHARES, SealedShares(sealed).encode())

    monkeypatch.setattr(SecAggClient, "share", share)
    run_server(kit.grid(), kit.plan, None, kit.generator)
    (record,) = read_records(kit.plan.out)
    assert (record.state, record.joined, record.masked) == ("completed", 4, 3)
    assert liar.public.hex() not in record.included
    ((key, evidence),) = record.cheated.items()
    assert roster.keys[Evidence.decode(bytes.fromhex(evidence)).cheater(roster)].hex() == key == liar.public.hex()
    assert record.dropped == {"accept": 1}
    for folder in kit.folders:
        assert len(read_ledger(folder / "ledger.sqlite").content.events) == 1
