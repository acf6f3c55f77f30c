"""Which releases of Flower gradtf-fl was tested with, and the check that the installed one is among them.

Secure aggregation, the resident worker and the simulation call names that Flower does not document and may change in
any release. `clients.flower_private` and `strategies.flower_private` hold those names; each runs this check before its
first import of one, so that another Flower ends with this message and not with an ImportError.
"""

from __future__ import annotations

import logging

from gradtf_fl.errors import ConfigError

TESTED = ("1.42.0",)
REQUIREMENT = "flwr>=1.42,<1.43"  # as in pyproject.toml; nodes and server must run the same minor release
TARGET = TESTED[-1]  # what an app bundle names as its Flower

logger = logging.getLogger("gradtf.flower")


class UntestedFlower(ConfigError):
    """The installed Flower is of a minor release that gradtf-fl was never tested with (exit 2)."""


def require_tested(installed: str) -> None:
    """Check the version of the installed Flower; another patch release of a tested minor one only logs a warning.

    Args:
        installed: ``flwr.__version__``, e.g. ``"1.42.0"``.

    Raises:
        UntestedFlower: another major or minor release; the message says which versions were tested.

    Example:
        >>> require_tested("1.42.0")
        >>> require_tested("1.41.0")
        Traceback (most recent call last):
        gradtf_fl.flower_versions.UntestedFlower: Flower 1.41.0 is installed, gradtf-fl was tested with 1.42.0: ...
    """
    if installed in TESTED:
        return
    found = f"Flower {installed} is installed, gradtf-fl was tested with {', '.join(TESTED)}"
    if _minor(installed) not in {_minor(tested) for tested in TESTED}:
        raise UntestedFlower(f'{found}: run pip install "{REQUIREMENT}"')
    logger.warning("%s: a patch release that nobody has tested", found)


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])
