"""Stage 4 at the server: which masks are still in the sum, and their keys, rebuilt from the neighbours' shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from gradtf_fl.errors import RoundAborted
from gradtf_fl.secagg.crypto import primitives as crypto
from gradtf_fl.secagg.crypto.shamir import combine, element_bytes
from gradtf_fl.secagg.graph import point
from gradtf_fl.secagg.round_config import RoundConfig
from gradtf_fl.secagg.violations import ReconstructionMismatch
from gradtf_fl.secagg.wire.adverts import Advert
from gradtf_fl.secagg.wire.messages import Unmasking


@dataclass(frozen=True)
class Recovery:
    """What the server holds when stage 4 ends.

    Attributes:
        adverts: by member of U1.
        around: neighbours within U2, by member of U2.
        unmaskings: one share for each owner in a holder's neighbourhood, by holder.
        counts: for the report of an abort.
    """

    config: RoundConfig
    adverts: Mapping[int, Advert]
    around: Mapping[int, tuple[int, ...]]
    unmaskings: Mapping[int, Unmasking]
    counts: Mapping[str, int]

    def masks_left_in_the_sum(self, u2: Sequence[int], u3: Sequence[int]) -> tuple[list[bytes], list[bytes]]:
        """(keys to add, keys to subtract): self masks of U3, pair masks between U3 and the dropped.

        Raises:
            RoundAborted: too few shares of a member.
            ReconstructionMismatch: shares that do not give what was advertised.
        """
        commitment = self.config.commitment
        plus: list[bytes] = []
        minus = [crypto.self_mask_key(self.self_secret(i), commitment, i) for i in u3]
        survivors = set(u3)
        for dropped in u2:
            if dropped in survivors:
                continue
            private = self._mask_key(dropped)
            for i in self.around[dropped]:
                if i in survivors:
                    key = crypto.pair_mask_key(private, self.adverts[i].mask_key, commitment, i, dropped)
                    (minus if i < dropped else plus).append(key)  # i added it where i is the smaller
        return plus, minus

    def self_secret(self, owner: int) -> bytes:
        """b_owner [32 bytes], rebuilt; raises as `masks_left_in_the_sum`."""
        secret, holders = self._rebuilt(owner)
        if crypto.commit(secret, self.config.commitment, owner) != self.adverts[owner].self_commitment:
            raise ReconstructionMismatch(self.counts, owner, holders, "self-mask secret")
        return secret

    def _mask_key(self, owner: int) -> X25519PrivateKey:
        secret, holders = self._rebuilt(owner)
        private = crypto.loaded(crypto.mask_private_key(secret, self.config.commitment))
        if crypto.x25519_public(private) != self.adverts[owner].mask_key:
            raise ReconstructionMismatch(self.counts, owner, holders, "mask key")
        return private

    def _rebuilt(self, owner: int) -> tuple[bytes, list[int]]:
        """(secret, holders used): from the first `threshold` holders, the same for every owner they share."""
        holders = [h for h in sorted({owner, *self.around[owner]}) if h in self.unmaskings]
        holders = holders[: self.config.threshold]
        if len(holders) < self.config.threshold:
            raise RoundAborted("unmask", self.counts, f"too few shares of member {owner}")
        shares = [int.from_bytes(self.unmaskings[h].by_owner[owner], "big") for h in holders]
        return element_bytes(combine([point(h) for h in holders], shares)), holders
