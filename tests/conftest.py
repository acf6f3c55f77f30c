"""Before any test: where tests run side by side, each process keeps to one thread.

torch's threads wait for each other when several processes share the cores; it reads this when it is imported.
"""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
