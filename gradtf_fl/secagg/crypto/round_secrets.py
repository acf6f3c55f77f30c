"""Everything secret that one client makes for one round, all of it derived from a single 32-byte seed.

One seed means: a stage that is run again from the same stored state gives the same bytes, so a crash between
storing and sending cannot make two different sharings of one secret. Python cannot promise to wipe memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gradtf_fl.secagg.crypto import primitives as crypto
from gradtf_fl.secagg.crypto.shamir import ELEMENT_BYTES, element_bytes, split, to_element
from gradtf_fl.secagg.graph import point


@dataclass(frozen=True)
class HeldShares:
    """Shares (field elements, 32 bytes) that a holder has of one owner's b and s.

    ``mask_share`` is empty for the holder's own s: a client that can answer is never one whose s is rebuilt.
    """

    self_share: bytes
    mask_share: bytes


@dataclass(frozen=True, repr=False)
class RoundSecrets:
    """The secrets of member ``me`` in the round with commitment C.

    Attributes:
        seed: 32 uniform bytes, never used in another round.
        commitment: C.
        me: roster index.
    """

    seed: bytes
    commitment: bytes
    me: int

    def _derived(self, usage: bytes) -> bytes:
        return crypto.derive(self.seed, self.commitment, usage)

    @property
    def encryption_private(self) -> bytes:
        """X25519 private key of the share channel."""
        return self._derived(crypto.USAGE_SEED_ENCRYPTION)

    @property
    def mask_secret(self) -> bytes:
        """s_i: a field element [32 bytes]; rebuilt by the others when this client drops at stage 2."""
        return element_bytes(to_element(self._derived(crypto.USAGE_SEED_MASK_SECRET)))

    @property
    def mask_private(self) -> bytes:
        """X25519 private key of the pair masks, from s_i."""
        return crypto.mask_private_key(self.mask_secret, self.commitment)

    @property
    def self_secret(self) -> bytes:
        """b_i: a field element [32 bytes]; rebuilt by the others when this client's vector is in the sum."""
        return element_bytes(to_element(self._derived(crypto.USAGE_SEED_SELF_SECRET)))

    @property
    def public_keys(self) -> set[bytes]:
        """Both X25519 public keys."""
        return {crypto.x25519_public(self.encryption_private), crypto.x25519_public(self.mask_private)}

    @property
    def contribution(self) -> bytes:
        """32 bytes towards the public coin."""
        return self._derived(crypto.USAGE_SEED_CONTRIBUTION)

    @property
    def noise_key(self) -> bytes:
        """AES key of the Skellam noise."""
        return self._derived(crypto.USAGE_SEED_NOISE)

    @property
    def vote_key(self) -> bytes:
        """Decides which votes this client verifies on a k-regular graph."""
        return self._derived(crypto.USAGE_SEED_VOTES)

    @property
    def rounding_key(self) -> bytes:
        """AES key of the stochastic rounding."""
        return self._derived(crypto.USAGE_SEED_ROUNDING)

    def shares(self, holders: Collection[int], threshold: int) -> dict[int, HeldShares]:
        """Shares of b_i and s_i by holder (this one included); the same each time for the same U1."""
        members = sorted(holders)
        points = [point(member) for member in members]
        size = ELEMENT_BYTES * (threshold - 1)
        coins = crypto.keystream(self._derived(crypto.USAGE_SEED_SHARING), 2 * size)
        b = _split(self.self_secret, points, threshold, coins[:size])
        s = _split(self.mask_secret, points, threshold, coins[size:])
        return {member: HeldShares(b[k], s[k] if member != self.me else b"") for k, member in enumerate(members)}

    def mask_keys(self, partners: dict[int, bytes]) -> tuple[list[bytes], list[bytes]]:
        """(keys to add, keys to subtract): the self mask, and one pair mask for each partner's public key.

        Of a pair the smaller index adds and the larger subtracts, so that the masks cancel in the sum.
        """
        private = crypto.loaded(self.mask_private)
        plus = [crypto.self_mask_key(self.self_secret, self.commitment, self.me)]
        minus: list[bytes] = []
        for partner, public in partners.items():
            key = crypto.pair_mask_key(private, public, self.commitment, self.me, partner)
            (plus if self.me < partner else minus).append(key)
        return plus, minus


def _split(secret: bytes, points: Sequence[int], threshold: int, coefficients: bytes) -> list[bytes]:
    return [element_bytes(share) for share in split(to_element(secret), points, threshold, coefficients)]
