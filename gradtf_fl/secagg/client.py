"""One organization's side of the protocol: six stages, each one call from message to message.

A refusal raises a named `ProtocolViolation` and is final for the round: the secrets are erased.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, groupby

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from gradtf_fl.secagg.client_state import FINISHED, REFUSED, ClientState, Peer
from gradtf_fl.secagg.crypto import primitives as crypto
from gradtf_fl.secagg.crypto.agreement_proof import PROOF_BYTES, check_possession, prove, prove_possession
from gradtf_fl.secagg.crypto.masks import MaskStreams, Words
from gradtf_fl.secagg.crypto.round_secrets import HeldShares, RoundSecrets
from gradtf_fl.secagg.crypto.shamir import ELEMENT_BYTES
from gradtf_fl.secagg.differencing import TakenSum
from gradtf_fl.secagg.evidence import channel_context, check_sender, opened, possession_context
from gradtf_fl.secagg.graph import Graph
from gradtf_fl.secagg.members import round_members
from gradtf_fl.secagg.packing import pack, word_dtype
from gradtf_fl.secagg.pieces import cut, piece_count
from gradtf_fl.secagg.policy import ClientPolicy
from gradtf_fl.secagg.quantization import Vector
from gradtf_fl.secagg.roster import Identity, Roster
from gradtf_fl.secagg.round_config import RoundConfig
from gradtf_fl.secagg.vectors import encoding_of
from gradtf_fl.secagg.violations import (
    BadProof,
    BadSignature,
    IncompleteShares,
    InconsistentViews,
    MalformedMessage,
    OwnKeyMissing,
    StageOrder,
    SurvivorsNotSubset,
    TooFewNeighbours,
    UndecryptableShare,
    UnknownIdentity,
    UpdateRejected,
    WrongBeacon,
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
    sealed_statement,
    signed,
)
from gradtf_fl.secagg.wire.votes import Votes, sample, view_digest


class SecAggClient:
    """Takes one organization through one attempt at one round.

    >>> import secrets
    >>> from gradtf_fl import ClientPolicy, Identity, RoundConfig, Roster, SecAggClient
    >>> identities = [Identity.generate() for _ in range(3)]
    >>> roster = Roster(tuple(identity.public for identity in identities))
    >>> config = RoundConfig(
    ...     run_id="demo", round=1, attempt=0, nonce=secrets.token_bytes(32), model_hash=bytes(32), dim=4, bits=24,
    ...     clip=1.0, roster_hash=roster.hash, degree=2, threshold=3, quorum=3,
    ... )
    >>> client = SecAggClient(config, ClientPolicy(), roster, identities[0], last_round=(0, 0))
    >>> advert = client.advertise()  # bytes for the server
    >>> client.next_stage
    'share'

    Args:
        config: what the server proposes.
        policy: what the organization allows; it overrides the server.
        roster: the pinned organizations.
        identity: this organization's key; must be on the roster.
        last_round: (round, attempt) of the last round taken part in, from the counter on disk.
        randomness: source of the round's one 32-byte seed.
        beacon: of the run, as this organization has verified it (`BeaconProof.verified`); a round that sums a sample
            needs it.

    Raises:
        PolicyViolation (and StaleRound, RosterMismatch, TooFewMembers, WrongBeacon), UnknownIdentity.
    """

    def __init__(
        self,
        config: RoundConfig,
        policy: ClientPolicy,
        roster: Roster,
        identity: Identity,
        *,
        last_round: tuple[int, int],
        randomness: crypto.Randomness = crypto.system_randomness,
        beacon: bytes | None = None,
    ) -> None:
        policy.check(config, roster, last_round)
        if config.sample and config.beacon != beacon:
            raise WrongBeacon("the round's sample is drawn by a beacon that this organization has no proof of")
        self._bind(ClientState(config, seed=randomness(ELEMENT_BYTES)), policy, roster, identity)

    def _bind(self, state: ClientState, policy: ClientPolicy, roster: Roster, identity: Identity) -> None:
        self._state, self._policy, self._roster, self._identity = state, policy, roster, identity
        self._me = roster.index(identity.public)
        self._members = frozenset(round_members(state.config, roster))
        if self._me not in self._members:
            where = f"group {state.config.group} of {state.config.groups}" + ", in a sample" * bool(state.config.sample)
            raise UnknownIdentity(f"this organization is not in {where}")
        self._commitment = state.config.commitment

    @property
    def config(self) -> RoundConfig:
        """The round this client is in."""
        return self._state.config

    @property
    def next_stage(self) -> str:
        """The stage to be called next, or "finished" or "refused"."""
        return self._state.next_stage

    @property
    def pieces(self) -> int:
        """How many messages the masked vector is."""
        return piece_count(encoding_of(self.config, len(self._members)).size + 1)

    @property
    def sum(self) -> TakenSum:
        """The sum over U3 that this client has signed for, once "consistency" was answered."""
        members = frozenset(self._roster.keys[member] for member in self._state.survivors)
        return TakenSum(self.config.model_hash, frozenset(self._roster.keys), members)

    def to_bytes(self) -> bytes:
        """The state between two stages. Holds secrets; store it (0600) before the stage's answer leaves."""
        return self._state.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes, policy: ClientPolicy, roster: Roster, identity: Identity) -> SecAggClient:
        """Inverse of `to_bytes`. The policy is checked again; the round counter was at construction.

        Raises:
            MalformedMessage, PolicyViolation, UnknownIdentity.
        """
        state = ClientState.from_bytes(data)
        policy.check(state.config, roster)
        client = cls.__new__(cls)
        client._bind(state, policy, roster, identity)
        return client

    # -- stage 0 ------------------------------------------------------------------------------------------

    def advertise(self, ledger_head: bytes = bytes(32)) -> bytes:
        """The signed `Advert`. ``ledger_head``: 32 bytes, the head of the organization's privacy ledger."""
        with self._stage("advertise", "share") as state:
            if len(ledger_head) != 32:
                raise MalformedMessage("a ledger head has 32 bytes")
            secrets = self._secrets()
            advert = Advert(
                encryption_key=crypto.x25519_public(secrets.encryption_private),
                mask_key=crypto.x25519_public(secrets.mask_private),
                contribution=secrets.contribution,
                self_commitment=crypto.commit(secrets.self_secret, self._commitment, self._me),
                ledger_head=ledger_head,
                possession=prove_possession(secrets.encryption_private, possession_context(self._commitment, self._me)),
            )
            message = self._signed(MessageKind.ADVERT, advert.encode())
            state.advert_hash = hashlib.sha256(message).digest()
            return message

    # -- stage 1 ------------------------------------------------------------------------------------------

    def share(self, directory: bytes) -> bytes:
        """From the adverts of U1 to signed `SealedShares` of (b_i, s_i) for every neighbour.

        Raises:
            BadSignature, UnknownIdentity, BadKey, DuplicateKey, AdvertMismatch, OwnKeyMissing, TooFewMembers,
            TooFewNeighbours.
        """
        with self._stage("share", "accept") as state:
            u1 = Directory.decode(directory, self._commitment)
            if u1.hashes.get(self._me) != state.advert_hash:
                raise OwnKeyMissing("the own advert is missing from U1 or was replaced")
            if not u1.hashes.keys() <= self._members:
                raise UnknownIdentity("U1 has members that are not in this round")
            state.members, state.adverts_root = tuple(u1.hashes), u1.root(self._commitment)
            neighbours = Graph(state.members, self.config.degree, state.adverts_root).neighbours(self._me)
            secrets = self._secrets()
            private = crypto.loaded(secrets.encryption_private)
            peers = u1.verified(neighbours, secrets.public_keys, self._commitment, self._roster)
            state.peers = {j: Peer(peer.encryption_key, peer.mask_key, peer.possession) for j, peer in peers.items()}
            self._check_neighbourhood(state.members)
            shares = secrets.shares([*state.peers, self._me], self.config.threshold)
            sealed = {j: self._sealed(private, j, shares[j]) for j in state.peers}
            return self._signed(MessageKind.SHARES, SealedShares(sealed).encode())

    def _sealed(self, private: X25519PrivateKey, target: int, shares: HeldShares) -> bytes:
        key, plain = self._state.peers[target].encryption_key, shares.self_share + shares.mask_share
        ciphertext = crypto.seal(private, key, self._commitment, self._me, target, plain)
        return ciphertext + self._identity.sign(
            sealed_statement(self._state.adverts_root, self._me, target, ciphertext)
        )

    # -- stage 2 ------------------------------------------------------------------------------------------

    def accept(self, ciphertexts: bytes) -> bytes:
        """From the neighbours' ciphertexts to `Complaints` about those that do not open; mostly about none.

        A complaint shows the secret shared with a sender that has itself signed for a ciphertext which does not open.
        An honest sender signs one ciphertext for each neighbour, which opens, so no complaint can be about it. Nothing
        is shown to a sender that did not prove to know its own key: that convicts it without more.

        Args:
            ciphertexts: the server's `Delivery` for this client.

        Raises:
            UndecryptableShare: a ciphertext does not open, and its sender has not signed for it: the server altered it.
            IncompleteShares, SurvivorsNotSubset, OwnKeyMissing, TooFew...
        """
        with self._stage("accept", "mask") as state:
            delivery = Delivery.decode(ciphertexts, self._commitment)
            self._check_sublist(delivery.members, "U2")
            if tuple(delivery.sealed.by_peer) != tuple(self._present(delivery.members)):
                raise IncompleteShares("ciphertexts must come from exactly the neighbours in U2")
            private, held, complaints = crypto.loaded(self._secrets().encryption_private), {}, {}
            for source, sealed in delivery.sealed.by_peer.items():
                try:
                    secret = crypto.x25519(private, state.peers[source].encryption_key)
                    held[source] = opened(secret, self._commitment, source, self._me, sealed)
                except UndecryptableShare:
                    complaints[source] = self._complaint(source, sealed)
            state.members, state.held = delivery.members, held
            return self._signed(MessageKind.COMPLAINTS, Complaints(state.adverts_root, complaints).encode())

    def _complaint(self, source: int, sealed: bytes) -> bytes:
        try:
            check_sender(self._roster, self._state.adverts_root, source, self._me, sealed)
        except BadSignature as error:
            text = f"the ciphertext from member {source} does not open, and that member did not sign it"
            raise UndecryptableShare(text) from error
        key = self._state.peers[source].encryption_key
        try:
            check_possession(self._state.peers[source].possession, key, possession_context(self._commitment, source))
        except BadProof:
            return bytes(PROOF_BYTES)
        context = channel_context(self._commitment, source, self._me)
        return prove(self._secrets().encryption_private, key, context).encode()

    # -- stage 3 ------------------------------------------------------------------------------------------

    def mask(self, accepted: bytes, vector: Vector, weight: float = 1.0) -> Iterator[bytes]:
        """From the members that are left to y_i = encode(x_i) + self mask + pair masks, packed to b bits.

        All checks are made, and the vector's norm is measured, before this returns. The pieces are made one after the
        other as they are asked for.

        Args:
            accepted: the server's `Accepted`.
            vector: float32 or float64 [dim], or arrays of it that follow each other; read twice (with noise more often)
                and scaled down to the round's clip where its L2 norm is above.
            weight: in (0, max_weight]; 1 under the rule "uniform".

        Returns:
            The signed messages, one for each of the `pieces`.

        Raises:
            UpdateRejected: the own vector or weight cannot be encoded; leave the round without a reason.
            UndecryptableShare: a member is left whose shares did not open.
            SurvivorsNotSubset, OwnKeyMissing, TooFew...
        """
        with self._stage("mask", "consistency") as state:
            left = Accepted.decode(accepted, self._commitment).members
            self._check_sublist(left, "the accepted members")
            neighbours = self._present(left)
            if cheats := [j for j in neighbours if j not in state.held]:
                raise UndecryptableShare(f"members {cheats} are left, and their shares did not open")
            held = {j: state.held[j] for j in neighbours}
            held[self._me] = self._secrets().shares([*state.peers, self._me], self.config.threshold)[self._me]
            masked = self._masked(neighbours, vector, weight)
            state.members, state.held = left, held
            state.vote_key, state.seed = self._secrets().vote_key, b""
        return self._packed(masked)

    def _masked(self, partners: Collection[int], vector: Vector, weight: float) -> Iterator[Words]:
        """The masked words in chunks, the weight's last."""
        config = self.config
        if config.weight_rule == "uniform" and weight != 1.0:
            raise UpdateRejected(f"weight {weight} under the rule 'uniform'")
        encoding, secrets = encoding_of(config, len(self._members)), self._secrets()
        masks = MaskStreams(
            *secrets.mask_keys({j: self._state.peers[j].mask_key for j in partners}), word_dtype(config.bits)
        )

        def masked(words: Words) -> Words:
            masks.add_to(words)
            return words

        return map(masked, encoding.words(vector, float(weight), secrets))

    def _packed(self, masked: Iterator[Words]) -> Iterator[bytes]:
        try:
            for number, parts in groupby(cut(masked), key=lambda part: part[0]):
                packed = (pack(words, self.config.bits) for _, words in parts)
                yield self._signed(MessageKind.MASKED, chain([number.to_bytes(4, "big")], packed))
        except Exception:
            self._state = ClientState(self.config, REFUSED)
            raise

    # -- stage 4 ------------------------------------------------------------------------------------------

    def consistency(self, survivors: bytes) -> bytes:
        """From U3 to a signature over this client's view of (C, U1, U2, U3).

        Raises:
            SurvivorsNotSubset, OwnKeyMissing, TooFewMembers, TooFewNeighbours.
        """
        with self._stage("consistency", "unmask") as state:
            u3 = Survivors.decode(survivors, self._commitment).members
            self._check_sublist(u3, "U3")
            state.survivors = u3
            state.view = view_digest(self._commitment, state.adverts_root, state.members, u3)
            return self._signed(MessageKind.VOTE, state.view)

    # -- stage 5 ------------------------------------------------------------------------------------------

    def unmask(self, signatures: bytes) -> bytes:
        """From the members' signatures to exactly one share for each member of U2; then secrets are erased.

        Raises:
            InconsistentViews: a signature over another view, or fewer than `threshold` over this one.
        """
        with self._stage("unmask", FINISHED) as state:
            votes, survivors = Votes.decode(signatures, self._commitment), set(state.survivors)
            if strangers := votes.by_member.keys() - survivors:
                raise UnknownIdentity(f"members {sorted(strangers)} vote but are not in U3")
            if len(votes.by_member.keys() | {self._me}) < self.config.quorum:
                raise InconsistentViews(f"{len(votes.by_member)} signed views, {self.config.quorum} needed")
            votes.verified(self._votes_to_verify(votes), self._commitment, state.view, self._roster)
            shares = {
                owner: held.self_share if owner in survivors else held.mask_share for owner, held in state.held.items()
            }
            message = self._signed(MessageKind.UNMASKING, Unmasking(shares).encode())
            self._state = ClientState(self.config, FINISHED)
            return message

    def _votes_to_verify(self, votes: Votes) -> set[int] | None:
        n = len(self._members)
        if self.config.degree >= n - 1:
            return None
        return sample(votes, n, self._policy.colluders_of(self.config, self._roster), self._state.vote_key)

    # -- shared by the stages -----------------------------------------------------------------------------

    @contextmanager
    def _stage(self, stage: str, following: str) -> Iterator[ClientState]:
        """Lets ``stage`` run once and in its turn; any exception inside ends the round for this client."""
        if self._state.next_stage != stage:
            raise StageOrder(f"{stage} called when {self._state.next_stage} was due")
        try:
            yield self._state
        except BaseException:
            self._state = ClientState(self.config, REFUSED)
            raise
        self._state.next_stage = following

    def _signed(self, kind: MessageKind, body: bytes | Iterable[bytes]) -> bytes:
        return signed(self._identity.sign, kind, self._commitment, self._me, body)

    def _secrets(self) -> RoundSecrets:
        return RoundSecrets(self._state.seed, self._commitment, self._me)

    def _check_sublist(self, members: tuple[int, ...], name: str) -> None:
        if not set(members) <= set(self._state.members):
            raise SurvivorsNotSubset(f"{name} has members that the stage before did not have")
        if self._me not in members:
            raise OwnKeyMissing(f"this client is missing from {name}")
        self._check_neighbourhood(members)

    def _present(self, members: tuple[int, ...]) -> list[int]:
        return [j for j in members if j in self._state.peers]

    def _check_neighbourhood(self, members: tuple[int, ...]) -> None:
        self._policy.check_members(len(members), self.config.quorum)
        left = len(self._present(members)) + 1
        if left < self.config.threshold:
            raise TooFewNeighbours(f"{left} of the neighbourhood left, {self.config.threshold} needed")
