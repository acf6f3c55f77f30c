"""What people are told about a server's folder, in words without a layout: for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gradtf_fl.deployment import NOT_KNOWN, NodeStatus, OrganizationView, ServerView, identifiability_in_words
from gradtf_fl.round_messages import STAGES

Tone = Literal["", "good", "warn", "bad", "soft", "strong"]

STATE_TONES: Mapping[str, Tone] = {
    "running": "good",
    "completed": "good",
    "idle": "strong",
    "not started": "strong",
    "stopped": "warn",
}
STAGE_WORDS = {
    "connect": "waiting for organizations to connect",
    "advertise": "train and advertise",
    "generate": "generating the LLM adapter",
    "deliver": "delivering the LLM adapter",
}
LOST_WORDS = {"silent": "no answer", "unusable": "bad answer"}
STATE_WORDS = {
    "died": "the server ended in mid-run; start it again with --resume, it continues from the last checkpoint",
    "aborted": "too few organizations stayed in the round",
    "rejected": "the sum was none that honest organizations can give",
    "failed": "the server ended with an error; see its log",
    "stopped": "the server was stopped; start it again with --resume, it continues from the last checkpoint",
    "not started": "no round has begun",
    "idle": "no server runs here now",
}


@dataclass(frozen=True)
class Said:
    """Words, and how they are meant."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class StageWords:
    """The stage under way.

    Attributes:
        where: ``round 2 of 3: ``.
        name: of the stage.
        rest: how many answered, how long it has lasted and may last.
        lost: organizations lost in this attempt; empty without any.
        answered: organizations; 0 where nobody is asked.
        expected: organizations, in the same way.
        seconds: since it began.
        limit: seconds after which it ends at the latest; 0 without a limit.
    """

    where: str
    name: str
    rest: str
    lost: str
    answered: int
    expected: int
    seconds: float
    limit: float

    @property
    def left(self) -> str:
        """How long the server still waits at most; empty without a limit."""
        return f"at most {duration(max(0.0, self.limit - self.seconds))} left" if self.limit else ""


@dataclass(frozen=True)
class OrganizationWords:
    """One organization's line. ``troubled``: something is wrong with it."""

    name: str
    key: str
    in_last_sum: Said
    missed: Said
    sent: str
    got: str
    now: Said
    troubled: bool


@dataclass(frozen=True)
class ServerWords:
    """All that is told.

    Attributes:
        state: one word. advice: what it means, and what to do; empty where there is nothing to add.
        rounds: ``2 of 3 rounds done``. written: how old the status is; None without one.
        exchanges: stage, how many answered and how long it took, for each finished one of the attempt in ``round``.
        facts: name and value.
        problems: files that could not be read.
    """

    state: Said
    advice: str
    rounds: str
    written: Said | None
    stage: StageWords | None
    round: int
    exchanges: tuple[tuple[str, str, str], ...]
    organizations: tuple[OrganizationWords, ...]
    facts: tuple[tuple[str, Said], ...]
    problems: tuple[str, ...]
    not_known: str = NOT_KNOWN


def server_words(view: ServerView) -> ServerWords:
    """The view in words: nothing that is not in it, and nothing private is."""
    status, state = view.status, view.state
    of = f" of {status.plan.rounds}" if status is not None else ""
    error = f" ({status.error})" if status is not None and status.error and state != "stopped" else ""
    age = view.age
    return ServerWords(
        state=Said(state, STATE_TONES.get(state, "bad")),
        advice=f"{STATE_WORDS[state]}{error}" if state in STATE_WORDS else "",
        rounds=f"{len(view.completed)}{of} rounds done",
        written=None if age is None else Said(f"status written {duration(age)} ago", "soft" if view.alive else "warn"),
        stage=_stage(view),
        round=0 if status is None else status.round,
        exchanges=tuple(
            (one.stage, f"{one.answered} of {one.expected}", duration(one.seconds))
            for one in (() if status is None else status.exchanges)
        ),
        organizations=tuple(_organization(view, one) for one in view.organizations),
        facts=tuple(_facts(view)),
        problems=view.problems,
    )


def _stage(view: ServerView) -> StageWords | None:
    status = view.status
    if status is None or not status.round or not status.stage:
        return None
    attempt = f", attempt {status.attempt + 1}" if status.attempt else ""
    seconds, plan, lost, limit = view.stage_seconds or 0.0, status.plan, "", 0.0
    rest = f", {duration(seconds)}"
    answered, expected = 0, 0
    if status.stage in STAGES:
        answered, expected, limit = status.answered, status.expected, plan.deadline_s
        rest = f", {answered} of {expected} answered, {duration(seconds)} of at most {duration(limit)}"
        lost = f", {status.dropped} lost" if status.dropped else ""
    elif status.stage == "connect":
        limit = plan.join_s
        rest += f" of at most {duration(limit)} for {plan.organizations}"
    return StageWords(
        where=f"round {status.round} of {plan.rounds}{attempt}: ",
        name=STAGE_WORDS.get(status.stage, status.stage),
        rest=rest,
        lost=lost,
        answered=answered,
        expected=expected,
        seconds=seconds,
        limit=limit if view.alive else 0.0,
    )


def _organization(view: ServerView, organization: OrganizationView) -> OrganizationWords:
    included = {None: Said("-"), True: Said("yes", "good"), False: Said("no", "bad")}
    now = organization.now
    last = now if now is not None and now.stage else organization.traffic[-1] if organization.traffic else None
    done, missed = len(view.completed), organization.missed
    return OrganizationWords(
        name=organization.name or ("-" if organization.key else organization.label),
        key=organization.key[: 8 if organization.name else 16] or "unknown",
        in_last_sum=included[organization.in_last_sum],
        missed=Said(f"{missed} of {done}" if done else "-", "bad" if missed else ""),
        sent="-" if last is None else size(last.bytes_up),
        got="-" if last is None else size(last.bytes_down),
        now=_now(view, now),
        troubled=organization.in_last_sum is False or now is None or now.outcome != "answered",
    )


def _now(view: ServerView, node: NodeStatus | None) -> Said:
    """How it stands in the round under way, or how the last one left it."""
    status = view.status
    if status is None or node is None:
        return Said("not seen yet", "warn")
    before = f"; refused round {node.refused_in} ({node.refusal})" if node.refusal else ""
    if node.refusal and node.outcome == node.refusal and node.refused_in == status.round:
        return Said(f"refuses: {node.refusal}", "bad")
    if not node.stage:
        where = "" if status.stage == "connect" or not status.stage else "not connected"
        return Said((where + before).removeprefix("; "), "warn")
    if node.outcome == "answered":
        return Said(f"answered {node.stage}{before}", "good")
    if node.outcome == "waiting":
        return Said((f"waiting for {node.stage}" if view.alive else f"{node.stage} unanswered") + before)
    return Said(f"lost at {node.stage}: {LOST_WORDS.get(node.outcome, node.outcome)}{before}", "bad")


def _facts(view: ServerView) -> list[tuple[str, Said]]:
    status = view.status
    last: Mapping[str, Any] | None = view.completed[-1] if view.completed else None
    refusals = ", ".join(f"{code} {count}" for code, count in sorted(view.refused.items())) or "none"
    adapter = f"{last['llm_adapter_sha256']} (round {last['round']})" if last is not None else "none yet"
    facts = [("refusals, all rounds", Said(refusals)), ("last adapter, SHA-256", Said(adapter))]
    if status is not None and status.stored is not None:
        stored = f"by {status.stored} of {status.asked} organizations (round {status.delivered})"
        facts.append(("last adapter stored", Said(stored)))
    names = {organization.key: organization.name for organization in view.organizations}
    if sums := identifiability_in_words(view.records, names):
        facts.append(("sums opened", Said(sums)))
    if cheats := {key for record in view.records for key in record.get("cheated", ())}:
        facts.append(("cheated", Said(", ".join(sorted(names.get(key) or key[:8] for key in cheats)), "bad")))
    if status is not None:
        plan = status.plan
        spends = f"{plan.epsilon:g} at delta {plan.delta:g} for each organization, all {plan.rounds} rounds"
        facts.append(("epsilon of the plan", Said(spends)))
    if view.run_id:
        facts.append(("run", Said(view.run_id)))
    return facts


def size(count: int) -> str:
    """``812 B``, ``2.7 kB``, ``31 MB`` (decimal units)."""
    if count < 1000:
        return f"{count} B"
    number, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.1f} {unit}" if number < 9.95 else f"{number:.0f} {unit}"


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 4 min``, ``3 d 4 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, small, lesser in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {lesser}" if rest else "")
    return f"{whole} s"
