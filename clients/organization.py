"""An organization's folder: what it is and what it accepts. `gradtf_fl.file_names` says which file is what."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context

from clients.node_store import NodeStore
from gradtf_fl.config import OrganizationConfig, OrganizationSimulation, read_toml, validate
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import (
    IDENTITY_KEY,
    INVITATION,
    LEDGER,
    ORGANIZATION_CONFIG,
    ORGANIZATION_PRIVATE,
    ROUNDS,
    STATE,
)
from gradtf_fl.files import exposed
from gradtf_fl.flower import Member, RoundKey, Vanished
from gradtf_fl.secagg import ClientPolicy, Identity, Randomness, Roster

NOBODY = "0" * 64
"""Stands for the provider's key until the invitation brings it."""
_SOME_ROSTER = [f"{number:064x}" for number in range(1, 1001)]
"""As many keys as ``n_min`` may ask for."""


@dataclass(frozen=True)
class Organization:
    """A loaded folder. Everything that decides what may leave comes from here, never from a message."""

    folder: Path
    config: OrganizationConfig
    identity: Identity
    roster: Roster
    policy: ClientPolicy
    simulated: bool = False
    """Whether a simulation engine serves it: only then its ``[simulation]`` table counts."""

    @property
    def simulation(self) -> OrganizationSimulation | None:
        """``[simulation]`` where a simulation engine serves this folder; nowhere else."""
        return self.config.simulation if self.simulated else None

    @property
    def train_path(self) -> Path:
        """File of private training rows."""
        return self.folder / self.config.data.train

    @property
    def test_path(self) -> Path | None:
        """File of private test rows, where there are any."""
        return None if self.config.data.test is None else self.folder / self.config.data.test

    @property
    def ledger_path(self) -> Path:
        """The privacy ledger."""
        return self.folder / LEDGER

    @property
    def provider_key(self) -> bytes:
        """The pinned Ed25519 key (32 bytes) that signs LLM adapters."""
        return bytes.fromhex(self.config.secagg.provider_key)

    def round_folder(self, round_number: int) -> Path:
        """Where the results of a round are kept."""
        return self.folder / ROUNDS / str(round_number)

    def store(self) -> NodeStore:
        """The protocol state."""
        return NodeStore(self.folder / STATE, durable=self.simulation is None)

    def member(self) -> Member:
        """The organization as a member of its rounds."""
        policy = self.config.policy
        return Member(self.identity, self.roster, self.policy, self.store(), policy.min_difference, policy.rest_rounds)

    def training_seed(self, key: RoundKey) -> int | None:
        """Seed of this round's DP-SGD; None (operating system entropy) but in a seeded simulation."""
        simulation = self.simulation
        if simulation is None or simulation.seed is None:
            return None
        return int.from_bytes(self._simulated(simulation.seed, "training", key)[:7], "big")

    def randomness(self, key: RoundKey) -> Randomness:
        """Source of the protocol's secrets: the operating system, or replayable in a seeded simulation."""
        simulation = self.simulation
        if simulation is None or simulation.seed is None:
            return os.urandom
        seed = self._simulated(simulation.seed, "protocol", key)
        return lambda count: hashlib.shake_256(seed).digest(count)

    def _simulated(self, seed: int, purpose: str, key: RoundKey) -> bytes:
        text = f"gradtf/simulation/v1|{seed}|{self.config.name}|{purpose}|{key.round}|{key.attempt}"
        return hashlib.sha256(text.encode()).digest()

    def vanish_if_told(self, stage: str, round_number: int) -> None:
        """Simulation: raise `Vanished` when ``[simulation] drop`` names this stage."""
        simulation = self.simulation
        for point in simulation.drop if simulation else ():
            if point.stage == stage and point.round in (None, round_number):
                raise Vanished


def organization_folder(context: Context) -> Path:
    """The folder that this node serves.

    ``organization-dir`` in the node's own config decides. Simulations give ``partition-id`` instead, and
    the run config's ``organizations-dir``; as that comes from the server, `organization_of` only follows
    it into a folder that has a ``[simulation]`` table.

    Raises:
        ConfigError: neither is given, or the partition has no folder.
    """
    own = context.node_config.get("organization-dir")
    if own:
        return Path(str(own))
    parent, number = context.run_config.get("organizations-dir"), context.node_config.get("partition-id")
    if not parent or number is None:
        raise ConfigError("node config: organization-dir is missing")
    folders = _folders_in(Path(str(parent)), Path(str(parent)).stat().st_mtime_ns) if Path(str(parent)).is_dir() else ()
    if not 0 <= int(number) < len(folders):
        raise ConfigError(f"{parent}: no organization number {number}")
    return folders[int(number)]


def organization_of(context: Context) -> Organization:
    """`load_organization` of the folder of this context.

    A ``[simulation]`` table counts where an engine says so in the node's own config: by ``simulated``, or by a
    ``partition-id`` in place of the folder.

    Raises:
        ConfigError: as that, and for a folder that only the run config names and that is not a simulation's.
    """
    own, folder = context.node_config.get("organization-dir"), organization_folder(context)
    simulated = not own or bool(context.node_config.get("simulated"))
    organization = _simulated(folder, _signature(folder)) if simulated else load_organization(folder)
    if not own and organization.config.simulation is None:
        raise ConfigError(f"{organization.folder}: a run config may only choose folders that have a [simulation] table")
    return organization


@lru_cache(maxsize=16)
def _folders_in(parent: Path, changed: int) -> tuple[Path, ...]:
    """The organizations' folders in ``parent``, which was last ``changed`` then: a listing of N for each of N nodes."""
    return tuple(sorted(path.parent for path in parent.glob(f"*/{ORGANIZATION_CONFIG}")))


@lru_cache(maxsize=4096)
def _simulated(folder: Path, signature: tuple[tuple[int, int, int], ...]) -> Organization:
    """`load_organization` of a simulation, once for the same files: each names all N organizations."""
    return load_organization(folder, simulated=True)


def _signature(folder: Path) -> tuple[tuple[int, int, int], ...]:
    """What shows that an organization's settings or key were replaced; nothing where one is missing."""
    try:
        found = [(folder / name).stat() for name in (ORGANIZATION_CONFIG, IDENTITY_KEY)]
    except OSError:
        return ()
    return tuple((one.st_size, one.st_ino, one.st_mtime_ns) for one in found)


def load_organization(folder: Path, *, simulated: bool = False) -> Organization:
    """Read and check an organization's folder.

    Args:
        simulated: a simulation engine serves it. Its ``[simulation]`` table counts then, and its files may be open
            to others.

    Raises:
        ConfigError: with every problem of ``organization.toml``; it has a ``[simulation]`` table and is not served by
            a simulation; the organization has not joined yet; somebody else owns or may read what is private; its
            identity key cannot be used.
    """
    problems = [] if simulated else exposed([folder, *(folder / name for name in ORGANIZATION_PRIVATE)])
    config = read_config(folder)
    if config.simulation is not None and not simulated:
        problems.append(f"{folder / ORGANIZATION_CONFIG}: {SIMULATION_TABLE}")
    if not is_joined(config):
        problems.append(f"{folder}: {NOT_JOINED}: {how_to_join(folder)}")
    if problems:
        raise ConfigError(problems)
    return assemble(folder, config, Identity.load(folder / IDENTITY_KEY), simulated)


def assemble(folder: Path, config: OrganizationConfig, identity: Identity, simulated: bool = False) -> Organization:
    """An organization from the parts that were read."""
    keys, roster = _pinned(config.secagg.roster)
    limits = config.secagg.model_copy(update={"roster": keys})  # one list in memory for all that pin it
    return Organization(
        folder=folder,
        config=config.model_copy(update={"secagg": limits}),
        identity=identity,
        roster=roster,
        policy=ClientPolicy(**{field.name: getattr(limits, field.name) for field in fields(ClientPolicy)}),
        simulated=simulated,
    )


@lru_cache(maxsize=4)
def _pinned(keys: tuple[str, ...]) -> tuple[tuple[str, ...], Roster]:
    """A roster as its file has it, and decoded."""
    return keys, Roster(tuple(bytes.fromhex(key) for key in keys))


def read_config(folder: Path) -> OrganizationConfig:
    """``organization.toml``; before the organization joins, with stand-ins for what the invitation brings.

    Raises:
        ConfigError: with every problem.
    """
    path = folder / ORGANIZATION_CONFIG
    return validate(
        OrganizationConfig, with_stand_ins(read_toml(path)), lambda key: f"{path}: {key}" if key else str(path)
    )


def with_stand_ins(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` of an ``organization.toml``; `NOBODY` signs and is summed with, while nobody is named there yet."""
    secagg = values.get("secagg", {})
    if not isinstance(secagg, dict) or secagg.get("roster") or secagg.get("provider_key"):
        return dict(values)
    return {**values, "secagg": {**secagg, "roster": _SOME_ROSTER, "provider_key": NOBODY}}


def is_joined(config: OrganizationConfig) -> bool:
    """Whether the organization has joined a federation."""
    return config.secagg.provider_key != NOBODY


SIMULATION_TABLE = (
    "simulation: noise, keys and masks of a seed are not secret, so only `gradtf simulate` serves a folder with this "
    "table: remove it"
)
NOT_JOINED = "has not joined a federation yet"


def how_to_join(folder: Path) -> str:
    """The command that joins."""
    return f"gradtf org join {folder} {INVITATION}"
