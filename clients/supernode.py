"""``python -m clients.supernode OPTIONS``: ``flower-supernode``, which ends when its connection to the server has.

Flower's own swallows the error that ends its main loop (a TLS handshake that broke, as when a load balancer or a server
that is starting again closes the connection) and then waits for its Runtime API's thread, which never ends: the process
lives on without a connection. Here the process ends with its main loop, so that whoever started it can start it again.
"""

from __future__ import annotations

import os
import sys
import traceback

from flwr.supernode.cli import flower_supernode

LOST = 1  # exit status when the connection was lost, or anything else went wrong


def main() -> int:
    """Run Flower's SuperNode to the end of its main loop; the exit status."""
    try:
        flower_supernode()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else LOST
    except BaseException:
        traceback.print_exc()
    return LOST


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
