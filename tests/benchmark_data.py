"""Where tests find benchmark rows and small real models; they are not part of the project, and tests skip without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("GRADTF_SHARED", Path(__file__).parents[2] / "shared"))
DATA, MODELS = SHARED / "data", SHARED / "models"

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"benchmark rows are not at {DATA}: set GRADTF_SHARED to the folder that holds data/"
)
needs_models = pytest.mark.skipif(
    not MODELS.is_dir(), reason=f"small real models are not at {MODELS}: set GRADTF_SHARED to the folder with models/"
)
