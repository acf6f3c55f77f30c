"""Messages of a SuperNode without Flower's own ClientApp process: acquire, answer, done.

Flower starts a new ``flwr-clientapp`` for each message, which unpacks the app bundle that the SERVER sent and runs the
code in it. An organization that trusts its server with nothing must not do that. A SuperNode with ``--isolation
process`` hands its messages to whoever asks its Runtime API with the shared secret; here that is us, and the bundle is
never unpacked. With `strategies.in_process` the only file that touches Flower's private API:
`tests/deployment/test_flower_tasks.py` fails loudly when a new Flower changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

PROTECTED = frozenset({"/flwr.proto.Runtime/AcquireTask"})


class ClientTask:
    """One claimed message. As a context it keeps the claim alive; leaving it without a reply reports a failure."""

    def __init__(self, address: str, token: str) -> None:
        interceptors = [
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(token),
        ]
        retry = make_simple_http_retry_invoker()
        retry.max_time = 60.0  # a SuperNode that is gone has forgotten the task
        self._client = RuntimeHttpClient.from_server_address(address, True, None, interceptors, retry_invoker=retry)
        self._heartbeat = HeartbeatSender(self._alive)
        self._context: Context | None = None
        self._status, self._details = SubStatus.FAILED, "no reply"

    def __enter__(self) -> Self:
        self._heartbeat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heartbeat.stop()
        push_task_output(self._client, self._context, self._status, self._details)
        self._client.close()

    def run(self, answer: Callable[[Message], Message]) -> None:
        """Pull the message, reply with ``answer`` of it."""
        message, self._context, _, _ = pull_task_input(self._client)
        push_message(self._client, answer(message), self._context)
        self._status, self._details = SubStatus.COMPLETED, ""

    def _alive(self) -> bool:
        try:
            self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPError:
            return False
        return True


class TaskSource:
    """The tasks of the SuperNode whose Runtime API is at ``address`` (host:port, loopback).

    Args:
        secret: content of the file that the SuperNode was started with (``--superexec-auth-secret-file``).
    """

    def __init__(self, address: str, secret: bytes) -> None:
        self._address = address
        interceptors = [
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=PROTECTED),
        ]
        self._client = RuntimeHttpClient.from_server_address(address, True, None, interceptors)

    def acquire(self) -> ClientTask | None:
        """The oldest waiting message; None when there is none or the SuperNode does not answer."""
        try:
            found = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.HTTPError:
            return None
        if not (found.HasField("task") and found.token):
            return None
        return ClientTask(self._address, found.token)

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()
