"""`gradtf server status` for people: where the run stands, who is in it, and what the server does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradtf_fl.deployment import ServerView
from gradtf_fl.reports.status_words import OrganizationWords, Said, ServerWords, Tone, server_words
from gradtf_fl.shown import shown

STYLES: Mapping[Tone, str] = {
    "": "",
    "good": "green",
    "warn": "yellow",
    "bad": "red",
    "soft": "dim",
    "strong": "",
}


def status_report(view: ServerView, most: int | None = None) -> RenderableType:
    """The whole view; with ``most``, no more organizations than that, those first that something is wrong with."""
    words = server_words(view)
    parts: list[RenderableType] = [_headline(words)]
    if words.stage is not None:
        stage = words.stage
        parts.append(Text.assemble(stage.where, (stage.name, "bold"), stage.rest, (stage.lost, "yellow")))
    parts += [Text(shown(problem), style="red") for problem in words.problems]
    if words.exchanges:
        parts += [Text(f"\nExchanges of round {words.round}", style="bold"), _exchanges(words)]
    parts += [
        Text("\nOrganizations", style="bold"),
        _organizations(words.organizations, most),
        Text(),
        _facts(words),
        Text(),
        Text(words.not_known, style="dim"),
    ]
    return Group(*parts)


def _headline(words: ServerWords) -> Text:
    text = Text.assemble((words.state.text, f"bold {STYLES[words.state.tone]}".strip()))
    text.append(f"   {words.rounds}")
    if words.written is not None:
        text.append(f"   {words.written.text}", style=STYLES[words.written.tone])
    if words.advice:
        text.append(f"\n{words.advice}")
    return text


def _exchanges(words: ServerWords) -> Table:
    """The finished exchanges of the attempt, in their order."""
    table = _table()
    table.add_column("")
    for stage, _, _ in words.exchanges:
        table.add_column(stage, justify="right", no_wrap=True)
    table.add_row("answered", *(answered for _, answered, _ in words.exchanges))
    table.add_row("took", *(took for _, _, took in words.exchanges))
    return table


def _organizations(organizations: Sequence[OrganizationWords], most: int | None) -> Table:
    chosen = organizations
    if most is not None and len(chosen) > most:
        chosen = sorted(chosen, key=lambda organization: not organization.troubled)[:most]
    table = _table()
    left = len(organizations) - len(chosen)
    more = f"and {left} more, in no worse state; --once shows all\n" if left else ""
    table.caption = more + "sent, got: payload from and to it, in the last attempt that asked it"
    table.caption_justify = "left"
    table.add_column("organization", overflow="fold")
    table.add_column("key", no_wrap=True)
    for heading in ("in last\nsum", "rounds\nmissed", "sent", "got"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("now", overflow="fold", min_width=16)
    for one in chosen:
        table.add_row(
            Text(one.name), one.key, _text(one.in_last_sum), _text(one.missed), one.sent, one.got, _text(one.now)
        )
    return table


def _facts(words: ServerWords) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in words.facts:
        table.add_row(name, _text(value))
    return table


def _text(said: Said) -> Text:
    return Text(said.text, style=STYLES[said.tone])


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0), pad_edge=False)
