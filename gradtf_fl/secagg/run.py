"""The whole protocol on one screen: every client and the server in one process, with dropouts at will."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from gradtf_fl.secagg.client import SecAggClient
from gradtf_fl.secagg.crypto.primitives import Randomness, system_randomness
from gradtf_fl.secagg.degree import Topology, topology
from gradtf_fl.secagg.policy import ClientPolicy
from gradtf_fl.secagg.quantization import Floats
from gradtf_fl.secagg.roster import Identity, Roster
from gradtf_fl.secagg.round_config import RoundConfig, WeightRule
from gradtf_fl.secagg.server import SecAggServer, SecureSum
from gradtf_fl.secagg.violations import TooFewNeighbours


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

    >>> import numpy as np
    >>> from gradtf_fl import run_secure_sum
    >>> vectors = [np.array([0.1, 0.2]), np.array([0.3, 0.0]), np.array([0.2, -0.2]), np.array([0.2, 0.4])]
    >>> result = run_secure_sum(vectors, drop={"mask": [3]})  # the last one vanishes before its masked vector is sent
    >>> result.clients
    3
    >>> np.abs(result.mean - [0.2, 0.0]).max() < 1e-5
    np.True_

    Args:
        drop: stage name -> positions in ``vectors`` of the clients that vanish before they answer that stage.

    Raises:
        RoundAborted: too few clients are left after a stage, see `degree.topology`.
    """
    n, drop = len(vectors), drop or {}
    shape = topology(n) if threshold is None else Topology(n - 1, threshold, threshold)
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
        degree=shape.degree,
        threshold=shape.threshold,
        quorum=shape.quorum,
    )
    policy = ClientPolicy(
        n_min=2, allow_two=True, t_min=config.threshold, max_clip=clip, max_weight=max_weight, max_bits=bits
    )
    clients = [SecAggClient(config, policy, roster, i, last_round=(0, 0), randomness=randomness) for i in identities]
    server = SecAggServer(config, roster)

    alive = set(range(n))

    def stage(name: str, answer: Callable[[int], bytes], receive: Callable[[bytes], bytes]) -> None:
        alive.difference_update(drop.get(name, ()))
        for i in sorted(alive):
            try:
                receive(answer(i))
            except TooFewNeighbours:  # this client leaves; the server decides whether enough remain
                alive.discard(i)

    stage("advertise", lambda i: clients[i].advertise(), server.receive_advert)
    directories = server.close_advertise()

    stage("share", lambda i: clients[i].share(directories[identities[i].public]), server.receive_shares)
    deliveries = server.close_share()

    stage(
        "mask",
        lambda i: clients[i].mask(deliveries[identities[i].public], vectors[i], weights[i]),
        server.receive_masked,
    )
    survivors = server.close_mask()

    stage("consistency", lambda i: clients[i].consistency(survivors[identities[i].public]), server.receive_consistency)
    votes = server.close_consistency()

    stage("unmask", lambda i: clients[i].unmask(votes[identities[i].public]), server.receive_unmask)
    return server.close_unmask()
