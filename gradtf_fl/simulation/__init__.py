"""``gradtf simulate``: a whole federation on this machine, with the same ServerApp and ClientApp as a deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.simulation.run import resume, simulate
    from gradtf_fl.simulation.run_folder import finished_report, read_run, rounds_kept
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["finished_report", "read_run", "resume", "rounds_kept", "simulate"]
