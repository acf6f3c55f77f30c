"""What a dashboard shows: folders and files, each checked before anything is served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gradtf_fl.config import OrganizationConfig, load_toml
from gradtf_fl.deployment import view_server
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import ORGANIZATION_CONFIG, REPORT, SIMULATION


@dataclass(frozen=True)
class Sources:
    """At least one of these.

    Attributes:
        server: a server's folder.
        organization: an organization's folder: its ledger, its adapters, its log.
        ledgers: further ledger files or exports.
        run: a simulation's folder.
    """

    server: Path | None = None
    organization: Path | None = None
    ledgers: tuple[Path, ...] = ()
    run: Path | None = None

    def check(self) -> None:
        """ConfigError names every folder or file that is not what it was named for."""
        problems: list[str] = []
        for folder, look in ((self.server, view_server), (self.organization, _organization), (self.run, _run)):
            problems += [] if folder is None else _problems(look, folder)
        problems += [f"{path}: no such ledger" for path in self.ledgers if not path.is_file()]
        if problems:
            raise ConfigError(problems)


def _problems(look: Callable[[Path], object], folder: Path) -> list[str]:
    try:
        look(folder)
    except ConfigError as error:
        return list(error.problems)
    return []


def _organization(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    if not (folder / ORGANIZATION_CONFIG).is_file():
        raise ConfigError(f"{folder}: no organization's folder: no {ORGANIZATION_CONFIG} is in it")
    load_toml(OrganizationConfig, folder / ORGANIZATION_CONFIG)


def _run(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    if not any((folder / name).is_file() for name in (SIMULATION, REPORT)):
        raise ConfigError(f"{folder}: no simulation's folder: neither {SIMULATION} nor {REPORT} is in it")
