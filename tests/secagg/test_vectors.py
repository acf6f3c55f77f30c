"""The wire format is frozen: the committed transcripts are written again byte by byte, replayed, and opened by hand."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from gradtf_fl.round_messages import STAGES
from gradtf_fl.secagg import ClientPolicy, Identity, Roster, RoundConfig, SecAggClient, SecAggServer

from .federation import AnyGraphPolicy
from .transcript import CASES, FOLDER, path_of, transcript

COMMITTED: dict[str, Any] = {name: json.loads(path_of(name).read_text()) for name in CASES}

each_transcript = pytest.mark.parametrize("name", CASES)


@each_transcript
def test_transcripts_are_reproduced(name: str) -> None:
    made, committed = json.loads(json.dumps(transcript(name))), COMMITTED[name]
    assert made.keys() == committed.keys()
    for field, value in made.items():
        assert value == committed[field], field


def test_transcripts_cover_widths_dropouts_and_graphs() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CASES)
    configs = [case["config"] for case in COMMITTED.values()]
    assert {config["bits"] for config in configs} == {16, 20, 24, 32}
    assert {config["weight_rule"] for config in configs} == {"uniform", "examples"}
    assert {stage for case in COMMITTED.values() for stage in case["drop"]} == set(STAGES)
    regular = COMMITTED["n12-regular"]
    assert {len(around) for around in regular["neighbours"].values()} == {6}
    assert regular["config"]["quorum"] == 9


# -- replayed from the file alone -------------------------------------------------------------------------


def answered(client: SecAggClient, stage: str, received: bytes, vector: NDArray[np.float64], weight: float) -> bytes:
    match stage:
        case "advertise":
            return client.advertise()
        case "share":
            return client.share(received)
        case "accept":
            return client.accept(received)
        case "mask":
            return next(client.mask(received, vector, weight))
        case "consistency":
            return client.consistency(received)
    return client.unmask(received)


@each_transcript
def test_clients_replay_from_the_file_through_their_stored_state(name: str) -> None:
    """Every answer, from seeds, vectors and the server's messages; each client is a new process in every stage."""
    case = COMMITTED[name]
    config, stages = RoundConfig.decode(bytes.fromhex(case["config_bytes"])), case["stages"]
    assert config.commitment.hex() == case["commitment"]
    roster = Roster(tuple(bytes.fromhex(key) for key in case["roster"]))
    kind = AnyGraphPolicy if config.degree < len(roster) - 1 else ClientPolicy
    policy = kind(max_weight=config.max_weight)
    for i in map(int, stages["advertise"]["client"]):
        identity = Identity.generate(lambda size, i=i: bytes.fromhex(case["identity_seeds"][i]))
        seed = bytes.fromhex(case["round_seeds"][i])
        client = SecAggClient(config, policy, roster, identity, last_round=(0, 0), randomness=lambda size, s=seed: s)
        stored, received = client.to_bytes(), b""
        for stage in STAGES:
            if str(i) not in stages[stage]["client"]:
                break
            client = SecAggClient.from_bytes(stored, policy, roster, identity)
            answer = answered(client, stage, received, np.array(case["vectors"][i]), case["weights"][i])
            assert answer.hex() == stages[stage]["client"][str(i)], (i, stage)
            stored, received = client.to_bytes(), bytes.fromhex(stages[stage]["server"].get(str(i), ""))


@each_transcript
def test_the_server_replays_from_the_file(name: str) -> None:
    """All that it sends, and the mean, from the configuration, the roster and the clients' messages."""
    case = COMMITTED[name]
    roster = Roster(tuple(bytes.fromhex(key) for key in case["roster"]))
    server = SecAggServer(RoundConfig.decode(bytes.fromhex(case["config_bytes"])), roster)
    receive = (
        server.receive_advert,
        server.receive_shares,
        server.receive_accept,
        server.receive_masked,
        server.receive_consistency,
        server.receive_unmask,
    )
    close = (
        server.close_advertise,
        server.close_share,
        server.close_accept,
        server.close_mask,
        server.close_consistency,
    )
    for number, stage in enumerate(STAGES):
        for i, message in reversed(case["stages"][stage]["client"].items()):  # the order of arrival is no matter
            assert receive[number](bytes.fromhex(message)) == roster.keys[int(i)]
        if number < len(close):
            sent = {str(roster.index(key)): message.hex() for key, message in close[number]().items()}
            assert sent == case["stages"][stage]["server"], stage
    result = server.close_unmask()
    assert result.mean.tolist() == case["mean"]
    assert (result.total_weight, result.clients) == (case["total_weight"], case["clients"])


# -- opened without any code of the protocol --------------------------------------------------------------

PRIME = 2**256 - 189
HEAD, SIGNATURE = 41, 64


def derived(secret: bytes, case: dict[str, Any], usage: bytes, *indices: int) -> bytes:
    label = b"gradtf/sa/v1/" + usage
    info = bytes([len(label)]) + label + struct.pack(f">{len(indices)}I", *indices)
    return HKDF(SHA256(), 32, salt=bytes.fromhex(case["commitment"]), info=info).derive(secret)


def bodies(case: dict[str, Any], stage: str) -> dict[int, bytes]:
    messages = case["stages"][stage]["client"]
    return {int(i): bytes.fromhex(message)[HEAD:-SIGNATURE] for i, message in messages.items()}


def words(packed: bytes, bits: int) -> list[int]:
    """Residues of ``bits`` bits, little endian: the first has the lowest bits of the first bytes."""
    number = int.from_bytes(packed, "little")
    return [number >> at & (2**bits - 1) for at in range(0, len(packed) * 8 - bits + 1, bits)]


def mask(key: bytes, bits: int, size: int) -> list[int]:
    word = 2 if bits == 16 else 4
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(15) + b"\2")).encryptor().update(bytes(size * word))
    return [int.from_bytes(stream[at : at + word], "little") for at in range(0, len(stream), word)]


def rebuilt(case: dict[str, Any], owner: int) -> bytes:
    """Lagrange interpolation at 0 of the first t shares that holders opened; a holder's point is its index + 1."""
    shares = []
    for holder, body in bodies(case, "unmask").items():
        (count,) = struct.unpack(">I", body[:4])
        by_owner = {
            int.from_bytes(body[at : at + 4], "big"): int.from_bytes(body[at + 4 : at + 36], "big")
            for at in range(4, 4 + 36 * count, 36)
        }
        if owner in by_owner:
            shares.append((holder + 1, by_owner[owner]))
    shares = shares[: case["config"]["threshold"]]
    assert len(shares) == case["config"]["threshold"]
    secret = 0
    for x, y in shares:
        for other, _ in shares:
            if other != x:
                y = y * other * pow(other - x, -1, PRIME) % PRIME
        secret += y
    return (secret % PRIME).to_bytes(32, "big")


@each_transcript
def test_the_sum_follows_from_the_messages_alone(name: str) -> None:
    """What README.md in the folder says, done with nothing but it: shares to secrets, secrets to masks, masks off."""
    case = COMMITTED[name]
    bits = case["config"]["bits"]
    adverts = bodies(case, "advertise")
    masked = {i: body[4:] for i, body in bodies(case, "mask").items() if body[:4] == bytes(4)}  # piece 0, the only one
    total = [sum(column) for column in zip(*(words(body, bits) for body in masked.values()), strict=True)]
    size = len(case["integers"])
    total = total[:size]
    for i in masked:
        secret = rebuilt(case, i)
        label = b"gradtf/sa/v1/commit"
        committed = bytes([len(label)]) + label + bytes.fromhex(case["commitment"]) + struct.pack(">I", i) + secret
        assert hashlib.sha256(committed).digest() == adverts[i][96:128]
        total = [t - m for t, m in zip(total, mask(derived(secret, case, b"self", i), bits, size), strict=True)]
    for dropped in bodies(case, "accept").keys() - masked.keys():
        private = X25519PrivateKey.from_private_bytes(derived(rebuilt(case, dropped), case, b"mask-key"))
        assert private.public_key().public_bytes_raw() == adverts[dropped][32:64]
        for i in masked.keys() & set(case["neighbours"][str(dropped)]):
            shared = private.exchange(X25519PublicKey.from_public_bytes(adverts[i][32:64]))
            pair = mask(derived(shared, case, b"mask", min(i, dropped), max(i, dropped)), bits, size)
            sign = -1 if i < dropped else 1  # of a pair, the smaller index added it
            total = [t + sign * m for t, m in zip(total, pair, strict=True)]
    half = 2 ** (bits - 1)
    assert [(t + half) % (2 * half) - half for t in total] == case["integers"]
    assert len(masked) == case["clients"]
