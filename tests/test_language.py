"""Plain English: phrases that read as translated are in no message, help text or docstring."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("gradtf_fl", "strategies", "clients")
NOT_YET = ("gradtf_fl/adapters", "clients/adapters")
"""Rooms whose texts are still to be worded."""
FOREIGN = (
    r"\b(?:is|are) wanted\b",
    r"(?<!\w)(?:is|are) no (?:file|text|number|folder|object|whole number|JSON|LoRA|matrix|host|measure|row of)\b",
    r"\bthere is no such\b",
    r"\bwhere there is none\b",
    r"\bis there already\b",
    r"\banew\b",
    r"\bbeside\b",
    r"\bso many (?!that\b|as\b|colluding)",
    r"\bgo(?:es)? on (?:with|from|after|under|until|where)\b",
    r"\bmake sure that this\b",
    r"\bdoes not tell (?!\w+ apart|two)",
    r"\bof another run\b \(",
    # before the language pass of messages
    r"the invitation has another one",
    r"float32 values without gaps",
    r"in so many groups",
    r"PRV \(Opacus\) works",
)


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Every string literal of a module, docstrings included, as one line each."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING:
            yield token.start[0], " ".join(token.string.split())


def foreign(source: str) -> list[str]:
    return [
        f"line {line}: {found[0]}: ...{text[max(0, found.start() - 40) : found.end() + 40]}..."
        for line, text in texts(source)
        for phrase in FOREIGN
        if (found := re.search(phrase, text))
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_no_foreign_phrase_is_left(room: str) -> None:
    paths = [path.relative_to(REPOSITORY) for path in sorted((REPOSITORY / room).rglob("*.py"))]
    worded = [path for path in paths if not any(path.is_relative_to(other) for other in NOT_YET)]
    found = {str(path): foreign((REPOSITORY / path).read_text(encoding="utf8")) for path in worded}
    assert {path: problems for path, problems in found.items() if problems} == {}


@pytest.mark.parametrize(
    "text",
    [
        '"at least 3 are wanted"',
        '"a score is no number"',
        '"""None where there\n    is none."""',
        '"start anew"',
        '"kept beside it"',
        '"so many rows"',
        '"it goes on from the last checkpoint"',
    ],
)
def test_a_foreign_phrase_is_found(text: str) -> None:
    assert foreign(f"x = {text}\n")


@pytest.mark.parametrize("text", ['"besides its name"', '"so many that none fit"', '"wanted"', "# beside a comment\n1"])
def test_common_english_is_not_one(text: str) -> None:
    assert foreign(f"x = {text}\n") == []
