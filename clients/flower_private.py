"""Every private name of Flower that the node's side uses. No other module of ``clients`` imports one.

Public are the modules of Flower's API reference: ``flwr.app``, ``flwr.clientapp``, ``flwr.serverapp`` and
``flwr.serverapp.strategy``. Everything else may change in any release, so the version is checked first.
`tests/test_dependencies.py` holds this rule; `tests/clients/test_flower_tasks.py`, `test_supernode.py` and the
slow tests with real processes show that the names still do what we need. The server's side has its own module,
`strategies.flower_private`.
"""

from __future__ import annotations

from typing import Protocol

import flwr
from flwr.app import Message

from gradtf_fl.flower_versions import require_tested

require_tested(flwr.__version__)

from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

__all__ = [
    "AcquireTaskRequest",
    "ActivateNodeRequest",
    "DeactivateNodeRequest",
    "FleetHttpClient",
    "HeartbeatSender",
    "Node",
    "NodeAuthHttpInterceptor",
    "ObjectUnavailableError",
    "PullAppMessagesRequest",
    "PullTaskInputRequest",
    "RunNotRunningException",
    "RuntimeHttpClient",
    "RuntimeTokenHttpInterceptor",
    "RuntimeVersionHttpInterceptor",
    "SendTaskHeartbeatRequest",
    "SubStatus",
    "SuperExecAuthHttpInterceptor",
    "TaskType",
    "context_from_proto",
    "flower_supernode",
    "identify",
    "make_confirm_message_received_fn_protobuf",
    "make_pull_object_fn_protobuf",
    "public_key_to_bytes",
    "pull_and_inflate_object_from_tree",
    "push_message",
    "push_task_output",
    "set_message_id",
    "sleep_with",
]


class Sleeper(Protocol):
    """The part of the module ``time`` that Flower's main loop uses."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


def identify(task_id: int, run_id: int, node_id: int) -> None:
    """Make this process that task of Flower's; ``Message(...)`` raises without it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, node_id


def set_message_id(message: Message, message_id: str) -> None:
    """Give ``message`` the id under which the SuperNode keeps it."""
    message.metadata.__dict__["_message_id"] = message_id


def sleep_with(sleeper: Sleeper) -> None:
    """From now on the SuperNode's main loop in this process waits by ``sleeper``.

    Imported inside, here and below, as the SuperNode's modules cost a second that the node's own process does not need.
    """
    from flwr.supernode import start_client_internal

    start_client_internal.time = sleeper


def flower_supernode() -> None:
    """The command ``flower-supernode``, with the arguments of this process."""
    from flwr.supernode.cli import flower_supernode as command

    command()
