"""Where a simulation stands: seconds of its stages so far, and how long the rest will take, from what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gradtf_fl.reports import SimulationEvent

if TYPE_CHECKING:
    from gradtf_fl.flower import RoundEvent

OnEvent = Callable[[SimulationEvent], None]

LEAST_MEASURED_S = 5.0
"""Seconds of a federation before which nothing is said about the rest."""
FIGURES_SHARE = 0.6
"""Seconds of the figures to those of all training at the organizations: the TinyLM is tuned alone as often as in the
federation, and everything is scored. Measured: .41, .66 and .80 in three runs of 3 to 5 organizations and 2 rounds."""


@dataclass
class TimeLeft:
    """How long a run still takes, from the seconds of an organization's training and of the rest of a round.

    Attributes:
        organizations: of the run.
        rounds: that are not finished yet.
        now: the clock, in seconds.
    """

    organizations: int
    rounds: int
    now: Callable[[], float] = time.monotonic
    _training_s: float = 0.0  # of all training that this process has seen
    _trained: int = 0  # organizations in that
    _rest_s: float | None = None  # of the last round, from its last advert to its end
    _began: float | None = None  # of the federation
    _stage_began: float = 0.0
    _answered: int = 0  # of the running training
    _training: bool = False
    _rest_began: float | None = None
    _figures_began: float | None = None

    def note(self, event: RoundEvent) -> None:
        """Take in one event of a round."""
        now = self.now()
        self._began = now if self._began is None else self._began
        if event.stage == "advertise" and event.kind == "stage":
            self._training, self._stage_began, self._answered, self._rest_began = True, now, 0, None
        elif event.stage == "advertise" and event.kind == "reply":
            self._answered += 1
        elif event.stage == "advertise" and event.kind == "closed":
            self._training_s += now - self._stage_began
            self._trained += self._answered
            self._training, self._rest_began = False, now
        elif event.kind == "end":
            self._rest_s = None if self._rest_began is None else now - self._rest_began
            self._rest_began = None
            self.rounds -= 1

    def figures_begin(self) -> None:
        """The rounds are over."""
        self._figures_began = self.now()

    def seconds(self) -> float | None:
        """An estimate; None before there is anything to estimate from, and when it was wrong."""
        now = self.now()
        running = now - self._stage_began if self._training else 0.0
        measured, trained = self._training_s + running, self._trained + (self._answered if self._training else 0)
        if self._began is None or not trained or now - self._began < LEAST_MEASURED_S:
            return None
        each = measured / trained
        if self._figures_began is not None:
            left = FIGURES_SHARE * measured - (now - self._figures_began)
            return left if left > 0 else None
        rest = self._rest_s or 0.0
        waiting = max(0, self.organizations - self._answered) if self._training else 0
        whole = self.rounds - (self._training or self._rest_began is not None)
        this = waiting * each + rest if self._training else 0.0
        if self._rest_began is not None:
            this = max(0.0, rest - (now - self._rest_began))
        ahead = whole * self.organizations * each + waiting * each
        return this + whole * (self.organizations * each + rest) + FIGURES_SHARE * (measured + ahead)


@dataclass
class RunClock:
    """Wall seconds of each stage of a run, told to ``on_event`` as they begin.

    Attributes:
        total: steps of the run, of which ``done`` are behind.
        left: how long the rest takes.
        seconds: by stage.
        replies: to the running stage of a round.
    """

    on_event: OnEvent
    total: int
    left: TimeLeft
    seconds: dict[str, float] = field(default_factory=dict)
    done: int = 0
    replies: int = 0
    _stage: str = ""
    _since: float = 0.0

    def enter(self, stage: str, out: str = "") -> None:
        """End the running stage, begin ``stage``; ``out``: the run's folder, from when on it can be continued."""
        self.leave()
        self._stage, self._since = stage, time.monotonic()
        self.on_event(SimulationEvent(stage, self.done, self.total, left_s=self.left.seconds(), out=out))

    def leave(self) -> None:
        """End the running stage."""
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + time.monotonic() - self._since
            self.done += 1
        self._stage = ""
