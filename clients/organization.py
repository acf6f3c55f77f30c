"""An organization's folder: what it is, what it accepts, and where its files lie.

ORG/organization.toml     configuration and limits (`gradtf_fl.config.OrganizationConfig`)
ORG/identity.key          Ed25519 identity, 0600
ORG/state.sqlite          protocol state between messages, 0600 (`clients.node_store`)
ORG/ledger.sqlite         privacy ledger; its head beside it
ORG/client.log            refusals and tracebacks, 0600
ORG/events.jsonl          what the node did, for machines: words of a fixed list, numbers, times; 0600
ORG/evaluations.jsonl     accuracy of each round's models on the organization's own test rows
ORG/rounds/ROUND/llm_adapter/   PEFT folder; beside it adapter.json, the provider's signed statement, 0600
ORG/current_adapter       link to the adapter in use (`clients.adapters.kept`)
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context

from clients.node_store import NodeStore, RoundKey
from clients.refusals import Vanished
from gradtf_fl.config import OrganizationConfig, load_toml
from gradtf_fl.errors import ConfigError
from gradtf_fl.secagg import ClientPolicy, Identity, Randomness, Roster

CONFIG_FILE = "organization.toml"


@dataclass(frozen=True)
class Organization:
    """A loaded folder. Everything that decides what may leave comes from here, never from a message."""

    folder: Path
    config: OrganizationConfig
    identity: Identity
    roster: Roster
    policy: ClientPolicy

    @property
    def train_path(self) -> Path:
        """JSONL of private training rows."""
        return self.folder / self.config.data.train

    @property
    def test_path(self) -> Path | None:
        """JSONL of private test rows, where there are any."""
        return None if self.config.data.test is None else self.folder / self.config.data.test

    @property
    def ledger_path(self) -> Path:
        """The privacy ledger."""
        return self.folder / "ledger.sqlite"

    @property
    def provider_key(self) -> bytes:
        """The pinned Ed25519 key (32 bytes) that signs LLM adapters."""
        return bytes.fromhex(self.config.secagg.provider_key)

    def round_folder(self, round_number: int) -> Path:
        """Where the results of a round are kept."""
        return self.folder / "rounds" / str(round_number)

    def store(self) -> NodeStore:
        """The protocol state."""
        return NodeStore(self.folder / "state.sqlite", durable=self.config.simulation is None)

    def training_seed(self, key: RoundKey) -> int | None:
        """Seed of this round's DP-SGD; None (operating system entropy) but in a seeded simulation."""
        simulation = self.config.simulation
        if simulation is None or simulation.seed is None:
            return None
        return int.from_bytes(self._simulated(simulation.seed, "training", key)[:7], "big")

    def randomness(self, key: RoundKey) -> Randomness:
        """Source of the protocol's secrets: the operating system, or replayable in a seeded simulation."""
        simulation = self.config.simulation
        if simulation is None or simulation.seed is None:
            return os.urandom
        seed = self._simulated(simulation.seed, "protocol", key)
        return lambda count: hashlib.shake_256(seed).digest(count)

    def _simulated(self, seed: int, purpose: str, key: RoundKey) -> bytes:
        text = f"gradtf/simulation/v1|{seed}|{self.config.name}|{purpose}|{key.round}|{key.attempt}"
        return hashlib.sha256(text.encode()).digest()

    def vanish_if_told(self, stage: str, round_number: int) -> None:
        """Simulation: raise `Vanished` when ``[simulation] drop`` names this stage."""
        simulation = self.config.simulation
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
    folders = sorted(path.parent for path in Path(str(parent)).glob(f"*/{CONFIG_FILE}"))
    if not 0 <= int(number) < len(folders):
        raise ConfigError(f"{parent}: no organization number {number}")
    return folders[int(number)]


def organization_of(context: Context) -> Organization:
    """`load_organization` of the folder of this context.

    Raises:
        ConfigError: as that, and for a folder that only the run config names and that is no simulation's.
    """
    organization = load_organization(organization_folder(context))
    if not context.node_config.get("organization-dir") and organization.config.simulation is None:
        raise ConfigError(f"{organization.folder}: a run config may only choose folders that have a [simulation] table")
    return organization


def load_organization(folder: Path) -> Organization:
    """Read and check an organization's folder.

    Raises:
        ConfigError: with every problem of ``organization.toml``.
    """
    config = load_toml(OrganizationConfig, folder / CONFIG_FILE)
    limits = config.secagg
    return Organization(
        folder=folder,
        config=config,
        identity=Identity.load(folder / "identity.key"),
        roster=Roster(tuple(bytes.fromhex(key) for key in limits.roster)),
        policy=ClientPolicy(
            n_min=limits.n_min,
            t_min=limits.t_min,
            max_bits=limits.max_bits,
            max_clip=limits.max_clip,
            max_weight=limits.max_weight,
            allow_two=limits.allow_two,
            colluders=limits.colluders,
            min_noise=limits.min_noise,
        ),
    )
