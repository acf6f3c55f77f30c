"""The paper's tables and figures: presets, their runner, and the generated page of results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from experiments.paper.preset import load_preset, load_presets
    from experiments.paper.report_page import write_report
    from experiments.paper.results_table import ResultsTable
    from experiments.paper.runner import run_preset, state_of
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["ResultsTable", "load_preset", "load_presets", "run_preset", "state_of", "write_report"]
