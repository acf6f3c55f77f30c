"""The wire format is frozen: today's code writes the committed transcripts byte by byte."""

from __future__ import annotations

import json

import pytest

from .transcript import CASES, FILE, transcript

COMMITTED = json.loads(FILE.read_text())


@pytest.mark.parametrize("number", range(len(CASES)))
def test_transcripts_are_reproduced(number: int) -> None:
    made = transcript(**CASES[number])  # type: ignore[arg-type]
    assert made.keys() == COMMITTED[number].keys()
    for name, value in made.items():
        assert value == COMMITTED[number][name], name


def test_transcripts_cover_every_width() -> None:
    assert {case["bits"] for case in COMMITTED} == {16, 20, 24, 32}
