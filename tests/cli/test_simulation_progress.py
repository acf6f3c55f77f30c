"""Progress of a simulation: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gradtf_fl.flower import RoundEvent
from gradtf_fl.reports.simulation_progress import STAGE_LINE_EVERY_S, SimulationEvent, SimulationProgress, time_left
from gradtf_fl.simulation.run_clock import FIGURES_SHARE, LEAST_MEASURED_S, TimeLeft

EVENT = SimulationEvent("mask", 3, 9, round=1, rounds=3, joined=4, expected=5, dropped=1, epsilon=0.5, seconds=2.0)


class Clock:
    """Seconds as a test sets them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("gradtf_fl.reports.progress.time.monotonic", made)
    return made


def test_progress_is_plain_lines_without_a_terminal() -> None:
    text = io.StringIO()
    with SimulationProgress(Console(file=text)) as progress:
        progress.show(SimulationEvent("waiting", round=1, passing=True))
        progress.show(EVENT)
    (line,) = text.getvalue().splitlines()
    assert line.endswith("round 1/3 mask: 4 of 5 joined, 1 dropped, epsilon spent 0.500, 2.0 s")
    assert "\x1b" not in line


def test_a_thousand_replies_make_a_line_every_few_seconds(clock: Clock) -> None:
    text = io.StringIO()
    with SimulationProgress(Console(file=text, width=200)) as progress:
        for answered in range(1, 1001):
            clock.now += STAGE_LINE_EVERY_S / 256  # exact in binary
            told = SimulationEvent(
                "train", 0, 9, 1, 3, answered, 1000, answered=answered, passing=answered < 1000, left_s=300.0
            )
            progress.show(told)
        progress.show(SimulationEvent("completed", 1, 9, 3, 3, joined=1000, dropped=0, epsilon=1.0))
        progress.show(SimulationEvent("evaluate TinyLM", 2, 9))
    assert [line.split("] ")[1] for line in text.getvalue().splitlines()] == [
        "round 1/3 train: 1 of 1,000 answered, about 5 min left",
        "round 1/3 train: 257 of 1,000 answered, about 5 min left",
        "round 1/3 train: 513 of 1,000 answered, about 5 min left",
        "round 1/3 train: 769 of 1,000 answered, about 5 min left",
        "round 3/3 completed: 1,000 joined, 0 dropped, epsilon spent 1.000",
        "evaluate TinyLM",
    ]


@pytest.mark.parametrize(
    ("event", "wanted"),
    [
        (EVENT, ("round 1/3 mask", "epsilon spent 0.500", "3/9")),
        (
            SimulationEvent("train", 3, 9, 1, 3, 310, 1000, answered=312, passing=True, left_s=250.0),
            ("round 1/3 train", "312/1000", "about 4 min left"),
        ),
    ],
    ids=["a stage", "training"],
)
def test_progress_is_a_bar_on_a_terminal(event: SimulationEvent, wanted: tuple[str, ...]) -> None:
    text = io.StringIO()
    with SimulationProgress(Console(file=text, force_terminal=True, width=100)) as progress:
        progress.show(event)
        progress._screen.refresh()
    assert all(word in text.getvalue() for word in wanted)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (2.0, "under 1 min left"),
        (80.0, "about 1 min left"),
        (569.0, "about 9 min left"),
        (1300.0, "about 20 min left"),
        (5400.0, "about 1.5 h left"),
    ],
)
def test_the_time_left_is_no_more_exact_than_it_can_be(seconds: float | None, words: str) -> None:
    assert time_left(seconds) == words


def train(left: TimeLeft, clock: Clock, number: int, organizations: int, each: float) -> None:
    """One round's training."""
    left.note(RoundEvent("round", number, 3))
    left.note(RoundEvent("stage", number, 3, "advertise", expected=organizations))
    for _ in range(organizations):
        clock.now += each
        left.note(RoundEvent("reply", number, 3, "advertise", expected=organizations))


def test_the_time_left_follows_from_the_seconds_of_an_organization_and_of_a_round() -> None:
    clock = Clock()
    left = TimeLeft(organizations=4, rounds=3, now=clock)
    assert left.seconds() is None
    left.note(RoundEvent("round", 1, 3))
    left.note(RoundEvent("stage", 1, 3, "advertise", expected=4))
    clock.now += LEAST_MEASURED_S - 1
    left.note(RoundEvent("reply", 1, 3, "advertise", expected=4))
    assert left.seconds() is None  # the first seconds
    clock.now = 110.0
    left.note(RoundEvent("reply", 1, 3, "advertise", expected=4))
    # 5 s each: 2 more in this round, 8 in two more, and the figures of 12 trainings
    assert left.seconds() == pytest.approx(10 + 40 + FIGURES_SHARE * 60)
    clock.now = 120.0
    left.note(RoundEvent("reply", 1, 3, "advertise", expected=4))
    left.note(RoundEvent("reply", 1, 3, "advertise", expected=4))
    left.note(RoundEvent("closed", 1, 3, "advertise", expected=4))
    clock.now = 123.0
    left.note(RoundEvent("end", 1, 3))
    # 5 s each, 3 s for the rest of a round
    assert left.seconds() == pytest.approx(2 * (20 + 3) + FIGURES_SHARE * 60)
    for number in (2, 3):
        train(left, clock, number, 4, 5.0)
        left.note(RoundEvent("closed", number, 3, "advertise", expected=4))
        clock.now += 3
        left.note(RoundEvent("end", number, 3))
    left.figures_begin()
    clock.now += 6
    assert left.seconds() == pytest.approx(FIGURES_SHARE * 60 - 6)
    clock.now += 1000
    assert left.seconds() is None  # it was wrong


def test_a_continued_run_has_its_own_rounds_left() -> None:
    clock = Clock()
    left = TimeLeft(organizations=4, rounds=1, now=clock)
    train(left, clock, 3, 2, 5.0)
    assert left.seconds() == pytest.approx(10 + FIGURES_SHARE * 20)
