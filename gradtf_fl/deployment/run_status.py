"""OUT/status.json: where a run stands right now, replaced as a whole with every step of the server.

It is a view, not a checkpoint: what a continued run needs is in OUT/federation.json. Times are Unix time (seconds).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from gradtf_fl.errors import CorruptFile
from gradtf_fl.file_names import STATUS

VERSION = 1

RunState = Literal["running", "completed", "stopped", "aborted", "rejected", "failed"]


@dataclass(frozen=True)
class PlanStatus:
    """What the operator wants to see of the plan. epsilon, delta: what the whole run may spend per organization."""

    organizations: int
    rounds: int
    epsilon: float
    delta: float
    noise_multiplier: float = 0.0
    deadline_s: float = 0.0
    join_s: float = 0.0


@dataclass(frozen=True)
class NodeStatus:
    """One Flower node.

    Attributes:
        key: hex Ed25519 key of its last valid advert; empty when it never sent one to this server.
        stage: the last one it was asked in, in this attempt; empty when it was not asked.
        outcome: how it stands
            there: ``waiting``, ``answered``, ``silent``, ``unusable`` or a refusal's code.
        bytes_up, bytes_down: payload in this attempt.
        refusal, refused_in: its last refusal's code, and the round.
    """

    node: int
    key: str = ""
    stage: str = ""
    outcome: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    refusal: str = ""
    refused_in: int = 0


@dataclass(frozen=True)
class ExchangeStatus:
    """A finished exchange of the attempt: how many answered of those asked, and its wall time."""

    stage: str
    answered: int
    expected: int
    seconds: float


@dataclass(frozen=True)
class RunStatus:
    """``status.json``.

    Attributes:
        error: class of the error that the run ended with.
        pid: of the server that wrote this.
        round, attempt: the current or last one.
        stage: ``connect`` (waiting for nodes), one of the protocol's stages,
            ``generate``, ``deliver``, or empty between rounds. answered, expected: organizations in that stage.
        dropped: organizations lost in this attempt so far.
        exchanges: of this attempt.
        refused: code -> organizations.
        delivered: last round whose adapter was sent out.
        stored, asked: organizations that stored it, of those asked.
    """

    plan: PlanStatus
    state: RunState = "running"
    error: str = ""
    pid: int = 0
    started: float = 0.0
    updated: float = 0.0
    round: int = 0
    attempt: int = 0
    stage: str = ""
    stage_started: float = 0.0
    answered: int = 0
    expected: int = 0
    dropped: int = 0
    exchanges: tuple[ExchangeStatus, ...] = ()
    refused: dict[str, int] = field(default_factory=dict)
    nodes: tuple[NodeStatus, ...] = ()
    delivered: int = 0
    stored: int | None = None
    asked: int | None = None
    version: int = VERSION

    def write(self, out: Path) -> None:
        """Replace OUT/status.json (0600): a reader sees the old file or the whole new one. Raises: OSError."""
        staging = out / f".{STATUS}.new"
        descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(asdict(self), file, allow_nan=False)
            os.replace(staging, out / STATUS)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise

    @classmethod
    def read(cls, out: Path) -> RunStatus | None:
        """The status in ``out``; None without one.

        Raises:
            CorruptFile: it cannot be read, or is of another version.
        """
        from pydantic import TypeAdapter, ValidationError

        path = out / STATUS
        try:
            data = path.read_bytes()
            status = TypeAdapter(cls).validate_json(data)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CorruptFile(f"{path}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            raise CorruptFile(f"{path}: no status of a run ({error.error_count()} problems)") from error
        if status.version != VERSION:
            raise CorruptFile(f"{path}: version {status.version} is not known")
        return status
