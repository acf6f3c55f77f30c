"""One small file per verb; the only room that imports every other room (and only when a verb runs)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.cli.main import VERBS, cli
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["VERBS", "cli"]
