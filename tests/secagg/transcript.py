"""JSON transcripts of whole rounds, for other implementations of the protocol to be checked against.

``python -m secagg.transcript`` in tests/ rewrites tests/vectors/secagg-v1.json; do that only with a new
protocol version. Every secret is in the file: seeds of the identities and of the round, and every message.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from gradtf_fl.secagg import STAGES, Identity, ReplayRandomness

from .federation import Federation

FILE = Path(__file__).parent.parent / "vectors" / "secagg-v1.json"
CASES = (
    {"n": 3, "bits": 24, "drop": {}},
    {"n": 4, "bits": 20, "drop": {"mask": [1], "unmask": []}},
    {"n": 5, "bits": 16, "drop": {"share": [0], "consistency": []}},
    {"n": 5, "bits": 32, "drop": {"unmask": [3]}},
)


def transcript(n: int, bits: int, drop: dict[str, list[int]]) -> dict[str, object]:
    """One round as JSON values, bytes in hex. Messages by stage, in the order of members."""
    seed = f"secagg-v1/{n}/{bits}".encode()
    federation = Federation(n=n, bits=bits, dim=3, seed=seed)
    federation.vectors = [np.array([(i + 1) / 16, -1 / (i + 2), 0.5]) for i in range(n)]  # L2 norm below the clip
    replay = ReplayRandomness(seed)
    identity_seeds = {Identity.generate(lambda size, s=s: s).public: s for s in (replay(32) for _ in range(n))}
    out: dict[str, object] = {
        "n": n,
        "bits": bits,
        "drop": drop,
        "config": federation.config.encode().hex(),
        "commitment": federation.config.commitment.hex(),
        "identity_seeds": [identity_seeds[key].hex() for key in federation.roster.keys],
        "round_seeds": [s.hex() for s in federation.seeds],
        "vectors": [vector.tolist() for vector in federation.vectors],
    }
    alive = set(range(n))
    answers = {
        "advertise": lambda i: federation.clients[i].advertise(),
        "share": lambda i: federation.clients[i].share(federation.adverts),
        "mask": lambda i: federation.clients[i].mask(federation.deliveries[i], federation.vectors[i]),
        "consistency": lambda i: federation.clients[i].consistency(federation.survivors),
        "unmask": lambda i: federation.clients[i].unmask(federation.votes),
    }
    server = federation.server
    receive = dict(
        zip(
            STAGES,
            (
                server.receive_advert,
                server.receive_shares,
                server.receive_masked,
                server.receive_consistency,
                server.receive_unmask,
            ),
            strict=True,
        )
    )
    for stage in STAGES:
        alive -= set(drop.get(stage, ()))
        messages = {i: answers[stage](i) for i in sorted(alive)}
        out[stage] = {str(i): message.hex() for i, message in messages.items()}
        for message in messages.values():
            receive[stage](message)
        match stage:
            case "advertise":
                federation.adverts = server.close_advertise()
            case "share":
                by_key = server.close_share()
                federation.deliveries = [by_key.get(key, b"") for key in federation.roster.keys]
                out["deliveries"] = [delivery.hex() for delivery in federation.deliveries]
            case "mask":
                federation.survivors = server.close_mask()
            case "consistency":
                federation.votes = server.close_consistency()
    result = server.close_unmask()
    out |= {
        "adverts": federation.adverts.hex(),
        "survivors": federation.survivors.hex(),
        "votes": federation.votes.hex(),
        "mean": result.mean.tolist(),
        "clients": result.clients,
    }
    return out


def transcripts() -> list[dict[str, object]]:
    return [transcript(**case) for case in CASES]  # type: ignore[arg-type]


if __name__ == "__main__":
    FILE.write_text(json.dumps(transcripts(), indent=1) + "\n")
