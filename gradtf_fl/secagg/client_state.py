"""What a client carries from one stage to the next, as canonical bytes.

In deployment every message is answered by a new process, so this is what the node-local store keeps (0600).
It must be written BEFORE the answer leaves, and never be rolled back: a second answer to one stage is what an
active server wants. Secrets disappear from it as soon as no later stage needs them; Python cannot promise to
wipe memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gradtf_fl.round_messages import STAGES
from gradtf_fl.secagg.crypto.agreement_proof import POSSESSION_BYTES
from gradtf_fl.secagg.crypto.round_secrets import HeldShares
from gradtf_fl.secagg.crypto.shamir import ELEMENT_BYTES
from gradtf_fl.secagg.round_config import RoundConfig
from gradtf_fl.secagg.violations import MalformedMessage
from gradtf_fl.secagg.wire.encoding import Reader, Writer

_MAGIC = b"GSAS"
FINISHED = "finished"
REFUSED = "refused"
_NEXT = (*STAGES, FINISHED, REFUSED)


@dataclass(frozen=True)
class Peer:
    """Of another member of U1: its X25519 public keys, and its proof that it knows the first one's private key."""

    encryption_key: bytes
    mask_key: bytes
    possession: bytes


@dataclass
class ClientState:
    """Mutable record behind a `SecAggClient`.

    Attributes:
        config: the round.
        next_stage: the only stage method that may be called now.
        seed: 32 bytes from which every secret of this round is derived; empty once the vector is masked.
        advert_hash: SHA-256 of the own signed advert, to find it unchanged in U1.
        peers: neighbours in U1.
        members: U1, then U2, then those of it that were accepted.
        adverts_root: digest of all adverts of U1.
        vote_key: decides which votes are verified; kept when the seed is erased.
        held: shares by owner, for neighbours whose ciphertexts opened, then for the accepted; erased after unmasking.
        survivors: U3.
        view: digest of (C, adverts, U2, U3) that was signed.
    """

    config: RoundConfig
    next_stage: str = STAGES[0]
    seed: bytes = b""
    advert_hash: bytes = b""
    peers: dict[int, Peer] = field(default_factory=dict)
    members: tuple[int, ...] = ()
    adverts_root: bytes = b""
    held: dict[int, HeldShares] = field(default_factory=dict)
    survivors: tuple[int, ...] = ()
    view: bytes = b""
    vote_key: bytes = b""

    def to_bytes(self) -> bytes:
        out = Writer().fixed(_MAGIC).blob(self.config.encode()).u8(_NEXT.index(self.next_stage))
        for secret in (self.seed, self.advert_hash, self.adverts_root, self.view, self.vote_key):
            out.blob(secret)
        out.indices(self.members).indices(self.survivors).u32(len(self.peers))
        for member in sorted(self.peers):
            peer = self.peers[member]
            out.u32(member).fixed(peer.encryption_key).fixed(peer.mask_key).fixed(peer.possession)
        out.u32(len(self.held))
        for owner in sorted(self.held):
            out.u32(owner).blob(self.held[owner].self_share).blob(self.held[owner].mask_share)
        return out.done()

    @classmethod
    def from_bytes(cls, data: bytes) -> ClientState:
        """Inverse of `to_bytes`; `MalformedMessage` for anything else."""
        reader = Reader(data)
        if reader.fixed(4) != _MAGIC:
            raise MalformedMessage("not a client's state")
        config = RoundConfig.decode(reader.blob())
        stage = reader.u8()
        if stage >= len(_NEXT):
            raise MalformedMessage(f"unknown stage {stage}")
        seed, advert_hash, root, view, vote_key = (_empty_or_32(reader.blob()) for _ in range(5))
        members, survivors = reader.indices(), reader.indices()
        peers = {
            reader.u32(): Peer(reader.fixed(32), reader.fixed(32), reader.fixed(POSSESSION_BYTES))
            for _ in range(reader.count(68 + POSSESSION_BYTES))
        }
        held = {
            reader.u32(): HeldShares(_empty_or_32(reader.blob()), _empty_or_32(reader.blob()))
            for _ in range(reader.count(12))
        }
        reader.done()
        return cls(config, _NEXT[stage], seed, advert_hash, peers, members, root, held, survivors, view, vote_key)


def _empty_or_32(value: bytes) -> bytes:
    if len(value) not in (0, ELEMENT_BYTES):
        raise MalformedMessage(f"a field of {len(value)} bytes")
    return value
