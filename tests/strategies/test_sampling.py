"""A federation over samples: who trains and pays, and how a server that was killed goes on."""

from __future__ import annotations

from collections.abc import Callable

from clients.charging import open_ledger
from clients.organization import load_organization
from gradtf_fl.file_names import BEACON
from gradtf_fl.secagg import BeaconProof, ClientPolicy, sampled
from strategies.server_app import pinned_roster, run_server

from .federation_kit import Kit

MakeKit = Callable[..., Kit]


def charged(kit: Kit) -> list[int]:
    """Rounds that each organization has paid for."""
    return [len(open_ledger(load_organization(folder, simulated=True)).charges()) for folder in kit.folders]


def test_only_the_sample_trains_and_pays_and_a_new_server_keeps_the_beacon(make_kit: MakeKit) -> None:
    kit = make_kit(organizations=6, rounds=1, steps=1, sample=4, budget=40.0)
    run_server(kit.grid(), kit.plan, None, kit.generator)
    proof = (kit.plan.out / BEACON).read_bytes()
    longer = kit.plan.model_copy(update={"rounds": 2})
    records = run_server(kit.grid(), longer, None, kit.generator).rounds
    assert (kit.plan.out / BEACON).read_bytes() == proof
    roster = pinned_roster(kit.plan)
    beacon = BeaconProof.decode(proof).verified(roster, ClientPolicy())
    drawn = [[roster.keys[member].hex() for member in sampled(roster, beacon, number, 4)] for number in (1, 2)]
    assert [sorted(record.included) for record in records] == [sorted(keys) for keys in drawn]
    keys = [load_organization(folder, simulated=True).identity.public.hex() for folder in kit.folders]
    assert charged(kit) == [sum(key in one for one in drawn) for key in keys]
    stores = [load_organization(folder, simulated=True).store() for folder in kit.folders]
    assert [store.drawn() for store in stores] == [1] * 6
    assert all((folder / "current_adapter").exists() for folder in kit.folders)  # delivered to everybody at the end
