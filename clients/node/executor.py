"""Hands a SuperNode's messages, one after the other, to the organization's resident worker. Imports nothing heavy."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from clients.flower_private import RunNotRunningException
from clients.node.flower_tasks import TaskSource
from clients.node.worker_link import WorkerLink
from gradtf_fl.flower import MOST_TYPE, reply_to
from gradtf_fl.round_messages import REFUSAL, Fields
from gradtf_fl.shown import shown

OnAnswer = Callable[[str, str, float], None]
POLL_SECONDS = 0.1  # a loopback request of a millisecond; the SuperNode itself looks for messages every 3 s
FAILED_PAUSE = 1.0

logger = logging.getLogger("gradtf.node")


class Executor:
    """A thread that serves until `stop`.

    Args:
        on_answer: told of each message: its type, how it ended (``answered``, ``failed`` or a refusal's code), seconds.

    Attributes:
        busy: the message type in hand, else None.
        served: messages answered.
        seconds: spent on the last one.
        last: time (time.time) of the last answer.
    """

    def __init__(self, source: TaskSource, link: WorkerLink, on_answer: OnAnswer = lambda *_: None) -> None:
        self._source, self._link, self._on_answer = source, link, on_answer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="executor", daemon=True)
        self.busy: str | None = None
        self.served, self.seconds, self.last = 0, 0.0, 0.0

    def start(self) -> None:
        """Begin to take messages."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Take no further message; wait at most ``seconds`` for the one in hand. Whether it was finished."""
        self._stop.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            task = self._source.acquire()
            if task is None:
                self._stop.wait(POLL_SECONDS)
                continue
            try:
                with task:
                    task.run(lambda message: reply_to(message, lambda f: self._ask(message.metadata.message_type, f)))
            except (Exception, RunNotRunningException) as error:  # whatever Flower raises: that message is lost
                logger.warning("a message was lost: %s", type(error).__name__)
                self._stop.wait(FAILED_PAUSE)

    def _ask(self, message_type: str, fields: Mapping[str, Any]) -> Fields:
        started, self.busy, outcome = time.monotonic(), shown(message_type, MOST_TYPE), "failed"
        try:
            answer = self._link.ask(message_type, fields)
            outcome = str(answer.get(REFUSAL, "answered"))
            return answer
        finally:
            self.busy = None
            self.served += 1
            self.seconds, self.last = time.monotonic() - started, time.time()
            self._on_answer(message_type, outcome, self.seconds)
