"""JSON transcripts of whole rounds, for other implementations of the protocol to be checked against.

``python -m tests.secagg.transcript`` rewrites tests/vectors/secagg/*.json; do that only with a new protocol
version. README.md there explains the fields. Every secret is in the files: seeds of the identities and of the rounds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from gradtf_fl.round_messages import STAGES, Stage
from gradtf_fl.secagg import Identity, ReplayRandomness, RoundConfig

from .federation import AnyGraphPolicy, Federation

FOLDER = Path(__file__).parent.parent / "vectors" / "secagg"


@dataclass(frozen=True)
class Case:
    """One transcript: settings of its `Federation`, and the members that vanish at a stage."""

    about: str
    settings: dict[str, object]
    drop: dict[str, list[int]] = field(default_factory=dict)
    weights: tuple[float, ...] = ()


CASES = {
    "n3-complete": Case("Three organizations, nobody drops out.", {"n": 3, "bits": 24}),
    "n4-drop-advertise": Case("Member 1 never answers.", {"n": 4, "bits": 16}, {"advertise": [1]}),
    "n4-drop-share": Case("Member 2 advertises and vanishes.", {"n": 4, "bits": 20}, {"share": [2]}),
    "n4-drop-accept": Case("Member 1 shares its secrets and takes nobody's.", {"n": 4, "bits": 24}, {"accept": [1]}),
    "n4-drop-mask": Case(
        "Member 1 takes the others' secrets and vanishes: its pair masks are rebuilt. Weights are masked, too.",
        {"n": 4, "bits": 24, "weight_rule": "examples", "max_weight": 1000.0},
        {"mask": [1]},
        weights=(100.0, 250.0, 1000.0, 640.0),
    ),
    "n4-drop-consistency": Case(
        "Member 0 is in the sum and signs no view.", {"n": 4, "bits": 32}, {"consistency": [0]}
    ),
    "n4-drop-unmask": Case("Member 3 is in the sum and opens no shares.", {"n": 4, "bits": 20}, {"unmask": [3]}),
    "n12-regular": Case(
        "Twelve organizations on a k-regular graph (k = 6, t = 5, Q = 9); member 4 vanishes before it masks.",
        {"n": 12, "bits": 24, "degree": 6, "threshold": 5, "quorum": 9, "policy": AnyGraphPolicy()},
        {"mask": [4]},
    ),
    "n4-noise": Case(
        "Distributed Skellam noise: multiplier 0.5, shared by 2; member 2 vanishes before it masks.",
        {"n": 4, "bits": 24, "noise_multiplier": 0.5, "noisers": 2},
        {"mask": [2]},
    ),
}


def federation_of(name: str) -> Federation:
    """The round of a case before its first stage, all its secrets made from the case's name."""
    case = CASES[name]
    federation = Federation(dim=3, seed=f"secagg-v1/{name}".encode(), **case.settings)  # type: ignore[arg-type]
    n = federation.n
    federation.vectors = [np.array([(i + 1) / 16, -1 / (i + 2), 0.5]) for i in range(n)]  # L2 norm below the clip
    federation.weights = list(case.weights) or [1.0] * n
    return federation


def transcript(name: str) -> dict[str, object]:
    """One round as JSON values, bytes in hex, members by their roster index."""
    case, federation = CASES[name], federation_of(name)
    n, replay = federation.n, ReplayRandomness(federation.seed)
    identity_seeds = {Identity.generate(lambda size, s=s: s).public: s for s in (replay(32) for _ in range(n))}
    stages: dict[str, object] = {}
    alive, summed, neighbours = list(range(n)), list(range(n)), {}
    for stage in STAGES:
        alive = [i for i in alive if i not in case.drop.get(stage, [])]
        messages = {i: federation.answer(stage, i) for i in alive}
        for message in messages.values():
            federation.receive(stage, message)
        result = federation.close(stage)
        if stage == "advertise":
            neighbours = dict(federation.server._around)
        elif stage == "mask":
            summed = alive
        stages[stage] = {"client": in_hex(messages), "server": in_hex(sent_after(federation, stage))}
    assert result is not None
    return {
        "about": case.about,
        "config": {f.name: as_json(getattr(federation.config, f.name)) for f in fields(RoundConfig)},
        "config_bytes": federation.config.encode().hex(),
        "commitment": federation.commitment.hex(),
        "roster": [key.hex() for key in federation.roster.keys],
        "identity_seeds": [identity_seeds[key].hex() for key in federation.roster.keys],
        "round_seeds": [seed.hex() for seed in federation.seeds],
        "vectors": [vector.tolist() for vector in federation.vectors],
        "weights": federation.weights,
        "drop": case.drop,
        "neighbours": {str(i): list(around) for i, around in neighbours.items()},
        "stages": stages,
        "integers": federation.integers(summed).tolist(),
        "mean": result.mean.tolist(),
        "total_weight": result.total_weight,
        "clients": result.clients,
    }


def sent_after(federation: Federation, stage: Stage) -> dict[int, bytes]:
    """What the server sends to each member when ``stage`` is closed."""
    return {} if stage == STAGES[-1] else federation.sent[STAGES[STAGES.index(stage) + 1]]


def in_hex(messages: dict[int, bytes]) -> dict[str, str]:
    return {str(i): message.hex() for i, message in sorted(messages.items())}


def as_json(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.json"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name in CASES:
        path_of(name).write_text(json.dumps(transcript(name), indent=1) + "\n")
