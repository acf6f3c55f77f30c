"""Where results are kept, and what made them: the checkout's revision and the packages."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


PACKAGES = ("torch", "transformers", "numpy", "gradtf-fl")


def default_out() -> Path:
    """``experiments/results`` of a checkout; of an installed package ``results`` in the current folder."""
    return ROOT / "experiments" / "results" if (ROOT / ".git").exists() else Path("results")


def revision() -> str | None:
    """The checkout's commit, with ``+ changes`` when code differs from it; None outside a checkout or without git."""
    if not (ROOT / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", ":!experiments/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" + changes" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
