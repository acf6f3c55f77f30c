"""Private names of Flower that only tests use: the insides of a SuperNode, and the builder of app bundles."""

from __future__ import annotations

from flwr.cli.build import build_fab_from_disk
from flwr.common.config import get_fab_config, validate_config
from flwr.common.constant import FAB_MAX_SIZE
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree, iterate_object_tree, no_object_id_recompute
from flwr.supercore.object_store import ObjectStoreFactory
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
    "get_fab_config",
    "get_object_tree",
    "insert_message",
    "iterate_object_tree",
    "no_object_id_recompute",
    "start_client_internal",
    "superlink",
    "validate_config",
]
