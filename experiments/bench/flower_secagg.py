"""One round of Flower's own SecAgg+, played in one process: what `break_flower_masks` attacks.

Clients are nodes that run Flower's client mod as a ClientApp would; the server below does what Flower's
``SecAggPlusWorkflow`` does, and keeps what it has seen. Keys, shares, masks, quantisation: all Flower's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MessageType, Metadata, RecordDict
from numpy.typing import NDArray

from experiments.bench.flower_private import (
    RECORD_KEY_CONFIGS,
    RECORD_KEY_STATE,
    Code,
    FitRes,
    Key,
    SecAggPlusState,
    Stage,
    Status,
    bytes_to_ndarray,
    bytes_to_private_key,
    bytes_to_public_key,
    combine_shares,
    factor_combine,
    fitres_to_recorddict,
    generate_shared_key,
    ndarrays_to_parameters,
    parameters_multiply,
    pseudo_rand_gen,
    quantize,
    secaggplus_mod,
)

Residues = NDArray[np.int64]

SERVER_NODE, TTL_S = 1, 3600.0


@dataclass
class FlowerClient:
    """A client node: its update [dim], the number of its examples, and the mod's state between two stages."""

    node: int
    update: NDArray[np.float32]
    examples: int
    context: Context = field(init=False)

    def __post_init__(self) -> None:
        self.context = Context(run_id=1, node_id=self.node, node_config={}, state=RecordDict(), run_config={})

    def answer(self, stage: str, values: dict[str, Any]) -> ConfigRecord:
        """One stage, through ``secaggplus_mod``."""
        metadata = Metadata(1, "", SERVER_NODE, self.node, "", "", time.time(), TTL_S, MessageType.TRAIN)
        content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord({**values, Key.STAGE: stage})})
        reply = secaggplus_mod(Message(content=content, metadata=metadata), self.context, self._train)
        return reply.content.config_records[RECORD_KEY_CONFIGS]

    def _train(self, message: Message, context: Context) -> Message:
        parameters = ndarrays_to_parameters([self.update])
        result = FitRes(Status(Code.OK, ""), parameters, num_examples=self.examples, metrics={})
        return Message(fitres_to_recorddict(result, keep_input=True), reply_to=message)

    def pair_key(self, peer: int) -> bytes:
        """The key that seeds the mask shared with ``peer``, from the secrets that the mod keeps on the node."""
        state = SecAggPlusState(**self.context.state.config_records[RECORD_KEY_STATE])
        public = state.public_keys_dict[peer][0]
        return cast(bytes, generate_shared_key(bytes_to_private_key(state.sk1), bytes_to_public_key(public)))


def pair_mask_sign(node: int, peer: int) -> int:
    """+1 where the mod of ``node`` adds the mask that it shares with ``peer``, -1 where it subtracts it."""
    return 1 if node > peer else -1


@dataclass(frozen=True)
class ServerView:
    """What an honest server has at the end of a round, no more than the protocol sends it.

    Attributes:
        settings: what it asked for at setup.
        masked: masked vector [1 + dim] by node; its first coordinate is the quantised weight.
        private_seeds: seed of the private mask by node, rebuilt from the shares of the unmask stage.
    """

    settings: dict[str, Any]
    masked: dict[int, Residues]
    private_seeds: dict[int, bytes]

    def without_private_mask(self, node: int) -> Residues:
        """Masked vector [1 + dim] of ``node``, its private mask taken off: only pair masks are left on it."""
        modulus, masked = self.settings[Key.MOD_RANGE], self.masked[node]
        private = pseudo_rand_gen(self.private_seeds[node], modulus, [(masked.size,)])[0]
        return cast(Residues, (masked - private) % modulus)


def workflow_settings(clients: int) -> dict[str, Any]:
    """The setup message of ``SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=1.0)``, the rest default."""
    return {
        Key.SAMPLE_NUMBER: clients,
        Key.SHARE_NUMBER: clients,
        Key.THRESHOLD: clients,
        Key.CLIPPING_RANGE: 8.0,
        Key.TARGET_RANGE: 1 << 22,
        Key.MOD_RANGE: 1 << 32,
        Key.MAX_WEIGHT: 1000.0,
    }


def quantised(client: FlowerClient, settings: dict[str, Any]) -> Residues:
    """Weight and weighted update [1 + dim] as the mod quantises them, given the state of numpy's global generator."""
    target = settings[Key.TARGET_RANGE]
    weight = round(client.examples / settings[Key.MAX_WEIGHT] * target)
    update = quantize(parameters_multiply([client.update], weight / target), settings[Key.CLIPPING_RANGE], target)
    return np.concatenate(factor_combine(weight, update)).astype(np.int64)


def play_round(clients: Sequence[FlowerClient]) -> tuple[ServerView, dict[int, Residues]]:
    """All four stages; returns what the server saw, and by node the truth [1 + dim] that the masks should hide."""
    settings, nodes = workflow_settings(len(clients)), [client.node for client in clients]
    adverts = {client.node: client.answer(Stage.SETUP, settings) for client in clients}
    keys = {str(node): [advert[Key.PUBLIC_KEY_1], advert[Key.PUBLIC_KEY_2]] for node, advert in adverts.items()}
    sealed: dict[int, dict[int, Any]] = {node: {} for node in nodes}  # by recipient, by source
    for client in clients:
        answer = client.answer(Stage.SHARE_KEYS, dict(keys))
        for target, text in zip(answer[Key.DESTINATION_LIST], answer[Key.CIPHERTEXT_LIST], strict=True):
            sealed[target][client.node] = text
    masked, truth = {}, {}
    for client in clients:
        sources, texts = list(sealed[client.node]), list(sealed[client.node].values())
        delivery = {Key.SOURCE_LIST: sources, Key.CIPHERTEXT_LIST: texts}
        before = np.random.get_state()  # the mod rounds with numpy's global generator, and uses it for nothing else
        arrays = client.answer(Stage.COLLECT_MASKED_VECTORS, delivery)[Key.MASKED_PARAMETERS]
        masked[client.node] = np.concatenate([bytes_to_ndarray(array) for array in arrays])
        np.random.set_state(before)
        truth[client.node] = quantised(client, settings)
    shares: dict[int, list[bytes]] = {node: [] for node in nodes}
    for client in clients:
        answer = client.answer(Stage.UNMASK, {Key.ACTIVE_NODE_ID_LIST: nodes, Key.DEAD_NODE_ID_LIST: []})
        for owner, share in zip(answer[Key.NODE_ID_LIST], answer[Key.SHARE_LIST], strict=True):
            shares[owner].append(share)
    return ServerView(settings, masked, {node: combine_shares(shares[node]) for node in nodes}), truth
