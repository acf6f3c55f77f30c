"""What a server's folder says about its run, whether the server is up or not: for `gradtf server status` and health.

DIR/status.json        where the run stands (`RunStatus`); absent before the first round
DIR/federation.json    every finished attempt: the authority on rounds, sums and refusals
DIR/events.jsonl       message bytes of each organization in each attempt
DIR/roster.txt, DIR/enrolments/*.json    the organizations' keys, and their names
DIR/.lock              held by the process that runs the rounds
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradtf_fl.deployment.opened_sums import identifiability_document
from gradtf_fl.deployment.run_status import NodeStatus, RunStatus
from gradtf_fl.deployment.server_files import (
    Traffic,
    holds_lock,
    read_enrolled,
    read_federation,
    read_roster,
    read_traffic,
)
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.file_names import ROSTER

LATE = 2.0  # a stage that lasts this many deadlines hangs

NOT_KNOWN = (
    "Not known here: any organization's accuracy, number of rows or remaining privacy budget, and any single update: "
    "they stay with the organizations. The server learns sums, keys, message sizes, times and refusal codes. Epsilon "
    "is what the plan may spend in all its rounds; what was spent stands in each organization's own ledger."
)


@dataclass(frozen=True)
class OrganizationView:
    """One organization, or one node that never showed a key.

    Attributes:
        key: hex Ed25519; empty for such a node.
        name, fingerprint: of its enrolment, else empty.
        in_last_sum: of the last completed round; None before the first.
        missed: completed rounds without it.
        now: how it stands in the round under way or last tried; None before its node was first asked.
        traffic: of each attempt in which it was asked.
    """

    key: str
    name: str = ""
    fingerprint: str = ""
    in_last_sum: bool | None = None
    missed: int = 0
    now: NodeStatus | None = None
    traffic: tuple[Traffic, ...] = ()

    @property
    def label(self) -> str:
        """What a person calls it."""
        return self.name or (f"key {self.key[:16]}" if self.key else f"node {self.now.node if self.now else '?'}")


@dataclass(frozen=True)
class ServerView:
    """All of it.

    Attributes:
        alive: whether a process runs the rounds now.
        age: seconds since the status was written.
        records: `RoundRecord`s of all finished attempts in JSON form.
        refused: code -> refusals in all of them.
        problems: files that could not be read.
    """

    folder: Path
    alive: bool
    status: RunStatus | None
    age: float | None
    run_id: str = ""
    records: tuple[Mapping[str, Any], ...] = ()
    organizations: tuple[OrganizationView, ...] = ()
    refused: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def completed(self) -> list[Mapping[str, Any]]:
        """Records of completed rounds."""
        return [record for record in self.records if record["state"] == "completed"]

    @property
    def state(self) -> str:
        """``not started``, ``running``, ``died`` (it was running), ``idle``, or how the run ended."""
        if self.alive:
            return "running"
        if self.status is None:
            return "idle" if self.records else "not started"
        return "died" if self.status.state == "running" else self.status.state

    @property
    def stage_seconds(self) -> float | None:
        """How long the current stage has lasted; until the last sign of life when the server is down."""
        if self.status is None or not self.status.stage:
            return None
        return max(0.0, (time.time() if self.alive else self.status.updated) - self.status.stage_started)

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        last = self.completed[-1] if self.completed else {}
        return {
            "folder": str(self.folder),
            "state": self.state,
            "alive": self.alive,
            "status_age_s": None if self.age is None else round(self.age, 1),
            "run_id": self.run_id,
            "rounds_done": len(self.completed),
            "stage_s": None if self.stage_seconds is None else round(self.stage_seconds, 1),
            "status": None if self.status is None else asdict(self.status),
            "organizations": [asdict(o) for o in self.organizations],
            "refused": dict(self.refused),
            "last_adapter": {"round": last["round"], "sha256": last["llm_adapter_sha256"]} if last else None,
            "rounds": [dict(record) for record in self.records],
            "identifiability": identifiability_document(self.records),
            "not_known": NOT_KNOWN,
            "problems": list(self.problems),
        }


def view_server(folder: Path) -> ServerView:
    """Look at a server's folder.

    Raises:
        ConfigError: no such folder, or no server's. A damaged file in it is one of the view's ``problems``.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    problems: list[str] = []
    status: RunStatus | None = None
    try:
        status = RunStatus.read(folder)
    except CorruptFile as error:
        problems += error.problems
    document = read_federation(folder, problems)
    roster = read_roster(folder, problems)
    if status is None and not document and not roster and not problems:
        raise ConfigError(f"{folder}: no server's folder: neither a run nor a {ROSTER} is in it")
    records = tuple(document.get("records", ()))
    refused: dict[str, int] = {}
    for record in records:
        for code, count in record.get("refused", {}).items():
            refused[code] = refused.get(code, 0) + int(count)
    return ServerView(
        folder=folder,
        alive=holds_lock(folder),
        status=status,
        age=None if status is None else max(0.0, time.time() - status.updated),
        run_id=str(document.get("run_id", "")),
        records=records,
        organizations=_organizations(folder, roster, records, status, problems),
        refused=refused,
        problems=tuple(problems),
    )


def health(view: ServerView) -> dict[str, Any]:
    """``{"status": "ok" | "degraded" | "failed", ...}`` for a `HealthServer`: numbers and states only.

    failed: the run died or ended without its last round. degraded: it runs, but an organization is missing from the
    last sum or was lost in this attempt, a stage hangs, or a file is damaged.
    """
    status, seconds = view.status, view.stage_seconds
    missing = sum(o.in_last_sum is False for o in view.organizations)
    limit = 0.0 if status is None else {"connect": status.plan.join_s}.get(status.stage, status.plan.deadline_s)
    hangs = view.alive and limit > 0 and seconds is not None and seconds > LATE * limit
    ended_badly = view.state in ("died", "aborted", "rejected", "failed")
    degraded = bool(missing or hangs or view.problems or (view.alive and status is not None and status.dropped))
    return {
        "status": "failed" if ended_badly else "degraded" if degraded else "ok",
        "state": view.state,
        "round": 0 if status is None else status.round,
        "rounds": None if status is None else status.plan.rounds,
        "rounds_done": len(view.completed),
        "stage": "" if status is None else status.stage,
        "stage_s": None if seconds is None else round(seconds, 1),
        "organizations_missing": missing,
        "status_age_s": None if view.age is None else round(view.age, 1),
    }


def _organizations(
    folder: Path,
    roster: list[str],
    records: tuple[Mapping[str, Any], ...],
    status: RunStatus | None,
    problems: list[str],
) -> tuple[OrganizationView, ...]:
    """Those of the roster, then any other key that was in a sum, then nodes without a key."""
    enrolled, sums = read_enrolled(folder, problems), [set(r["included"]) for r in records if r["state"] == "completed"]
    nodes = status.nodes if status is not None else ()
    by_key = {node.key: node for node in nodes if node.key}
    keys = dict.fromkeys([*(roster or enrolled), *(key for keys in sums for key in sorted(keys)), *by_key])
    traffic = read_traffic(folder)
    views = [
        OrganizationView(
            key=key,
            name=enrolled[key].name if key in enrolled else "",
            fingerprint=enrolled[key].fingerprint if key in enrolled else "",
            in_last_sum=key in sums[-1] if sums else None,
            missed=sum(key not in included for included in sums),
            now=by_key.get(key),
            traffic=tuple(traffic.get(key, ())),
        )
        for key in keys
    ]
    return (*views, *(OrganizationView("", now=node) for node in nodes if not node.key))
