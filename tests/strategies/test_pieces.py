"""Rounds whose masked vector is more than one piece, through the strategy and the organizations' stores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load_file

from gradtf_fl.flower import Member, OpenRound, RoundEvent, Vanished
from gradtf_fl.round_messages import PieceRequest, StagePayload
from gradtf_fl.secagg import SecAggClient, pieces
from strategies import run_server
from tests.strategies.federation_kit import Kit
from tests.strategies.test_federation import plain_mean

MakeKit = Callable[..., Kit]
FOUR = 4


@pytest.mark.parametrize("gone", [False, True], ids=["all stay", "one stops between two pieces"])
def test_a_round_is_collected_piece_by_piece(make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch, gone: bool) -> None:
    kit = make_kit(organizations=FOUR, rounds=1, steps=1)
    honest, asked = Member._mask, []

    def mask(self: Member, client: SecAggClient, opened: OpenRound, message: StagePayload) -> bytes:
        assert isinstance(message, PieceRequest)
        if self.identity.public == self.roster.keys[0]:
            asked.append(message.piece)
            if gone and message.piece == 2:
                raise Vanished
        return honest(self, client, opened, message)

    monkeypatch.setattr(Member, "_mask", mask)
    events: list[RoundEvent] = []
    monkeypatch.setattr(pieces, "PIECE", 100)
    result = run_server(kit.grid(), kit.plan, events.append, kit.generator)
    (record,) = result.rounds
    count = -(-(result.global_update.size + 1) // 100)
    assert count > 3
    assert asked == list(range(3 if gone else count))
    exchanges = sum(event.kind == "stage" and event.stage == "mask" for event in events)
    assert exchanges == (count + 2 if gone else count)  # pieces 0 and 1 again; 2 was whole without the lost one
    assert (record.masked, record.dropped) == ((3, {"mask": 1}) if gone else (4, {}))
    mean = load_file(kit.plan.out / "rounds" / "1" / "global_update.safetensors")["mean"].reshape(-1)
    assert np.abs(mean - plain_mean(kit, 1, record.included)).max() < 2**-18 * kit.plan.update_clip
