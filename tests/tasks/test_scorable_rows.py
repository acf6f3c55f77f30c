"""Rows on which a model can't be scored are counted and refused: nothing is 1.0 for nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtf_fl.adapters import load_model, load_tokenizer
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import IGNORED, Row, RowCounts, count_encoded, encode_rows, exact_match, refuse_unscored

GOOD = Row("[_][_][_]37?58=", "13")
TOKENIZER = load_tokenizer("embedded:tiny")
REASON = "rows have no token that is scored, for example row"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([Row("", str(digit)) for digit in range(10)], f"10 of 10 {REASON} 1:"),
        ([Row("Name the capital of France: ", "Paris")], f"1 of 1 {REASON} 1:"),
        ([GOOD, Row("12=", "yes"), GOOD, Row("", "4")], f"2 of 4 {REASON} 2:"),
    ],
)
def test_rows_without_a_scored_token_have_no_score(rows: list[Row], said: str) -> None:
    model, tokenizer = load_model("embedded:tiny")
    with pytest.raises(ConfigError) as caught:
        exact_match(model, encode_rows(rows, tokenizer))
    assert said in str(caught.value)


def test_an_empty_prompt_is_scored_from_the_second_token_on() -> None:
    rows = encode_rows([Row("", "13")], TOKENIZER)
    refuse_unscored(rows, "rows")
    assert int((rows.labels[:, 1:] != IGNORED).sum()) == 1


def test_what_is_cut_empty_unscorable_and_twice_is_counted() -> None:
    rows = [GOOD, Row("", "13"), Row("1" * 20, "2"), Row("1" * 19, "2"), Row("", "7"), Row("Paris", "Lyon"), GOOD]
    counts = RowCounts(rows=7, cut=1, cut_answers=0, empty=3, unscorable=2, duplicate=1)
    assert count_encoded(rows, TOKENIZER, 20) == counts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.builds(Row, st.text("12x", max_size=4), st.text("34y", min_size=1, max_size=4)), min_size=1))
def test_the_count_and_the_refusal_agree(rows: list[Row]) -> None:
    counted, encoded = count_encoded(rows, TOKENIZER).unscorable, encode_rows(rows, TOKENIZER)
    if counted:
        with pytest.raises(ConfigError, match=f"^rows: {counted} of {len(rows)} rows"):
            refuse_unscored(encoded, "rows")
    else:
        refuse_unscored(encoded, "rows")
