"""Private names of Flower that only tests use: the insides of a SuperNode, and the builder of app bundles."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.build import build_fab_from_disk
from flwr.cli.flower_config import read_superlink_connection as read_connection
from flwr.common.config import get_fab_config, validate_config
from flwr.common.constant import FAB_MAX_SIZE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree, iterate_object_tree, no_object_id_recompute
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.run import Run
from flwr.superlink import main as superlink
from flwr.supernode import start_client_internal
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message as insert_message

__all__ = [
    "FAB_MAX_SIZE",
    "Fab",
    "NodeStateFactory",
    "ObjectStoreFactory",
    "Run",
    "build_fab_from_disk",
    "create_app",
    "create_node",
    "get_fab_config",
    "get_object_tree",
    "insert_message",
    "iterate_object_tree",
    "no_object_id_recompute",
    "node_headers",
    "read_connection",
    "start_client_internal",
    "superlink",
    "validate_config",
]


def create_node(app: Any, key: ec.EllipticCurvePublicKey) -> None:
    """Register a node key in the state of a SuperLink's app."""
    app.state.linkstate_factory.state().create_node("owner", "name", public_key_to_bytes(key), 60.0)


def node_headers(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """The headers by which a SuperNode signs a call."""
    timestamp = now().isoformat()
    return {
        "content-type": "application/protobuf",
        "flwr-timestamp": timestamp,
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key.public_key())).decode(),
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, timestamp.encode())).decode(),
    }
