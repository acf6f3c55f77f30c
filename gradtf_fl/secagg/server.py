"""The aggregator's side: six kinds of messages, six stages to close, then a sum or `RoundAborted`.

Every piece of a masked vector is folded into one accumulator when it arrives: memory is O(dim), whatever the number of
clients. Where a member is lost after some of its pieces, these are emptied and collected again from those that are
left: they send the same bytes. A message that breaks the protocol raises; the caller treats its sender as dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from math import sqrt
from typing import cast

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.errors import ConfigError, RoundAborted
from gradtf_fl.round_messages import STAGES
from gradtf_fl.secagg.beacon import BeaconProof
from gradtf_fl.secagg.crypto.agreement_proof import check_provable
from gradtf_fl.secagg.crypto.masks import Words, add_masks
from gradtf_fl.secagg.crypto.primitives import SIGNATURE_BYTES
from gradtf_fl.secagg.evidence import Evidence, check_sender
from gradtf_fl.secagg.graph import Graph
from gradtf_fl.secagg.members import round_members
from gradtf_fl.secagg.packing import unpack_chunks, word_dtype
from gradtf_fl.secagg.pieces import piece_count, piece_words
from gradtf_fl.secagg.quantization import CHUNK, Floats
from gradtf_fl.secagg.recovery import Recovery
from gradtf_fl.secagg.roster import Roster
from gradtf_fl.secagg.round_config import RoundConfig
from gradtf_fl.secagg.vectors import encoding_of
from gradtf_fl.secagg.violations import (
    DuplicateKey,
    DuplicateMessage,
    IncompleteShares,
    InconsistentViews,
    LateMessage,
    MalformedMessage,
    RosterMismatch,
    StageOrder,
    UnknownIdentity,
)
from gradtf_fl.secagg.wire.adverts import Advert, Directory
from gradtf_fl.secagg.wire.messages import (
    Accepted,
    Complaints,
    Delivery,
    MessageKind,
    SealedShares,
    Survivors,
    Unmasking,
    open_signed,
    piece_of,
)
from gradtf_fl.secagg.wire.votes import Votes, view_digest

_ENDED = "ended"


@dataclass(frozen=True)
class SecureSum:
    """What a round reveals.

    Attributes:
        mean: weighted mean of the clipped update vectors [dim], in the precision that `SecAggServer.close_unmask` was
            asked for.
        total_weight: sum of the weights.
        clients: organizations in the sum.
        beyond: coordinates of the sum that no ``clients`` honest organizations can give.
        noise_norm: what Skellam noise may add to the norm of the mean; 0 without it.
    """

    mean: Floats
    total_weight: float
    clients: int
    beyond: int = 0
    noise_norm: float = 0.0

    @property
    def norm(self) -> float:
        """L2 norm of the mean, summed in float64."""
        starts = range(0, self.mean.size, CHUNK)
        parts = (self.mean[start : start + CHUNK].astype(np.float64) for start in starts)
        return sqrt(sum(float(np.einsum("i,i", part, part)) for part in parts))


class SecAggServer:
    """Drives one attempt at one round: receive_X for each message that arrives, close_X when a stage ends.

    >>> import secrets
    >>> from gradtf_fl import ClientPolicy, Identity, RoundConfig, Roster, SecAggClient, SecAggServer
    >>> identities = [Identity.generate() for _ in range(3)]
    >>> roster = Roster(tuple(identity.public for identity in identities))
    >>> config = RoundConfig(
    ...     run_id="demo", round=1, attempt=0, nonce=secrets.token_bytes(32), model_hash=bytes(32), dim=4, bits=24,
    ...     clip=1.0, roster_hash=roster.hash, degree=2, threshold=3, quorum=3,
    ... )
    >>> server = SecAggServer(config, roster)
    >>> for identity in identities:
    ...     client = SecAggClient(config, ClientPolicy(), roster, identity, last_round=(0, 0))
    ...     sender = server.receive_advert(client.advertise())
    >>> directories = server.close_advertise()  # one for each member, by identity key
    >>> sorted(directories) == list(roster.keys)
    True

    Attributes:
        cheaters: identity key -> `Evidence` that convicts it; complete when "accept" is closed.

    Raises (close_X):
        RoundAborted: fewer than the threshold are left; nothing about any vector has been learnt.
    """

    def __init__(self, config: RoundConfig, roster: Roster) -> None:
        if config.roster_hash != roster.hash:
            raise RosterMismatch("the configuration is for another roster")
        self.config = config
        self.roster = roster
        self.members = round_members(config, roster)
        if not max(config.degree, config.quorum - 1) < len(self.members):
            raise RosterMismatch(f"degree or quorum do not fit the {len(self.members)} organizations of the round")
        self.counts: dict[str, int] = {}
        try:
            self._encoding = encoding_of(config, len(self.members))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._stage: str = STAGES[0]
        self._advert_messages: dict[int, bytes] = {}
        self._adverts: dict[int, Advert] = {}
        self._keys_taken: set[bytes] = set()
        self._sealed: dict[int, SealedShares] = {}
        self._share_messages: dict[int, bytes] = {}
        self._complaints: dict[int, tuple[bytes, Complaints]] = {}
        self.cheaters: dict[bytes, Evidence] = {}
        self._left: set[int] = set()  # members of U2 that sent every piece that they were asked for
        self._folded: list[set[int]] = []  # members in the sum, by piece
        self._piece: int | None = None
        self._votes: dict[int, bytes] = {}
        self._unmaskings: dict[int, Unmasking] = {}
        self._u1: tuple[int, ...] = ()
        self._u2: tuple[int, ...] = ()
        self._u3: tuple[int, ...] = ()
        self._adverts_root = b""
        self._hashes: dict[int, bytes] = {}
        self._view = b""
        self._around: dict[int, tuple[int, ...]] = {}
        self._sum: Words | None = None

    @property
    def ledger_heads(self) -> dict[bytes, bytes]:
        """Head [32] of every advertised privacy ledger, by identity key: signed, so it can be filed."""
        return {self.roster.keys[member]: advert.ledger_head for member, advert in self._adverts.items()}

    # -- stage 0 ------------------------------------------------------------------------------------------

    def receive_advert(self, message: bytes) -> bytes:
        """Takes a signed `Advert`; returns the sender's identity key."""
        member, body = self._open(message, "advertise", MessageKind.ADVERT, self.members, self._adverts)
        advert = Advert.decode(body)
        check_provable(advert.encryption_key)
        check_provable(advert.mask_key)
        keys = {advert.encryption_key, advert.mask_key}
        if len(keys) < 2 or keys & self._keys_taken:
            raise DuplicateKey(f"member {member} advertises a key that is already taken")
        self._keys_taken |= keys
        self._adverts[member] = advert
        self._advert_messages[member] = bytes(message)
        return self.roster.keys[member]

    def close_advertise(self) -> dict[bytes, bytes]:
        """A `Directory` for each member of U1, by identity key."""
        self._u1 = self._close("advertise", self._adverts)
        messages, commitment = self._advert_messages, self.config.commitment
        hashes = {member: hashlib.sha256(messages[member]).digest() for member in self._u1}
        self._hashes, self._adverts_root = hashes, Directory(hashes, ()).root(commitment)
        graph = Graph(self._u1, self.config.degree, self._adverts_root)
        self._around = {member: graph.neighbours(member) for member in self._u1}
        directories = {
            self.roster.keys[member]: Directory(hashes, tuple(messages[j] for j in around)).encode(commitment)
            for member, around in self._around.items()
        }
        return directories

    # -- stage 1 ------------------------------------------------------------------------------------------

    def receive_shares(self, message: bytes) -> bytes:
        """Takes `SealedShares` for exactly the sender's neighbours; returns the sender's identity key."""
        member, body = self._open(message, "share", MessageKind.SHARES, self._u1, self._sealed)
        sealed = SealedShares.decode(body)
        if tuple(sealed.by_peer) != self._around[member]:
            raise IncompleteShares(f"member {member} sealed shares for others than exactly its neighbours")
        for target, one in sealed.by_peer.items():
            check_sender(self.roster, self._adverts_root, member, target, one)
        self._sealed[member] = sealed
        self._share_messages[member] = bytes(message)
        return self.roster.keys[member]

    def close_share(self) -> dict[bytes, bytes]:
        """A `Delivery` for each member of U2, by identity key."""
        self._u2 = self._close("share", self._sealed)
        self._leave_only(self._u2)
        deliveries = {
            self.roster.keys[member]: Delivery(
                self._u2, SealedShares({j: self._sealed[j].by_peer[member] for j in around})
            ).encode(self.config.commitment)
            for member, around in self._around.items()
        }
        self._sealed.clear()
        return deliveries

    # -- stage 2 ------------------------------------------------------------------------------------------

    def receive_accept(self, message: bytes) -> bytes:
        """Takes the sender's `Complaints`, mostly none; returns the sender's identity key."""
        member, body = self._open(message, "accept", MessageKind.COMPLAINTS, self._u2, self._complaints)
        complaints = Complaints.decode(body)
        if complaints.root != self._adverts_root:
            raise InconsistentViews(f"member {member} complains about other adverts")
        if not complaints.by_source.keys() <= set(self._around[member]):
            raise UnknownIdentity(f"member {member} complains about others than its neighbours")
        self._complaints[member] = bytes(message), complaints
        return self.roster.keys[member]

    def close_accept(self) -> dict[bytes, bytes]:
        """The `Accepted` members, for every one of them by identity key; whoever cheated is in ``cheaters``."""
        for accuser, (_, complaints) in self._complaints.items():
            for accused in complaints.by_source:
                if self.roster.keys[accused] not in self.cheaters and not self._judged(accuser, accused):
                    break  # it lied once, and its other complaints cost time
        honest = {member for member in self._complaints if self.roster.keys[member] not in self.cheaters}
        self._u2 = self._close("accept", honest)
        self._leave_only(self._u2)
        self._share_messages.clear()
        self._complaints.clear()
        self._sum = np.zeros(self._encoding.size + 1, dtype=word_dtype(self.config.bits))
        self._left, self._folded, self._piece = set(self._u2), [set() for _ in range(self.pieces)], 0
        accepted = Accepted(self._u2).encode(self.config.commitment)
        return {self.roster.keys[member]: accepted for member in self._u2}

    def _judged(self, accuser: int, accused: int) -> bool:
        """Whether the accused cheated; the one of the two that did is named."""
        evidence = Evidence(
            self.config.commitment,
            self._advert_messages[accused],
            self._share_messages[accused],
            self._advert_messages[accuser],
            self._complaints[accuser][0],
            self._hashes,
        )
        cheater = evidence.cheater(self.roster)
        self.cheaters[self.roster.keys[cheater]] = evidence
        return cheater == accused

    def _leave_only(self, members: tuple[int, ...]) -> None:
        left = set(members)
        self._around = {member: tuple(j for j in self._around[member] if j in left) for member in members}

    # -- stage 3 ------------------------------------------------------------------------------------------

    @property
    def pieces(self) -> int:
        """How many pieces a masked vector has."""
        return piece_count(self._encoding.size + 1)

    @property
    def piece(self) -> int | None:
        """The piece to collect now from every member that is left; None when none is missing, or too few are left."""
        return self._piece

    def receive_masked(self, message: bytes) -> bytes:
        """Folds a piece of a masked vector into the sum; returns the sender's identity key."""
        member, body = self._open(message, "mask", MessageKind.MASKED, self._u2, ())
        number, packed = piece_of(body)
        if number >= self.pieces:
            raise MalformedMessage(f"piece {number} of {self.pieces}")
        if member not in self._left:
            raise LateMessage(f"member {member} is out since it did not send an earlier piece")
        if member in self._folded[number]:
            raise DuplicateMessage(f"member {member} has sent piece {number} already")
        if number != self._piece:
            raise StageOrder(f"piece {number} arrived while piece {self._piece} is collected")
        total = self._words_of(number)
        for where, words in unpack_chunks(packed, self.config.bits, total.size):
            total[where] += words
        self._folded[number].add(member)
        return self.roster.keys[member]

    def close_piece(self) -> None:
        """Ends the collection of `piece`, and names the next one there. Whoever did not send it is out of the round.

        Pieces that hold something of a member that is out are emptied: they are collected again.
        """
        if self._piece is None:
            raise StageOrder("no piece is collected now")
        lost, self._left = self._left - self._folded[self._piece], set(self._folded[self._piece])
        for number, folded in enumerate(self._folded):
            if folded & lost:
                self._words_of(number)[:] = 0
                folded.clear()
        missing = (number for number, folded in enumerate(self._folded) if folded != self._left)
        self._piece = next(missing, None) if len(self._left) >= self.config.quorum else None

    def _words_of(self, piece: int) -> Words:
        assert self._sum is not None
        return self._sum[piece_words(piece, self._sum.size)]

    def close_mask(self) -> dict[bytes, bytes]:
        """The `Survivors` U3, for every member of it by identity key. Later vectors are discarded.

        The last piece is closed where `close_piece` did not close it.

        Raises:
            StageOrder: pieces are missing.
        """
        if self._piece is not None:
            self.close_piece()
        if self._piece is not None:
            raise StageOrder(f"piece {self._piece} of the masked vectors is still to be collected")
        self._u3 = self._close("mask", self._left)
        self._view = view_digest(self.config.commitment, self._adverts_root, self._u2, self._u3)
        return dict.fromkeys(self.included, Survivors(self._u3).encode(self.config.commitment))

    @property
    def included(self) -> tuple[bytes, ...]:
        """Identity keys of U3: whose vectors are in the sum."""
        return tuple(self.roster.keys[member] for member in self._u3)

    # -- stage 4 ------------------------------------------------------------------------------------------

    def receive_consistency(self, message: bytes) -> bytes:
        """Takes a signature over the sender's view, which must be ours; returns the sender's identity key."""
        member, body = self._open(message, "consistency", MessageKind.VOTE, self._u3, self._votes)
        if bytes(body) != self._view:
            raise InconsistentViews(f"member {member} has another view of the round")
        self._votes[member] = bytes(message[-SIGNATURE_BYTES:])
        return self.roster.keys[member]

    def close_consistency(self) -> dict[bytes, bytes]:
        """The `Votes`, for every voter by identity key."""
        self._close("consistency", self._votes)
        voters = (self.roster.keys[member] for member in self._votes)
        return dict.fromkeys(voters, Votes(self._votes).encode(self.config.commitment))

    # -- stage 5 ------------------------------------------------------------------------------------------

    def receive_unmask(self, message: bytes) -> bytes:
        """Takes one share for each neighbour of the sender in U2; returns the sender's identity key."""
        member, body = self._open(message, "unmask", MessageKind.UNMASKING, self._votes, self._unmaskings)
        unmasking = Unmasking.decode(body)
        expected = sorted([*self._around[member], member])
        if sorted(unmasking.by_owner) != expected:
            raise IncompleteShares(f"member {member} sent shares of others than exactly its neighbourhood")
        self._unmaskings[member] = unmasking
        return self.roster.keys[member]

    def close_unmask(self, precision: type[np.float32] | type[np.float64] = np.float64) -> SecureSum:
        """Rebuilds the masks, takes them off and decodes the mean.

        Args:
            precision: of the mean. float32 takes the sum's own memory (with 16 bits, twice that), float64 alongside it
                twice as much again.

        Raises:
            RoundAborted: too few shares, or a total weight that no honest clients can have.
            ReconstructionMismatch: shares that do not give what was advertised.
        """
        recovery = self._close_unmask()
        words, self._sum = self._sum, None
        assert words is not None
        plus, minus = recovery.masks_left_in_the_sum(self._u2, self._u3)
        add_masks(words, plus=plus, minus=minus)
        return self._decoded(words, precision)

    def close_draw(self) -> BeaconProof:
        """Ends round 0 in place of `close_unmask`: what proves the beacon. Nobody looks at the sum of zeros.

        Raises:
            RoundAborted, ReconstructionMismatch: as `close_unmask`.
        """
        recovery, self._sum = self._close_unmask(), None
        return BeaconProof(
            config=self.config,
            hashes=self._hashes,
            u2=self._u2,
            adverts=tuple(self._advert_messages[member] for member in self._u3),
            votes=self._votes,
            secrets={member: recovery.self_secret(member) for member in self._u3},
        )

    def _close_unmask(self) -> Recovery:
        self._close("unmask", self._unmaskings)
        self._stage = _ENDED
        return Recovery(self.config, self._adverts, self._around, self._unmaskings, self.counts)

    def _decoded(self, words: Words, precision: type[np.float32] | type[np.float64]) -> SecureSum:
        clients, total = len(self._u3), int(self._encoding.integers(words[-1:])[0])
        if self.config.weight_rule == "uniform":
            plausible = total == clients * self._encoding.q_max
        else:
            plausible = 0 < total <= clients * self._encoding.q_max
        if not plausible:
            raise RoundAborted("unmask", self.counts, "the total weight is not one of honest clients")
        total_weight = total * self.config.max_weight / self._encoding.q_max
        beyond, largest, end = 0, self._encoding.largest(clients), words.size - 1

        def integers() -> Iterator[NDArray[np.int64]]:
            nonlocal beyond
            for start in range(0, end, CHUNK):
                chunk = self._encoding.integers(words[start : min(start + CHUNK, end)])
                if chunk.max() > largest or chunk.min() < -largest:
                    beyond += int(np.count_nonzero(np.abs(chunk) > largest))
                yield chunk

        in_place = np.dtype(precision).itemsize == words.itemsize  # a chunk is read before its place is written
        mean = cast("Floats", words.view(precision) if in_place else np.empty(self.config.dim, precision))
        at = 0
        for part in self._encoding.totals(integers()):
            part /= total_weight
            mean[at : at + part.size] = part
            at += part.size
        noise = self._encoding.noise_norm(clients) / clients
        return SecureSum(mean[: self.config.dim], total_weight, clients, beyond, noise)

    # -- shared by the stages -----------------------------------------------------------------------------

    def _open(
        self, message: bytes, stage: str, kind: MessageKind, allowed: Container[int], seen: Container[int]
    ) -> tuple[int, memoryview]:
        """(sender, body) of a message that belongs to the open stage, from an allowed and new sender."""
        if self._stage != stage:
            order = [*STAGES, _ENDED]
            late = order.index(self._stage) > order.index(stage)
            raise (LateMessage if late else StageOrder)(f"a message for {stage} arrived in {self._stage}")
        member, body = open_signed(message, kind, self.config.commitment, self.roster)
        if member not in allowed:
            raise UnknownIdentity(f"member {member} is not in this stage any more")
        if member in seen:
            raise DuplicateMessage(f"member {member} has sent its message for {stage} already")
        return member, body

    def _close(self, stage: str, present: Iterable[int]) -> tuple[int, ...]:
        """Members that finished ``stage``; opens the next one, or aborts below the threshold."""
        if self._stage != stage:
            raise StageOrder(f"{stage} closed in {self._stage}")
        members = tuple(sorted(present))
        self.counts[stage] = len(members)
        least = self.config.threshold if stage == STAGES[-1] else self.config.quorum
        if len(members) < least:
            self._stage, self._sum, self._piece = _ENDED, None, None
            raise RoundAborted(stage, self.counts)
        if stage != STAGES[-1]:
            self._stage = STAGES[STAGES.index(stage) + 1]
        return members
