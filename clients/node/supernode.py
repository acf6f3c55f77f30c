"""``python -m clients.node.supernode OPTIONS``: ``flower-supernode``, which ends when its connection to the server has.

Flower's own swallows the error that ends its main loop (a TLS handshake that broke, as when a load balancer or a server
that is starting again closes the connection) and then waits for its Runtime API's thread, which never ends: the process
lives on without a connection. Here the process ends with its main loop, so that whoever started it can start it again.

Flower's main loop also looks for messages only every 3 s, which would be most of a round's time: five exchanges follow
each other within a second. While a round is on, this one looks more often (`Pauses`).
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback

from clients.flower_private import flower_supernode, sleep_with

LOST = 1  # exit status when the connection was lost, or anything else went wrong
IDLE_SECONDS = 3.0  # Flower's pause when there was no message
LIVELY_SECONDS, LIVELY_PAUSE = 30.0, 0.5  # after a message, for so long, the pause is so short
REPLY_PAUSE = 0.1  # between two looks for our own reply; Flower's 0.5


class Pauses:
    """Stands in for the module ``time`` in Flower's main loop, which uses nothing but ``sleep``.

    The loop sleeps `IDLE_SECONDS` when there was no message, and less while one is in hand.
    """

    def __init__(self) -> None:
        self._message = -LIVELY_SECONDS

    def sleep(self, seconds: float) -> None:
        """Sleep as long as Flower says, or less."""
        now = time.monotonic()
        if seconds < IDLE_SECONDS:
            self._message = now
            seconds = min(seconds, REPLY_PAUSE)
        elif now - self._message < LIVELY_SECONDS:
            seconds = LIVELY_PAUSE
        time.sleep(seconds)


def end_with_thread(died: threading.ExceptHookArgs) -> None:
    """End the process. Without its heartbeat's thread, which one odd answer ends, a SuperNode looks for messages for
    ever while the server counts it as offline and sends none."""
    threading.__excepthook__(died)
    sys.stderr.flush()
    os._exit(LOST)


def main() -> int:
    """Run Flower's SuperNode to the end of its main loop; the exit status."""
    sleep_with(Pauses())
    before, threading.excepthook = threading.excepthook, end_with_thread
    try:
        flower_supernode()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else LOST
    except BaseException:
        traceback.print_exc()
    finally:
        threading.excepthook = before
    return LOST


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
