"""The arrays after a secure average's last finished round, in one file that is there whole or not at all.

STATE/arrays.npz    "0", "1", ...: the arrays, in order; "names": JSON of the round and the arrays' names, as bytes
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord

from gradtf_fl.errors import CorruptFile
from gradtf_fl.file_names import ARRAYS
from gradtf_fl.files import PUBLIC, replace_file
from gradtf_fl.flower.arrays import decoded, encoded


@dataclass(frozen=True)
class KeptArrays:
    """The arrays after ``round``."""

    round: int
    arrays: ArrayRecord


def save_arrays(folder: Path, round_number: int, arrays: ArrayRecord) -> None:
    """Replace the file."""
    plain = decoded(arrays)
    names = json.dumps({"round": round_number, "names": list(plain)}).encode()
    numbered = {str(number): array for number, array in enumerate(plain.values())}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, names=np.frombuffer(names, np.uint8), **numbered)
    replace_file(folder / ARRAYS, buffer.getvalue(), PUBLIC)


def load_arrays(folder: Path) -> KeptArrays | None:
    """What `save_arrays` wrote last; None where nothing was.

    Raises:
        CorruptFile: it cannot be read.
    """
    path = folder / ARRAYS
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["names"].tobytes())
            arrays = {name: file[str(number)] for number, name in enumerate(about["names"])}
            return KeptArrays(int(about["round"]), encoded(arrays))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CorruptFile(f"{path}: cannot be read ({type(error).__name__})") from error
