"""The server's side of sampling: a run's beacon, drawn once or found in the run's folder, and who is in a sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gradtf_fl.config import SumSettings
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.file_names import BEACON
from gradtf_fl.files import PUBLIC, replace_file
from gradtf_fl.secagg import (
    BeaconProof,
    ClientPolicy,
    ProtocolViolation,
    Roster,
    RoundConfig,
    SamplePlan,
    colluders_in_sample,
    round_members,
)


@dataclass
class RunBeacon:
    """What draws the samples of one run.

    Attributes:
        proof: what the organizations verify.
        value: the beacon, 32 bytes.
        organizations: node -> hex key of the organization that answered there, as far as adverts have told.
        knowing: nodes that have taken part in a sample: they have verified the proof and kept the beacon.
    """

    proof: BeaconProof
    value: bytes
    organizations: dict[int, str] = field(default_factory=dict)
    knowing: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, proof: BeaconProof, roster: Roster, settings: SumSettings) -> RunBeacon:
        """Of a proof; raises as `BeaconProof.verified` under a policy with the plan's own share of colluders."""
        return cls(proof, proof.verified(roster, ClientPolicy(colluders=settings.colluders)))

    @property
    def run_id(self) -> str:
        """Whose beacon it is."""
        return self.proof.config.run_id

    def proof_for(self, node: int) -> bytes:
        """What the round's first message to ``node`` carries; nothing where the organization has verified it."""
        return b"" if node in self.knowing else self.proof.encode()

    def asked(self, nodes: Iterable[int], configs: Sequence[RoundConfig], roster: Roster) -> list[int]:
        """The sample's nodes, and those whose organization is not known yet (it may refuse)."""
        keys = {roster.keys[member].hex() for config in configs for member in round_members(config, roster)}
        return [node for node in nodes if self.organizations.get(node) in (None, *keys)]


def sample_plan(settings: SumSettings) -> SamplePlan:
    """What round 0 fixes."""
    return SamplePlan(settings.sample, settings.groups)


def colluders_of(settings: SumSettings, size: int) -> int | None:
    """c of a sample (of one of its groups) of ``size``, as organizations with the default ``trials`` bound it; None
    where the round is for the whole roster."""
    if not settings.sample:
        return None
    choices = ClientPolicy().choices(settings.groups)
    return colluders_in_sample(settings.organizations, settings.colluders, size, choices)


def kept_beacon(folder: Path, run_id: str, roster: Roster, settings: SumSettings) -> RunBeacon | None:
    """The run's beacon in its folder; None without one.

    Raises:
        ConfigError: the run there draws other samples.
        CorruptFile: the file proves no beacon of this run.
    """
    path = folder / BEACON
    if not path.exists():
        return None
    try:
        proof = BeaconProof.decode(path.read_bytes())
        found = RunBeacon.of(proof, roster, settings)
    except (OSError, ProtocolViolation) as error:
        raise CorruptFile(f"{path}: proves no beacon ({type(error).__name__})") from error
    if found.run_id != run_id:
        raise CorruptFile(f"{path}: proves the beacon of another run")
    if proof.plan != sample_plan(settings):
        raise ConfigError(
            f"{folder}: the run there draws samples of {proof.plan.sample} in {proof.plan.groups} groups, and a run "
            "keeps its samples' size; name a new folder"
        )
    return found


def keep_beacon(folder: Path, beacon: RunBeacon) -> None:
    """Write the proof into the run's folder, before any round uses it."""
    replace_file(folder / BEACON, beacon.proof.encode(), PUBLIC)
