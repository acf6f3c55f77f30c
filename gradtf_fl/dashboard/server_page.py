"""Page of a server's folder: what `gradtf server status` shows, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gradtf_fl.deployment import view_server
from gradtf_fl.reports import ServerWords, server_words
from gradtf_fl.round_messages import STAGES

STEPS = ("connect", *STAGES, "generate", "deliver")
MOST_SHOWN = 500
"""Organizations in the table; of more, those that something is wrong with come first."""


@dataclass(frozen=True)
class Step:
    """One step of a round. ``answered``, ``took``: of a finished exchange, else empty."""

    name: str
    state: Literal["done", "now", "ahead"]
    answered: str = ""
    took: str = ""


def server_context(folder: Path) -> Mapping[str, Any]:
    """Context of the page's parts; ConfigError when the folder is gone."""
    view = view_server(folder)
    words = server_words(view)
    shown = sorted(words.organizations, key=lambda one: not one.troubled)[:MOST_SHOWN]
    few = len(words.organizations) <= MOST_SHOWN
    stage = "" if view.status is None else view.status.stage
    return {
        "folder": folder,
        "words": words,
        "alive": view.alive,
        "steps": steps(words, stage),
        "organizations": words.organizations if few else shown,
        "left_out": len(words.organizations) - len(shown),
        "spoken": spoken(words),
    }


def steps(words: ServerWords, stage: str) -> tuple[Step, ...]:
    """The steps of the round under way or last tried; none before the first."""
    if not words.round:
        return ()
    finished = {name: (answered, took) for name, answered, took in words.exchanges}
    place = STEPS.index(stage) if stage in STEPS else len(STEPS)
    done = place < len(STEPS) or words.state.text == "completed" or bool(finished)
    found = []
    for number, name in enumerate(STEPS):
        state: Literal["done", "now", "ahead"] = "ahead"
        if number == place:
            state = "now"
        elif name in finished or (done and number < place and name not in STAGES):
            state = "done"
        found.append(Step(name, state, *finished.get(name, ("", ""))))
    return tuple(found)


def spoken(words: ServerWords) -> str:
    """What is worth to be read out when it changes."""
    if words.stage is None:
        return f"{words.state.text}, {words.rounds}"
    return f"{words.state.text}, {words.stage.where}{words.stage.name}{words.stage.lost}"
