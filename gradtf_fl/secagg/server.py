"""The aggregator's side: five kinds of messages, five stages to close, then a sum or `RoundAborted`.

Every masked vector is folded into one accumulator when it arrives: memory is O(dim), whatever the number of
clients. A message that breaks the protocol raises; the caller treats its sender as dropped.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.errors import RoundAborted
from gradtf_fl.secagg import primitives as crypto
from gradtf_fl.secagg.graph import neighbours, point
from gradtf_fl.secagg.masks import Words, add_masks
from gradtf_fl.secagg.messages import (
    STAGES,
    Advert,
    AdvertList,
    Delivery,
    Kind,
    SealedShares,
    Survivors,
    Unmasking,
    Votes,
    open_signed,
    view_digest,
)
from gradtf_fl.secagg.packing import unpack_chunks, word_dtype
from gradtf_fl.secagg.roster import Roster
from gradtf_fl.secagg.round_config import RoundConfig
from gradtf_fl.secagg.shamir import combine, element_bytes
from gradtf_fl.secagg.violations import (
    DuplicateKey,
    DuplicateMessage,
    IncompleteShares,
    InconsistentViews,
    LateMessage,
    ReconstructionMismatch,
    RosterMismatch,
    StageOrder,
    UnknownIdentity,
)

_ENDED = "ended"


@dataclass(frozen=True)
class SecureSum:
    """What a round reveals.

    Attributes:
        mean: weighted mean of the clipped update vectors, float64 [dim].
        total_weight: sum of the weights.
        clients: organizations in the sum.
    """

    mean: NDArray[np.float64]
    total_weight: float
    clients: int


class SecAggServer:
    """Drives one attempt at one round: receive_X for each message that arrives, close_X when a stage ends.

    Raises (close_X):
        RoundAborted: fewer than the threshold are left; nothing about any vector has been learnt.
    """

    def __init__(self, config: RoundConfig, roster: Roster) -> None:
        if config.roster_hash != roster.hash:
            raise RosterMismatch("the configuration is for another roster")
        if config.degree != len(roster) - 1:
            raise RosterMismatch(f"degree {config.degree} is not the complete graph of {len(roster)} organizations")
        self.config = config
        self.roster = roster
        self.counts: dict[str, int] = {}
        self._quantizer = config.quantizer(len(roster))
        self._stage = STAGES[0]
        self._advert_messages: dict[int, bytes] = {}
        self._adverts: dict[int, Advert] = {}
        self._keys_taken: set[bytes] = set()
        self._sealed: dict[int, SealedShares] = {}
        self._masked: set[int] = set()
        self._votes: dict[int, bytes] = {}
        self._unmaskings: dict[int, Unmasking] = {}
        self._u1: tuple[int, ...] = ()
        self._u2: tuple[int, ...] = ()
        self._u3: tuple[int, ...] = ()
        self._adverts_view = b""
        self._view = b""
        self._sum: Words | None = None

    @property
    def ledger_heads(self) -> dict[bytes, bytes]:
        """Head [32] of every advertised privacy ledger, by identity key: signed, so it can be filed."""
        return {self.roster.keys[member]: advert.ledger_head for member, advert in self._adverts.items()}

    # -- stage 0 ------------------------------------------------------------------------------------------

    def receive_advert(self, message: bytes) -> bytes:
        """Takes a signed `Advert`; returns the sender's identity key."""
        member, body = self._open(message, "advertise", Kind.ADVERT, range(len(self.roster)), self._adverts)
        advert = Advert.decode(body)
        keys = {advert.encryption_key, advert.mask_key}
        if len(keys) < 2 or keys & self._keys_taken:
            raise DuplicateKey(f"member {member} advertises a key that is already taken")
        self._keys_taken |= keys
        self._adverts[member] = advert
        self._advert_messages[member] = bytes(message)
        return self.roster.keys[member]

    def close_advertise(self) -> bytes:
        """The `AdvertList` of U1, for every member of it."""
        self._u1 = self._close("advertise", self._adverts)
        adverts = AdvertList(tuple(self._advert_messages[member] for member in self._u1))
        broadcast = adverts.encode(self.config.commitment)
        self._advert_messages.clear()
        self._adverts_view = crypto.digest(crypto.USAGE_ADVERTS, broadcast)
        return broadcast

    # -- stage 1 ------------------------------------------------------------------------------------------

    def receive_shares(self, message: bytes) -> bytes:
        """Takes `SealedShares` for exactly the sender's neighbours; returns the sender's identity key."""
        member, body = self._open(message, "share", Kind.SHARES, self._u1, self._sealed)
        sealed = SealedShares.decode(body)
        if tuple(sealed.by_peer) != neighbours(member, self._u1):
            raise IncompleteShares(f"member {member} sealed shares for others than exactly its neighbours")
        self._sealed[member] = sealed
        return self.roster.keys[member]

    def close_share(self) -> dict[bytes, bytes]:
        """A `Delivery` for each member of U2, by identity key."""
        self._u2 = self._close("share", self._sealed)
        deliveries = {
            self.roster.keys[member]: Delivery(
                self._u2,
                SealedShares({j: self._sealed[j].by_peer[member] for j in neighbours(member, self._u2)}),
            ).encode(self.config.commitment)
            for member in self._u2
        }
        self._sealed.clear()
        self._sum = np.zeros(self.config.dim + 1, dtype=word_dtype(self.config.bits))
        return deliveries

    # -- stage 2 ------------------------------------------------------------------------------------------

    def receive_masked(self, message: bytes) -> bytes:
        """Folds a masked vector into the sum; returns the sender's identity key."""
        member, body = self._open(message, "mask", Kind.MASKED, self._u2, self._masked)
        assert self._sum is not None
        for where, words in unpack_chunks(body, self.config.bits, self.config.dim + 1):
            self._sum[where] += words
        self._masked.add(member)
        return self.roster.keys[member]

    def close_mask(self) -> bytes:
        """The `Survivors` U3, for every member of it. Later vectors are discarded."""
        self._u3 = self._close("mask", self._masked)
        self._view = view_digest(self.config.commitment, self._adverts_view, self._u2, self._u3)
        return Survivors(self._u3).encode(self.config.commitment)

    # -- stage 3 ------------------------------------------------------------------------------------------

    def receive_consistency(self, message: bytes) -> bytes:
        """Takes a signature over the sender's view, which must be ours; returns the sender's identity key."""
        member, body = self._open(message, "consistency", Kind.VOTE, self._u3, self._votes)
        if bytes(body) != self._view:
            raise InconsistentViews(f"member {member} has another view of the round")
        self._votes[member] = bytes(message[-crypto.SIGNATURE_BYTES :])
        return self.roster.keys[member]

    def close_consistency(self) -> bytes:
        """The `Votes`, for every voter."""
        self._close("consistency", self._votes)
        return Votes(self._votes).encode(self.config.commitment)

    # -- stage 4 ------------------------------------------------------------------------------------------

    def receive_unmask(self, message: bytes) -> bytes:
        """Takes one share for each neighbour of the sender in U2; returns the sender's identity key."""
        member, body = self._open(message, "unmask", Kind.UNMASKING, self._votes, self._unmaskings)
        unmasking = Unmasking.decode(body)
        expected = sorted([*neighbours(member, self._u2), member])
        if sorted(unmasking.by_owner) != expected:
            raise IncompleteShares(f"member {member} sent shares of others than exactly its neighbourhood")
        self._unmaskings[member] = unmasking
        return self.roster.keys[member]

    def close_unmask(self) -> SecureSum:
        """Rebuilds the masks, takes them off and decodes the mean.

        Raises:
            RoundAborted: too few shares, or a total weight that no honest clients can have.
            ReconstructionMismatch: shares that do not give what was advertised.
        """
        self._close("unmask", self._unmaskings)
        words, self._sum, self._stage = self._sum, None, _ENDED
        assert words is not None
        plus, minus = self._masks_left_in_the_sum()
        add_masks(words, plus=plus, minus=minus)
        return self._decoded(self._quantizer.integers(words))

    def _masks_left_in_the_sum(self) -> tuple[list[bytes], list[bytes]]:
        """(keys to add, keys to subtract): self masks of U3, pair masks between U3 and the dropped."""
        commitment = self.config.commitment
        plus: list[bytes] = []
        minus = [crypto.self_mask_key(self._rebuilt_self_secret(i), commitment, i) for i in self._u3]
        survivors = set(self._u3)
        for dropped in self._u2:
            if dropped in survivors:
                continue
            private = self._rebuilt_mask_key(dropped)
            for i in neighbours(dropped, self._u2):
                if i in survivors:
                    key = crypto.pair_mask_key(private, self._adverts[i].mask_key, commitment, i, dropped)
                    (minus if i < dropped else plus).append(key)  # i added it where i is the smaller
        return plus, minus

    def _rebuilt_self_secret(self, owner: int) -> bytes:
        secret, holders = self._rebuilt(owner)
        if crypto.commit(secret, self.config.commitment, owner) != self._adverts[owner].self_commitment:
            raise ReconstructionMismatch(self.counts, owner, holders, "self-mask secret")
        return secret

    def _rebuilt_mask_key(self, owner: int) -> bytes:
        secret, holders = self._rebuilt(owner)
        private = crypto.mask_private_key(secret, self.config.commitment)
        if crypto.x25519_public(private) != self._adverts[owner].mask_key:
            raise ReconstructionMismatch(self.counts, owner, holders, "mask key")
        return private

    def _rebuilt(self, owner: int) -> tuple[bytes, list[int]]:
        """(secret, holders used): from the first `threshold` holders, the same for every owner they share."""
        holders = [h for h in sorted(self._unmaskings) if owner in self._unmaskings[h].by_owner]
        holders = holders[: self.config.threshold]
        if len(holders) < self.config.threshold:
            raise RoundAborted("unmask", self.counts, f"too few shares of member {owner}")
        shares = [int.from_bytes(self._unmaskings[h].by_owner[owner], "big") for h in holders]
        return element_bytes(combine([point(h) for h in holders], shares)), holders

    def _decoded(self, integers: NDArray[np.int64]) -> SecureSum:
        clients = len(self._u3)
        total = int(integers[-1])
        if self.config.weight_rule == "uniform":
            plausible = total == clients * self._quantizer.q_max
        else:
            plausible = 0 < total <= clients * self._quantizer.q_max
        if not plausible:
            raise RoundAborted("unmask", self.counts, "the total weight is not one of honest clients")
        total_weight = total * self.config.max_weight / self._quantizer.q_max
        mean = integers[:-1].astype(np.float64)
        mean *= self._quantizer.step / total_weight
        return SecureSum(mean, total_weight, clients)

    # -- shared by the stages -----------------------------------------------------------------------------

    def _open(
        self, message: bytes, stage: str, kind: Kind, allowed: Container[int], seen: Container[int]
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
        if len(members) < self.config.threshold:
            self._stage, self._sum = _ENDED, None
            raise RoundAborted(stage, self.counts)
        if stage != STAGES[-1]:
            self._stage = STAGES[STAGES.index(stage) + 1]
        return members
