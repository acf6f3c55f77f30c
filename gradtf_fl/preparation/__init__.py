"""The provider's whole work for a project: an estimate, tuples, Grad-Transformer, controls, task library, judgement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.preparation.check import check_project
    from gradtf_fl.preparation.judgement import Judgement
    from gradtf_fl.preparation.library import from_library
    from gradtf_fl.preparation.probe import Estimate, estimate
    from gradtf_fl.preparation.run import prepare, seen_rows_differ
    from gradtf_fl.preparation.starter import make_project
    from gradtf_fl.preparation.work import ProviderWork
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Estimate",
    "Judgement",
    "ProviderWork",
    "check_project",
    "estimate",
    "from_library",
    "make_project",
    "prepare",
    "seen_rows_differ",
]
