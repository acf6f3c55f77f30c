"""``with_parent.py PARENT_PID COMMAND...``: become COMMAND, which gets SIGTERM when the parent dies (Linux only).

A program of its own, because the kernel's wish (prctl PR_SET_PDEATHSIG) has to be set after the fork and survives the
exec; done between fork and exec it could deadlock a parent with threads. Imports nothing of this package.
"""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

if __name__ == "__main__":
    parent = int(sys.argv[1])
    with contextlib.suppress(OSError, AttributeError):  # no prctl here: the parent stops its children itself
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the parent is gone")
    os.execvp(sys.argv[2], sys.argv[2:])
