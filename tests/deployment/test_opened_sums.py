"""What the server's records of rounds say about how identifiable each organization is."""

from __future__ import annotations

from typing import Any

import pytest

from gradtf_fl.deployment import identifiability_document, identifiability_in_words

A, B, C, D = (letter * 64 for letter in "abcd")


def record(*sums: tuple[str, ...], **values: Any) -> dict[str, Any]:
    return {"included": [], "sums": [], "opened": [list(keys) for keys in sums], **values}


@pytest.mark.parametrize(
    ("records", "rank", "identified"),
    [
        pytest.param([], 0, [], id="nothing opened"),
        pytest.param([record((A, B, C)), record((A, B, C))], 1, [], id="the same members twice"),
        pytest.param([record((A, B, C, D)), record((A, B, C), state="aborted")], 2, [D], id="a rejected sum counts"),
        pytest.param([record((A, B), (C, D)), record((A, B, C, D))], 2, [], id="groups, and then all"),
        pytest.param(
            [{"included": [A, B, C]}, {"included": [A, B], "sums": [[A], [B]]}], 3, [A, B, C], id="older records"
        ),
    ],
)
def test_what_records_give_away(records: list[dict[str, Any]], rank: int, identified: list[str]) -> None:
    document = identifiability_document(records)
    assert (document["rank"], document["identified"]) == (rank, identified)
    words = identifiability_in_words(records, {D: "org-4"})
    if not rank:
        assert (words, document["organizations"]) == ("", 0)
    elif identified:
        assert ("org-4" if identified == [D] else "aaaaaaaa") in words
    else:
        assert "no update follows from them" in words
