"""The running text of a page: without code, comments, tables and headings."""

from __future__ import annotations

import re

PHRASES = re.compile(
    r"\b(?:beside(?!s)|anew|(?<!there )is no (?!better|longer|more)|tells|goes on|(?:is|are) wanted|(?:by|with) which"
    r"|so many|where there is none)\b",
    re.IGNORECASE,
)
"""What reads as foreign; the plain words are: alongside, again, is not, says, continues, requires, this many."""


def prose(page: str) -> str:
    """A page without its fenced blocks and comments."""
    text = re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL)
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def sentences(page: str) -> list[str]:
    """Sentences and points of lists, in order; links as their words, without headings and tables."""
    lines = [line for line in prose(page).splitlines() if not line.startswith(("|", "#", "<"))]
    text = re.sub(r"\]\([^)]*\)", "]", "\n".join(lines))
    text = re.sub(r"^(?:[-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        joined = " ".join(paragraph.split())
        found += re.split(r"(?<=[.!?])[*_)]*\s+(?=[\"(`*\[A-Z0-9])", joined) if joined else []
    return found


def words(sentence: str) -> list[str]:
    """What has a letter or a digit in it."""
    return [word for word in sentence.split() if re.search(r"\w", word)]
