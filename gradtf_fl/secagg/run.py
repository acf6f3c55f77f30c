"""The whole protocol on one screen: every client and the server in one process, with dropouts at will."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from gradtf_fl.secagg.client import SecAggClient
from gradtf_fl.secagg.policy import ClientPolicy
from gradtf_fl.secagg.primitives import Randomness, system_randomness
from gradtf_fl.secagg.quantization import Floats
from gradtf_fl.secagg.roster import Identity, Roster
from gradtf_fl.secagg.round_config import RoundConfig, WeightRule, default_threshold
from gradtf_fl.secagg.server import SecAggServer, SecureSum


def run_secure_sum(
    vectors: Sequence[Floats],
    weights: Sequence[float] | None = None,
    *,
    clip: float = 1.0,
    max_weight: float = 1.0,
    weight_rule: WeightRule = "uniform",
    bits: int = 24,
    threshold: int | None = None,
    drop: Mapping[str, Collection[int]] | None = None,
    randomness: Randomness = system_randomness,
) -> SecureSum:
    """Weighted mean of ``vectors`` (each [dim]) over the clients that masked theirs.

    Args:
        drop: stage name -> positions in ``vectors`` of the clients that vanish before they answer that stage.

    Raises:
        RoundAborted: fewer than ``threshold`` clients (default: `default_threshold`) are left after a stage.
    """
    n, drop = len(vectors), drop or {}
    weights = [1.0] * n if weights is None else weights
    identities = [Identity.generate(randomness) for _ in range(n)]
    roster = Roster(tuple(identity.public for identity in identities))
    config = RoundConfig(
        run_id="run_secure_sum",
        round=1,
        attempt=0,
        nonce=randomness(32),
        model_hash=bytes(32),
        dim=vectors[0].size,
        bits=bits,
        clip=clip,
        max_weight=max_weight,
        weight_rule=weight_rule,
        roster_hash=roster.hash,
        degree=n - 1,
        threshold=default_threshold(n) if threshold is None else threshold,
    )
    policy = ClientPolicy(
        n_min=2, allow_two=True, t_min=config.threshold, max_clip=clip, max_weight=max_weight, max_bits=bits
    )
    clients = [SecAggClient(config, policy, roster, i, last_round=(0, 0), randomness=randomness) for i in identities]
    server = SecAggServer(config, roster)

    alive = [i for i in range(n) if i not in drop.get("advertise", ())]
    for i in alive:
        server.receive_advert(clients[i].advertise())
    adverts = server.close_advertise()

    alive = [i for i in alive if i not in drop.get("share", ())]
    for i in alive:
        server.receive_shares(clients[i].share(adverts))
    deliveries = server.close_share()

    alive = [i for i in alive if i not in drop.get("mask", ())]
    for i in alive:
        server.receive_masked(clients[i].mask(deliveries[identities[i].public], vectors[i], weights[i]))
    survivors = server.close_mask()

    alive = [i for i in alive if i not in drop.get("consistency", ())]
    for i in alive:
        server.receive_consistency(clients[i].consistency(survivors))
    votes = server.close_consistency()

    alive = [i for i in alive if i not in drop.get("unmask", ())]
    for i in alive:
        server.receive_unmask(clients[i].unmask(votes))
    return server.close_unmask()
