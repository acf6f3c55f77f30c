"""``--out FILE``: what a verb writes for people appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from gradtf_fl.errors import ConfigError


def write_whole(out: Path, text: str, mode: int = 0o666) -> None:
    """Write ``text`` (UTF-8) beside ``out`` and rename it there.

    Args:
        mode: permissions, less the umask; 0o600 for what its owner alone may read.

    Raises:
        ConfigError: it can't be written; ``out`` is then as it was.
    """
    staging = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        with os.fdopen(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf8") as file:
            file.write(text)
        os.replace(staging, out)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise ConfigError(f"--out {out}: can't be written ({error.strerror})") from error
