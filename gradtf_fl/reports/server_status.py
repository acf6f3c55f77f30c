"""`gradtf server status` for people: where the run stands, who is in it, and what the server does not know."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradtf_fl.deployment import (
    NOT_KNOWN,
    NodeStatus,
    OrganizationView,
    ServerView,
    identifiability_in_words,
)
from gradtf_fl.round_messages import STAGES
from gradtf_fl.shown import shown

STATE_STYLES = {
    "running": "bold green",
    "completed": "bold green",
    "idle": "bold",
    "not started": "bold",
    "stopped": "bold yellow",
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


def status_report(view: ServerView, most: int | None = None) -> RenderableType:
    """The whole view; with ``most``, no more organizations than that, those first that something is wrong with."""
    parts: list[RenderableType] = [_headline(view)]
    if (line := _stage_line(view)) is not None:
        parts.append(line)
    parts += [Text(shown(problem), style="red") for problem in view.problems]
    if view.status is not None and view.status.exchanges:
        parts += [Text(f"\nExchanges of round {view.status.round}", style="bold"), _exchanges(view)]
    parts += [
        Text("\nOrganizations", style="bold"),
        _organizations(view, most),
        Text(),
        _facts(view),
        Text(),
        Text(NOT_KNOWN, style="dim"),
    ]
    return Group(*parts)


def _headline(view: ServerView) -> Text:
    status, state = view.status, view.state
    text = Text.assemble((state, STATE_STYLES.get(state, "bold red")))
    of = f" of {status.plan.rounds}" if status is not None else ""
    text.append(f"   {len(view.completed)}{of} rounds done")
    if view.age is not None:
        text.append(f"   status written {duration(view.age)} ago", style="dim" if view.alive else "yellow")
    if state in STATE_WORDS:
        error = f" ({status.error})" if status is not None and status.error and state != "stopped" else ""
        text.append(f"\n{STATE_WORDS[state]}{error}")
    return text


def _stage_line(view: ServerView) -> Text | None:
    status = view.status
    if status is None or not status.round or not status.stage:
        return None
    attempt = f", attempt {status.attempt + 1}" if status.attempt else ""
    text = Text(f"round {status.round} of {status.plan.rounds}{attempt}: ")
    text.append(STAGE_WORDS.get(status.stage, status.stage), style="bold")
    seconds = view.stage_seconds or 0.0
    if status.stage in STAGES:
        text.append(f", {status.answered} of {status.expected} answered, {duration(seconds)}")
        text.append(f" of at most {duration(status.plan.deadline_s)}")
        if status.dropped:
            text.append(f", {status.dropped} lost", style="yellow")
    else:
        text.append(f", {duration(seconds)}")
        if status.stage == "connect":
            text.append(f" of at most {duration(status.plan.join_s)} for {status.plan.organizations}")
    return text


def _exchanges(view: ServerView) -> Table:
    """The finished exchanges of the attempt, in their order."""
    assert view.status is not None
    table = _table()
    table.add_column("")
    for exchange in view.status.exchanges:
        table.add_column(exchange.stage, justify="right", no_wrap=True)
    table.add_row("answered", *(f"{e.answered} of {e.expected}" for e in view.status.exchanges))
    table.add_row("took", *(duration(e.seconds) for e in view.status.exchanges))
    return table


def _organizations(view: ServerView, most: int | None) -> Table:
    shown = view.organizations
    if most is not None and len(shown) > most:
        shown = tuple(sorted(shown, key=lambda organization: not _troubled(organization)))[:most]
    table = _table()
    left = len(view.organizations) - len(shown)
    more = f"and {left} more, in no worse state; --once shows all\n" if left else ""
    table.caption = more + "sent, got: payload from and to it, in the last attempt that asked it"
    table.caption_justify = "left"
    table.add_column("organization", overflow="fold")
    table.add_column("key", no_wrap=True)
    for heading in ("in last\nsum", "rounds\nmissed", "sent", "got"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("now", overflow="fold", min_width=16)
    for organization in shown:
        table.add_row(*_row(view, organization))
    return table


def _troubled(organization: OrganizationView) -> bool:
    now = organization.now
    return organization.in_last_sum is False or now is None or now.outcome != "answered"


def _row(view: ServerView, organization: OrganizationView) -> list[RenderableType]:
    included = {None: Text("-"), True: Text("yes", style="green"), False: Text("no", style="red")}
    now = organization.now
    last = now if now is not None and now.stage else organization.traffic[-1] if organization.traffic else None
    sent, got = ("-", "-") if last is None else (size(last.bytes_up), size(last.bytes_down))
    done, missed = len(view.completed), organization.missed
    return [
        Text(organization.name or ("-" if organization.key else organization.label)),
        organization.key[: 8 if organization.name else 16] or "unknown",
        included[organization.in_last_sum],
        Text(f"{missed} of {done}" if done else "-", style="red" if missed else ""),
        sent,
        got,
        _now(view, now),
    ]


def _now(view: ServerView, node: NodeStatus | None) -> Text:
    """How it stands in the round under way, or how the last one left it."""
    status = view.status
    if status is None or node is None:
        return Text("not seen yet", style="yellow")
    before = f"; refused round {node.refused_in} ({node.refusal})" if node.refusal else ""
    if node.refusal and node.outcome == node.refusal and node.refused_in == status.round:
        return Text(f"refuses: {node.refusal}", style="red")
    if not node.stage:
        where = "" if status.stage == "connect" or not status.stage else "not connected"
        return Text((where + before).removeprefix("; "), style="yellow")
    if node.outcome == "answered":
        return Text(f"answered {node.stage}{before}", style="green")
    if node.outcome == "waiting":
        return Text((f"waiting for {node.stage}" if view.alive else f"{node.stage} unanswered") + before)
    return Text(f"lost at {node.stage}: {LOST_WORDS.get(node.outcome, node.outcome)}{before}", style="red")


def _facts(view: ServerView) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    plan = view.status.plan if view.status is not None else None
    last = view.completed[-1] if view.completed else None
    refusals = ", ".join(f"{code} {count}" for code, count in sorted(view.refused.items())) or "none"
    table.add_row("refusals, all rounds", refusals)
    adapter = f"{last['llm_adapter_sha256']} (round {last['round']})" if last is not None else "none yet"
    table.add_row("last adapter, SHA-256", adapter)
    if view.status is not None and view.status.stored is not None:
        stored = f"by {view.status.stored} of {view.status.asked} organizations (round {view.status.delivered})"
        table.add_row("last adapter stored", stored)
    names = {organization.key: organization.name for organization in view.organizations}
    if sums := identifiability_in_words(view.records, names):
        table.add_row("sums opened", sums)
    if cheats := {key for record in view.records for key in record.get("cheated", ())}:
        table.add_row("cheated", Text(", ".join(sorted(names.get(key) or key[:8] for key in cheats)), style="red"))
    if plan is not None:
        table.add_row(
            "epsilon of the plan",
            f"{plan.epsilon:g} at delta {plan.delta:g} for each organization, all {plan.rounds} rounds",
        )
    if view.run_id:
        table.add_row("run", view.run_id)
    return table


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0), pad_edge=False)


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
