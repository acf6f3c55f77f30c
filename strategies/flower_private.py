"""Every private name of Flower that the server side and the simulation use. No other module here imports one.

Public are the modules of Flower's API reference: ``flwr.app``, ``flwr.clientapp``, ``flwr.serverapp`` and
``flwr.serverapp.strategy``. Everything else may change in any release, so the version is checked first.
`tests/test_dependencies.py` holds this rule; `tests/strategies/test_in_process.py` and
`tests/strategies/test_superlink_gate.py` show that the names still do what we need. The node's side has its own module,
`clients.flower_private`.
"""

from __future__ import annotations

import sys
from base64 import b64decode
from collections.abc import Callable, MutableMapping
from typing import Any

import flwr
from flwr.app import Message

from gradtf_fl.flower_versions import require_tested

require_tested(flwr.__version__)

from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as WireMessage
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "SUPERLINK_NODE_ID",
    "ErrorCode",
    "NodeInfo",
    "Run",
    "WireMessage",
    "flower_superlink",
    "from_registered_node",
    "identify",
    "message_from_proto",
    "message_to_proto",
    "put_first",
    "set_message_id",
]

Asgi = Callable[..., Any]


def identify(task_id: int, run_id: int, node_id: int) -> None:
    """Make this process that task of Flower's; ``Message(...)`` raises without it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, node_id


def set_message_id(message: Message, message_id: str) -> None:
    """Give ``message`` the id that Flower's grid sets when it sends one."""
    message.metadata.__dict__["_message_id"] = message_id


def from_registered_node(scope: MutableMapping[str, Any]) -> bool:
    """Whether the headers of a Fleet call are signed, lately, by a node key that the SuperLink knows.

    Flower asks the same (``authenticate_node``) after it has read the body, which names the node.
    """
    from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
    from flwr.superlink.dependencies.linkstate import get_linkstate
    from flwr.superlink.routers.fleet.node_auth import HTTPException, Request, authenticate_node

    request = Request({**scope, "state": {}})
    try:
        key = b64decode(request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        request.state.protobuf_request = RegisterNodeFleetRequest(public_key=key)
        authenticate_node(request)
        return get_linkstate(request).get_node_id_by_public_key(key) is not None
    except (KeyError, ValueError, HTTPException):
        return False


def put_first(middleware: Callable[[Asgi], Asgi]) -> None:
    """Put ``middleware`` in front of everything that the SuperLink of this process serves.

    Flower loads its own extensions' middleware through one function, which is replaced here. Imported inside, as the
    SuperLink's modules cost a second that the simulation does not need.

    Raises:
        SystemExit: this Flower does not ask that function: all would be served without ``middleware``.
    """
    from flwr.superlink import extensions, main

    ours = main.Middleware(middleware)
    theirs = extensions.get_middleware
    extensions.get_middleware = lambda: (ours, *theirs())
    if main._get_middleware()[0] is not ours:
        sys.exit("this Flower does not take middleware: the Control API would be open to everyone")


def flower_superlink() -> None:
    """The command ``flower-superlink``, with the arguments of this process."""
    from flwr.superlink.cli import flower_superlink as command

    command()
