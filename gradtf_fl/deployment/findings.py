"""One result of a check, and what to do about it. Shared by ``gradtf doctor`` and ``gradtf certs verify``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One result: ``remedy`` is empty where nothing has to be done."""

    level: Level
    what: str
    found: str
    remedy: str = ""
