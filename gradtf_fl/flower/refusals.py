"""The border that no text crosses: a handler's failure becomes a typed code, its traceback stays at home.

Flower sends the text of an exception that a ClientApp raises to the server. Here every handler runs inside
`answered`: whatever it raises, the reply holds one word of `Refusal`.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Error, Message, RecordDict

from gradtf_fl.deployment import MAX_LOG_BYTES
from gradtf_fl.errors import BudgetExhausted, ConfigError
from gradtf_fl.file_names import CLIENT_LOG
from gradtf_fl.round_messages import REFUSAL, SECTION, Fields, MalformedFields, Refusal
from gradtf_fl.shown import shown

MOST_TYPE, MOST_LINES = 64, 200  # characters of a message type, lines of a traceback, in a log
VANISHED = 1000  # error code of a simulated dropout

logger = logging.getLogger("gradtf.client")


class Refused(Exception):
    """A handler declines, with a code for the server and a cause for the organization's own log."""

    def __init__(self, code: Refusal, cause: str) -> None:
        self.code = code
        super().__init__(cause)


class Vanished(Exception):
    """Simulation: the organization is gone at this stage; the server gets nothing it could use."""


def answered(work: Callable[[], Fields], message_type: str, folder: Callable[[], Path | None]) -> Fields:
    """What ``work`` returns, or a refusal's code in place of any exception.

    Args:
        folder: where the organization keeps its files (None when even that is unknown).

    Raises:
        Vanished: only that.
    """
    try:
        return work()
    except Vanished:
        raise
    except (Exception, SystemExit) as error:
        code = code_of(error)
        keep_cause(error, f"{shown(message_type, MOST_TYPE)} refused ({code})", _quietly(folder))
        return {REFUSAL: str(code)}


def reply_to(message: Message, answer: Callable[[Mapping[str, Any]], Fields]) -> Message:
    """Flower's reply to ``message``: the fields that ``answer`` makes of its fields. No exception passes."""
    try:
        fields = answered(lambda: answer(_fields(message)), message.metadata.message_type, lambda: None)
    except Vanished:
        return Message(Error(VANISHED, "vanished"), reply_to=message)
    return Message(RecordDict({SECTION: ConfigRecord(fields)}), reply_to=message)


def code_of(error: BaseException) -> Refusal:
    """The code that stands for ``error`` outside the organization."""
    if isinstance(error, Refused):
        return error.code
    if isinstance(error, BudgetExhausted):  # the same word: what is left is nobody's business
        return Refusal.POLICY
    if isinstance(error, MalformedFields):
        return Refusal.PROTOCOL
    from gradtf_fl.secagg import ProtocolViolation

    return Refusal.PROTOCOL if isinstance(error, ProtocolViolation) else Refusal.INTERNAL


def _fields(message: Message) -> Mapping[str, Any]:
    record = message.content.get(SECTION)
    if not isinstance(record, ConfigRecord):
        raise MalformedFields(f"the message has no record {SECTION!r}")
    return dict(record)


def _traced(error: BaseException) -> str:
    """The traceback, each line of it fit for a terminal; of a long one the end, which says what went wrong."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(shown(line) for line in lines[-MOST_LINES:])


def _quietly(folder: Callable[[], Path | None]) -> Path | None:
    try:
        return folder()
    except Exception:
        return None


def keep_cause(error: BaseException, what: str, folder: Path | None) -> None:
    """Append to the organization's log file (0600) and show the person at this machine's terminal.

    Args:
        what: what came of the error, in words of ours.
    """
    expected = isinstance(error, Refused | BudgetExhausted | ConfigError)
    text = shown(error) if expected else _traced(error)
    line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {what}: {text}\n"
    place = folder.name if folder is not None else "unknown organization"
    logger.log(logging.WARNING if expected else logging.ERROR, "%s: %s", place, line.rstrip())
    if folder is None:
        return
    try:
        if (path := folder / CLIENT_LOG).exists() and path.stat().st_size > MAX_LOG_BYTES:
            path.replace(folder / (CLIENT_LOG + ".1"))  # one generation: a server that sends rubbish fills no disk
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as log:
            log.write(line)
    except OSError as problem:
        logger.error("%s: %s cannot be written (%s)", place, CLIENT_LOG, problem.strerror)  # unlike print, never raises
