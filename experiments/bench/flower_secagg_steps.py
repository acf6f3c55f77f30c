"""One SecAgg+ round of Flower made of Flower's own functions, each step callable alone, to be measured.

The client is flwr/client/mod/secure_aggregation/secaggplus_mod.py itself, stage by stage. The server makes the calls
of flwr/server/workflow/secure_aggregation/secaggplus_workflow.py in their order, without its messages and grid.
Every client is everyone's neighbour. Settings are the workflow's defaults.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.bench.flower_private import (
    Key,
    bytes_to_ndarray,
    bytes_to_private_key,
    bytes_to_public_key,
    client_mod,
    combine_shares,
    create_shares,
    decrypt,
    dequantize,
    factor_extract,
    generate_shared_key,
    get_parameters_shape,
    ndarrays_to_parameters,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
    pseudo_rand_gen,
    share_keys_plaintext_separate,
)

CLIPPING_RANGE = 8.0
QUANTIZATION_RANGE = 1 << 22
MODULUS = 1 << 32
EXAMPLES = 1000  # = the largest weight: every client has weight 1
MEASURED_OWNERS = 10
"""Clients whose secrets are really shared and rebuilt; the time is scaled to all of them."""

Arrays = list[NDArray[Any]]


def _with_globals(function: FunctionType, **names: Any) -> FunctionType:
    """The same code, for which ``names`` of its module are others; the module itself stays as it is."""
    return FunctionType(function.__code__, function.__globals__ | names, function.__name__, function.__defaults__)


class FlowerRound:
    """``n`` clients whose keys and shares are distributed, and the server's work on their masked vectors.

    Attributes:
        owners: clients whose two secrets Shamir's scheme really shared. Where ``n`` is larger, the others send
            shares of the same length that nobody can combine.
        sharing_s: CPU seconds of sharing for all ``n`` clients, scaled from ``owners``.
    """

    def __init__(self, n: int, threshold: int) -> None:
        self.n = n
        self.owners = range(min(n, MEASURED_OWNERS))
        self.sharing_s = 0.0
        self._states = [client_mod.SecAggPlusState(nid=i) for i in range(n)]
        settings = {
            Key.SAMPLE_NUMBER: n,
            Key.SHARE_NUMBER: n,
            Key.THRESHOLD: threshold,
            Key.CLIPPING_RANGE: CLIPPING_RANGE,
            Key.TARGET_RANGE: QUANTIZATION_RANGE,
            Key.MOD_RANGE: MODULUS,
            Key.MAX_WEIGHT: float(EXAMPLES),
        }
        for state in self._states:
            client_mod._setup(state, settings)
        self._public_keys = {str(state.nid): [state.pk1, state.pk2] for state in self._states}
        self._sealed = [self._share(state) for state in self._states]

    def _share(self, state: Any) -> dict[int, bytes]:
        """Ciphertexts by destination."""

        def sharing(secret: bytes, threshold: int, shares: int) -> list[bytes]:
            if state.nid not in self.owners:
                padded = len(secret) // 16 * 16 + 16
                return [bytes(4 + padded)] * shares
            began = time.process_time()
            made: list[bytes] = create_shares(secret, threshold, shares)
            self.sharing_s += (time.process_time() - began) * self.n / len(self.owners)
            return made

        share_keys = _with_globals(client_mod._share_keys, create_shares=sharing)
        answer = share_keys(state, dict(self._public_keys))
        return dict(zip(answer[Key.DESTINATION_LIST], answer[Key.CIPHERTEXT_LIST], strict=True))

    # -- a client -----------------------------------------------------------------------------------------

    def mask(self, client: int, vector: NDArray[np.float32]) -> list[bytes]:
        """Stage 2: opened shares, quantized vector, masks of all others and the own one; serialized arrays."""
        sources = [i for i in range(self.n) if i != client]
        messages = {Key.CIPHERTEXT_LIST: [self._sealed[i][client] for i in sources], Key.SOURCE_LIST: sources}
        parameters = ndarrays_to_parameters([vector])
        answer = client_mod._collect_masked_vectors(self._states[client], messages, EXAMPLES, parameters)
        masked: list[bytes] = answer[Key.MASKED_PARAMETERS]
        return masked

    # -- the server ---------------------------------------------------------------------------------------

    def received(self, messages: Iterable[list[bytes]]) -> Arrays:
        """The sum of masked vectors."""
        total: Arrays | None = None
        for message in messages:
            arrays = [bytes_to_ndarray(part) for part in message]
            total = arrays if total is None else parameters_addition(total, arrays)
        assert total is not None
        masked: Arrays = parameters_mod(total, MODULUS)
        return masked

    def recovery_s(self, dropped: Collection[int]) -> float:
        """CPU seconds to rebuild one secret of every client, the key of ``dropped`` ones, scaled from ``owners``.

        Raises:
            ValueError: the owners have not the same part of dropouts as all clients.
        """
        measured = [owner for owner in self.owners if owner in dropped]
        if len(measured) * self.n != len(dropped) * len(self.owners):
            raise ValueError("dropouts are not spread evenly over measured and other clients")
        holders = [i for i in range(self.n) if i not in dropped]
        seconds = 0.0
        for owner in self.owners:
            shares = [self._share_held(owner, holder, owner in dropped) for holder in holders]
            began = time.process_time()
            secret = combine_shares(shares)
            seconds += time.process_time() - began
            state = self._states[owner]
            assert secret == (state.sk1 if owner in dropped else state.rd_seed), "Flower's shares do not combine"
        return seconds * self.n / len(self.owners)

    def _share_held(self, owner: int, holder: int, of_key: bool) -> bytes:
        state = self._states[owner]
        if holder == owner:
            own: bytes = (state.sk1_share_dict if of_key else state.rd_seed_share_dict)[owner]
            return own
        plain = decrypt(state.ss2_dict[holder], self._sealed[owner][holder])
        shares: tuple[bytes, bytes] = share_keys_plaintext_separate(plain)[2:]  # of the seed, of the key
        return shares[of_key]

    def unmasked(self, masked: Arrays, dropped: Collection[int]) -> NDArray[np.float64]:
        """The mean vector: masks from the recovered secrets are taken off, then it is dequantized."""
        shapes = get_parameters_shape(masked)
        for state in self._states:
            if state.nid not in dropped:
                masked = parameters_subtraction(masked, pseudo_rand_gen(state.rd_seed, MODULUS, shapes))
                continue
            for other in self._states:
                if other.nid == state.nid:
                    continue
                key = generate_shared_key(bytes_to_private_key(state.sk1), bytes_to_public_key(other.pk1))
                mask = pseudo_rand_gen(key, MODULUS, shapes)
                combine = parameters_addition if state.nid > other.nid else parameters_subtraction
                masked = combine(masked, mask)
        factor, arrays = factor_extract(parameters_mod(masked, MODULUS))
        vector: NDArray[np.float64]
        (vector,) = dequantize(arrays, CLIPPING_RANGE, QUANTIZATION_RANGE)
        vector += -(self.n - len(dropped) - 1) * CLIPPING_RANGE
        vector *= QUANTIZATION_RANGE / factor
        return vector
