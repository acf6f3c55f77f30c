"""The known break of Flower's mask seed, played on Flower's own functions, and the same analysis of ours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.bench.flower_private import generate_key_pairs, generate_shared_key, pseudo_rand_gen
from experiments.bench.flower_secagg import FlowerClient, play_round
from experiments.demos.break_flower_masks import (
    SeedSpace,
    Window,
    byte_laws,
    first_outputs,
    flower_mask,
    fold,
    matching_seeds,
    recover,
)
from gradtf_fl.secagg.crypto import primitives as crypto
from gradtf_fl.secagg.crypto.masks import add_masks
from gradtf_fl.secagg.packing import unpack_chunks
from gradtf_fl.secagg.vectors import encoding_of
from gradtf_fl.secagg.wire.adverts import Advert
from gradtf_fl.secagg.wire.messages import MessageKind, open_signed, piece_of

from .federation import Federation

BITS = 12  # unknown bits of the reduced spaces
FIVE_SIGMA = 5.0  # one test in 1.7 million goes beyond by chance, and the seeds here are fixed


# -- Flower's ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 1], ids=["subtracts its mask", "adds its mask"])
def test_flowers_masks_fall_to_a_passive_server(victim: int) -> None:
    rng = np.random.default_rng(victim)
    clients = [FlowerClient(node, rng.normal(0, 0.1, 50).astype(np.float32), 10 * node) for node in (7, 9)]
    view, truth = play_round(clients)
    attacked, other = clients[victim], clients[1 - victim]
    space = SeedSpace.around(fold(attacked.pair_key(other.node)), BITS)
    recovery = recover(view, attacked.node, other.node, space)
    assert recovery.tried == 2**BITS
    (recovered,) = recovery.vectors
    np.testing.assert_array_equal(recovered, truth[attacked.node])
    assert np.abs(truth[attacked.node]).max() > 0
    elsewhere = SeedSpace((space.start + space.size) % SeedSpace.full().size, space.size)
    assert recover(view, attacked.node, other.node, elsewhere).vectors == ()


def test_the_vectorised_generator_is_numpys() -> None:
    seeds = np.array([0, 1, 2**31, 2**32 - 1, 0x16302B7E], dtype=np.uint32)
    outputs = first_outputs(seeds, 3)
    for seed, mine in zip(seeds.tolist(), outputs.T, strict=True):
        theirs = np.random.RandomState(seed).randint(0, 2**32, 3, dtype=np.uint32)
        np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(mine & 0xFFFFFF, flower_mask(seed, 2**24, 3))


def test_base64_keys_fold_to_exactly_28_bits() -> None:
    full = SeedSpace.full()
    assert full.size == 2**28
    for law in byte_laws():
        assert np.flatnonzero(law).tolist() == list(range(128))
        assert math.isclose(law.sum(), 1.0)
    first = next(SeedSpace(full.size - 2, 2).chunks())
    assert first.tolist() == [0x7F7F7F7E, 0x7F7F7F7F]
    assert SeedSpace.around(0x7F7F7F7F, 1) == SeedSpace(full.size - 2, 2)


def test_the_fold_is_what_flower_seeds_with() -> None:
    pairs = [generate_key_pairs() for _ in range(3)]
    for (private, _), (_, public) in itertools.combinations(pairs, 2):
        key = generate_shared_key(private, public)
        assert len(key) == 44
        np.testing.assert_array_equal(
            pseudo_rand_gen(key, 2**32, [(5,)])[0], np.random.RandomState(fold(key)).randint(0, 2**32 - 1, 5)
        )


# -- ours -------------------------------------------------------------------------------------------------


def deviations(keys: Iterable[bytes]) -> NDArray[np.float64]:
    """By how many standard deviations the count of ones at each bit position [8 * bytes] is off the half."""
    bits = np.unpackbits(np.array([np.frombuffer(key, np.uint8) for key in keys]), axis=1)
    ones = bits.sum(axis=0, dtype=np.float64)
    deviation: NDArray[np.float64] = (ones - len(bits) / 2) / math.sqrt(len(bits) / 4)
    return deviation


def chi_square(values: NDArray[np.uint8]) -> float:
    """Chi-square of bytes against uniform, in standard deviations of its law with 255 degrees of freedom."""
    expected = values.size / 256
    statistic = float(((np.bincount(values, minlength=256) - expected) ** 2).sum() / expected)
    return (statistic - 255) / math.sqrt(2 * 255)


def folded_bytes(keys: Iterable[bytes]) -> NDArray[np.uint8]:
    """The four bytes of every key's fold [keys, 4]."""
    return np.array([fold(key) for key in keys], dtype="<u4").view(np.uint8).reshape(-1, 4)


@pytest.fixture(scope="module")
def pair_keys() -> list[bytes]:
    """The 4,005 pair mask keys of 90 clients' real adverts."""
    federation = Federation(n=90)
    public: dict[int, bytes] = {}
    for i, client in federation.clients.items():
        body = open_signed(client.advertise(), MessageKind.ADVERT, federation.commitment, federation.roster)[1]
        public[i] = Advert.decode(body).mask_key
    private = {i: crypto.loaded(federation.secrets(i).mask_private) for i in federation.members}
    return [
        crypto.pair_mask_key(private[i], public[j], federation.commitment, i, j)
        for i, j in itertools.combinations(federation.members, 2)
    ]


def test_our_pair_keys_have_no_structure(pair_keys: list[bytes]) -> None:
    assert len(pair_keys) == len(set(pair_keys)) == 90 * 89 // 2
    assert {len(key) for key in pair_keys} == {32}
    assert np.abs(deviations(pair_keys)).max() < FIVE_SIGMA  # 256 bit positions
    columns = np.frombuffer(b"".join(pair_keys), np.uint8).reshape(-1, 32)
    assert max(abs(chi_square(columns[:, position])) for position in range(32)) < FIVE_SIGMA


def test_our_pair_keys_fold_to_all_32_bits(pair_keys: list[bytes]) -> None:
    """Nothing of ours folds a key; if something did, it would keep all 32 bits. 4,005 uniform words: 0.002 repeats."""
    folds = folded_bytes(pair_keys)
    assert len({row.tobytes() for row in folds}) == len(pair_keys)
    assert np.abs(deviations(row.tobytes() for row in folds)).max() < FIVE_SIGMA
    assert [np.unique(folds[:, position]).size for position in range(4)] == [256] * 4
    assert max(abs(chi_square(folds[:, position])) for position in range(4)) < FIVE_SIGMA


def test_the_same_measures_show_flowers_structure() -> None:
    pairs = [generate_key_pairs() for _ in range(46)]
    keys = [generate_shared_key(a[0], b[1]) for a, b in itertools.combinations(pairs, 2)]
    folds = folded_bytes(keys)
    stuck = np.flatnonzero(np.abs(deviations(row.tobytes() for row in folds)) > FIVE_SIGMA)
    assert stuck.tolist() == [0, 8, 16, 24]  # the top bit of each byte
    assert max(int(np.unique(folds[:, position]).size) for position in range(4)) <= 128
    assert min(chi_square(folds[:, position]) for position in range(4)) > FIVE_SIGMA


class OurVictim:
    """Member 0 of a round of two, as the server sees it: its masked words, one by one, and where they must end."""

    def __init__(self) -> None:
        self.federation = Federation(n=2, dim=64).until("mask")
        config, commitment = self.federation.config, self.federation.commitment
        message = self.federation.answer("mask", 0)
        body = open_signed(message, MessageKind.MASKED, commitment, self.federation.roster)[1]
        chunks = unpack_chunks(piece_of(body)[1], config.bits, config.dim + 1)
        self.masked = np.concatenate([words for _, words in chunks])
        q_max = encoding_of(config, 2).q_max
        self.window = Window(1 << config.bits, -q_max, q_max)
        secrets = self.federation.secrets(0)
        self.self_key = crypto.self_mask_key(secrets.self_secret, commitment, 0)
        public = crypto.x25519_public(self.federation.secrets(1).mask_private)
        self.pair_key = crypto.pair_mask_key(secrets.mask_private, public, commitment, 0, 1)

    def without(self, *keys: bytes) -> NDArray[np.int64]:
        """The masked residues [dim + 1] with our own masks of these keys taken off."""
        words = self.masked.copy()
        add_masks(words, minus=keys)
        return words.astype(np.int64) & (self.window.modulus - 1)

    def matching_keys(self, known: tuple[bytes, ...], candidates: Iterable[bytes]) -> list[bytes]:
        """The recogniser of the attack over keys of our own generator."""
        return [key for key in candidates if self.window.holds(self.without(*known, key)).all()]


@pytest.fixture(scope="module")
def victim() -> OurVictim:
    return OurVictim()


@pytest.mark.parametrize("self_mask_known", [False, True])
def test_the_attack_on_flower_finds_nothing_on_ours(victim: OurVictim, self_mask_known: bool) -> None:
    """Seeds around the fold of the true pair key, as the attack tries them, and that fold with all its 32 bits."""
    masked, seed = victim.without(*[victim.self_key] * self_mask_known), fold(victim.pair_key)
    space = SeedSpace.around(seed & 0x7F7F7F7F, BITS)
    assert matching_seeds(masked, 1, victim.window, space) == []
    assert not victim.window.holds(masked - flower_mask(seed, victim.window.modulus, masked.size)).all()


@pytest.mark.parametrize("self_mask_known", [False, True])
def test_keys_of_our_generator_with_the_true_fold_do_not_fit(victim: OurVictim, self_mask_known: bool) -> None:
    """Given the 32-bit fold of the true key, an attacker tries 2^12 of the 2^224 keys that have it."""
    randomness = crypto.ReplayRandomness(b"candidates")
    wanted = fold(victim.pair_key)

    heads = [randomness(28) for _ in range(2**BITS)]
    keys = [head + (fold(head) ^ wanted).to_bytes(4, "little") for head in heads]
    assert {fold(key) for key in keys} == {wanted}
    assert victim.matching_keys((victim.self_key,) * self_mask_known, keys) == []


def test_the_recogniser_knows_the_true_key(victim: OurVictim) -> None:
    """Positive control: the same search with all but 12 bits of the key known finds it, given the self mask."""
    number = int.from_bytes(victim.pair_key, "big") >> BITS << BITS
    space = [(number + low).to_bytes(32, "big") for low in range(2**BITS)]
    assert victim.matching_keys((victim.self_key,), space) == [victim.pair_key]
    assert victim.matching_keys((), space) == []  # the self mask alone hides the vector from everyone
