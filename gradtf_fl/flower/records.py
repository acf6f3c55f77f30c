"""What the server knows about rounds: values for reports, checkpoints and live progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class RoundRecord:
    """One attempt at a round.

    Attributes:
        joined: organizations that advertised.
        masked: those whose update is in the sum.
        unmasked: those that helped to unmask it.
        dropped: stage -> organizations lost there: silent, refusing or wrong.
        refused: refusal code -> organizations that declined with it.
        max_abs_error: decoded mean against the plain one; None where only the organizations could know it.
        bytes_up_per_client, bytes_down_per_client: payload bytes, mean over the organizations asked.
        llm_adapter_sha256: of the packed adapter; empty in an aborted round.
        refinement: of the LLM update on public prompts (``taken``, ``agreement``, ``without``,
            ``kinds``: of prompts that it is composed of, 0 if it is not); empty without any.
        aborted_at: the stage that fell below the threshold; empty in a completed round.
        included: hex Ed25519 keys of the organizations in the sum.
        sums: the same by group, in group mode.
        opened: hex keys of the organizations in each sum that was opened, in an aborted round too.
        cheated: hex keys of organizations that were shut out because they cheated -> the evidence, in hex.
        seconds: wall time of ``train`` (begin to last advert), ``aggregate`` and ``generate``.
    """

    round: int
    attempt: int
    state: Literal["completed", "aborted"]
    joined: int = 0
    masked: int = 0
    unmasked: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    max_abs_error: float | None = None
    bytes_up_per_client: int = 0
    bytes_down_per_client: int = 0
    llm_adapter_sha256: str = ""
    refinement: Mapping[str, Any] = field(default_factory=dict)
    aborted_at: str = ""
    included: tuple[str, ...] = ()
    sums: tuple[tuple[str, ...], ...] = ()
    opened: tuple[tuple[str, ...], ...] = ()
    cheated: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        lists = {name: [list(keys) for keys in getattr(self, name)] for name in ("sums", "opened")}
        return asdict(self) | {"included": list(self.included), **lists}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RoundRecord:
        """The record in `to_json`'s form; TypeError or KeyError on anything else."""
        lists = {name: tuple(tuple(keys) for keys in document.get(name, ())) for name in ("sums", "opened")}
        return cls(**(dict(document) | {"included": tuple(document["included"]), **lists}))


EventKind = Literal["round", "stage", "reply", "closed", "generated", "delivered", "end"]


@dataclass(frozen=True)
class NodeOutcome:
    """How one node stands in a stage.

    Attributes:
        node: Flower's id of it.
        organization: hex Ed25519 key of its advert in this attempt; empty without one.
        outcome: ``waiting``, ``answered``, ``silent`` (at the deadline), ``unusable``, or its refusal's code.
        bytes_up, bytes_down: payload from and to it in this attempt so far.
    """

    node: int
    organization: str
    outcome: str
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class RoundEvent:
    """Live progress.

    ``round`` opens one; ``stage`` opens a stage; ``reply`` says that one organization answered or was lost;
    ``closed`` ends the stage; ``generated`` follows the sum, ``end`` carries the record, ``delivered`` comes last.

    Attributes:
        joined: organizations that have answered this stage so far.
        expected: those asked.
        dropped: organizations lost in this round so far.
        seconds: since the stage began.
        attempt: of the round, where a stage is told.
        nodes: of a ``stage`` and ``closed`` event all that were asked,
            of a ``reply`` the one.
    """

    kind: EventKind
    round: int
    rounds: int
    stage: str = ""
    joined: int = 0
    expected: int = 0
    dropped: int = 0
    seconds: float = 0.0
    record: RoundRecord | None = None
    attempt: int = 0
    nodes: tuple[NodeOutcome, ...] = ()


OnEvent = Callable[[RoundEvent], None]
