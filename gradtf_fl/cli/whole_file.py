"""``--out FILE``: what a verb writes for people appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

from gradtf_fl.errors import ConfigError
from gradtf_fl.files import replace_file


def write_whole(out: Path, text: str, mode: int = 0o666) -> None:
    """Write ``text`` (UTF-8) beside ``out`` and rename it there.

    Args:
        mode: permissions, less the umask; 0o600 for what its owner alone may read.

    Raises:
        ConfigError: it can't be written; ``out`` is then as it was.
    """
    try:
        replace_file(out, text.encode(), mode)
    except OSError as error:
        raise ConfigError(f"--out {out}: can't be written ({error.strerror})") from error
