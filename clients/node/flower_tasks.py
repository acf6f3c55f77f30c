"""Messages of a SuperNode without Flower's own ClientApp process: acquire, answer, done.

Flower starts a new ``flwr-clientapp`` for each message, which unpacks the app bundle that the SERVER sent and runs the
code in it. An organization that trusts its server with nothing must not do that. A SuperNode with ``--isolation
process`` hands its messages to whoever asks its Runtime API with the shared secret; here that is us, and the bundle is
never unpacked. Leans on Flower's private API, see `clients.flower_private`; `tests/clients/test_flower_tasks.py`
fails loudly when a new Flower changes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import httpx
from flwr.app import Context, Message

from clients.flower_private import (
    AcquireTaskRequest,
    HeartbeatSender,
    Node,
    ObjectUnavailableError,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    RuntimeHttpClient,
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SendTaskHeartbeatRequest,
    SubStatus,
    SuperExecAuthHttpInterceptor,
    TaskType,
    context_from_proto,
    identify,
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    pull_and_inflate_object_from_tree,
    push_message,
    push_task_output,
    set_message_id,
)

LOOK_SECONDS = 1.0  # between two looks for a later message
PROTECTED = frozenset({"/flwr.proto.Runtime/AcquireTask"})


class Abandoned(RuntimeError):
    """The SuperNode has given up the message in hand."""


class ClientTask:
    """One claimed message. As a context it keeps the claim alive until there is a reply, or none to be had.

    A SuperNode waits for the reply to the message in hand before it looks for another. Where our reply does not get
    through, the claim is left to expire: the SuperNode then tells the server that its client died and continues. Were
    it told that the task has failed, it would wait for ever.

    Args:
        abandoned: whether the SuperNode is at a later message already.
    """

    def __init__(self, address: str, token: str, abandoned: Callable[[], bool]) -> None:
        interceptors = [
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(token),
        ]
        # No call is tried again: over loopback one fails only when the SuperNode is gone, and the message with it.
        # Flower's own retries would also end this whole process when a new SuperNode does not know our token (401).
        self._client = RuntimeHttpClient.from_server_address(address, True, None, interceptors)
        self._abandoned = abandoned
        self._heartbeat = HeartbeatSender(self._alive)
        self._context: Context | None = None
        self._done = False

    def __enter__(self) -> Self:
        self._heartbeat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heartbeat.stop()
        if self._done:
            push_task_output(self._client, self._context, SubStatus.COMPLETED, "")
        elif kind is Abandoned:  # nobody waits for it
            push_task_output(self._client, self._context, SubStatus.FAILED, "abandoned")
        self._client.close()

    def run(self, answer: Callable[[Message], Message]) -> None:
        """Pull the message, reply with ``answer`` of it.

        Raises:
            Abandoned: the message will never be whole. httpx.HTTPError, RuntimeError: the SuperNode is gone.
        """
        message = self._pull()
        assert self._context is not None
        push_message(self._client, answer(message), self._context)
        self._done = True

    def _pull(self) -> Message:
        """Flower's ``pull_task_input``, which waits for ever for a message that its SuperNode has given up.

        That happens when the message's run ends while the SuperNode fetches it. A SuperNode handles one message after
        the other, so a later one shows it.
        """
        found = self._client.PullTaskInput(PullTaskInputRequest())
        identify(found.task_id, found.run.run_id, found.context.node_id)
        self._context = context = context_from_proto(found.context)
        pulled = self._client.PullMessages(PullAppMessagesRequest())
        if not pulled.messages_list:
            raise Abandoned("no message")
        tree, node = pulled.message_object_trees[0], Node(node_id=context.node_id)
        pull = make_pull_object_fn_protobuf(self._client.PullObject, node, context.run_id)

        def pull_unless_abandoned(object_id: str) -> bytes:
            try:
                content: bytes = pull(object_id)
            except ObjectUnavailableError:
                if self._abandoned():
                    raise Abandoned("a later message is here") from None
                raise
            return content

        confirm = make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, node, context.run_id)
        message: Message = pull_and_inflate_object_from_tree(tree, pull_unless_abandoned, confirm, return_type=Message)
        set_message_id(message, tree.object_id)
        return message

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
        self._later: str = ""  # token of a message that came while the last one was in hand
        self._lock, self._looked = threading.Lock(), 0.0

    def acquire(self) -> ClientTask | None:
        """The oldest waiting message; None without one, or when the SuperNode does not answer."""
        with self._lock:
            token, self._later = self._later or self._claim(), ""
        return ClientTask(self._address, token, self._is_there_another) if token else None

    def _is_there_another(self) -> bool:
        with self._lock:
            if not self._later and time.monotonic() - self._looked > LOOK_SECONDS:
                self._looked = time.monotonic()
                self._later = self._claim()
            return bool(self._later)

    def _claim(self) -> str:
        """Token of the oldest unclaimed message; empty without one."""
        try:
            found = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.HTTPError:
            return ""
        return str(found.token) if found.HasField("task") else ""

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()
