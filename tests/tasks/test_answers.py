"""Final answers: where they are found in a generated text, and what counts as equal to a reference."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtf_fl.tasks.answers import (
    AnswerKind,
    final_answer,
    first_line,
    has_first_line,
    matches,
    normal_text,
    only_number,
    option_letter,
    states_final_answer,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 and 3 are 5.\nFinal answer: 5\n", "5"),
        ("final ANSWER : 5", "5"),
        ("**Final answer:** 5", "5"),
        ("Final answer: 4\nNo.\nFinal answer: 5", "5"),
        ("so 2 + 3 = 5\n#### 5", "5"),
        ("The answer is easy.\nFinal answer: 5", "5"),  # a marked line wins over a loose phrase
        ("Final answer: 5\nThe answer is 6.", "5"),
        ("So the answer is 5.", "5."),
        ("Answer: (B)", "(B)"),
        (r"Hence \boxed{5}", "5"),
        ("I answered 5", None),
        ("Final answer:", None),
        ("Final answer:\n5", None),  # asked for on one line
        ("", None),
    ],
)
def test_the_final_answer_is_found(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("Thinking.\nFinal answer: 5\n", True),
        ("#### 5\n", True),
        ("Final answer: 5", False),  # more digits may follow
        ("Final answer:\n", False),
        ("**Final answer:**\n", False),
        ("The answer is in the passage.\n", False),  # reasoning goes on
    ],
)
def test_generation_stops_after_a_whole_final_line_only(text: str, stop: bool) -> None:
    assert states_final_answer(text) is stop


def test_one_line_answers() -> None:
    assert first_line("\n  A summary. \nMore") == "A summary."
    assert first_line(" \n") is None
    assert not has_first_line("\n\nA summary")
    assert has_first_line("\nA summary\n")


@pytest.mark.parametrize(
    "answer", ["B", "b", "(B)", "b)", "B.", "B) problems", "Option B", "b: because", "**B**", "B - x"]
)
def test_an_option_is_named_by_its_letter(answer: str) -> None:
    assert matches(answer, ("B",), "option")
    assert not matches(answer, ("A",), "option")


@pytest.mark.parametrize("answer", ["problems", "a cave", "B or C", "", "Because", "F", "I'd say so"])
def test_an_answer_without_one_letter_names_no_option(answer: str) -> None:
    assert option_letter(answer) is None


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("1,200", "1200"),
        ("$1,200.00 in all.", "1200"),
        (r"\$18", "18"),
        ("18.", "18"),
        ("18%", "18"),
        ("-5 degrees", "-5"),
        ("- 5", "-5"),
        ("−5", "-5"),
        (".50", "0.5"),
        ("5 + 6 = 11", "11"),
        ("x = $11", "11"),
        ("123456789012345678901234567890.5", "123456789012345678901234567890.5"),
    ],
)
def test_numbers_compare_by_value(answer: str, value: str) -> None:
    assert only_number(answer) == Decimal(value)
    assert matches(answer, (value,), "number")


@pytest.mark.parametrize("answer", ["5 or 6", "16-18", "18:30", "no number", "", "3 1/2"])
def test_anything_but_one_number_is_no_number(answer: str) -> None:
    assert only_number(answer) is None
    assert not matches(answer, ("5",), "number")


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("The Raiders.", "raiders", True),
        ('"Operation Millennium"', "Operation Millennium", True),
        ("49-yard", "49 yard", True),
        ("1,377", "1377", True),
        ("$ 5.0", "5", True),
        ("76.87%", "76.87", True),
        ("44 yards", "44", False),
        ("Arian Foster", "Foster", False),
        ("-5", "5", False),
        ("A", "a", True),
        ("A", "the", False),
        ("", "the", False),
    ],
)
def test_text_answers_compare_as_the_drop_evaluator_has_it(answer: str, reference: str, equal: bool) -> None:
    assert matches(answer, (reference,), "text") is equal
    assert matches(answer, ("something else", reference), "text") is equal


@given(st.text(max_size=40))
def test_normal_text_is_stable_and_any_text_equals_itself(text: str) -> None:
    once = normal_text(text)
    assert matches(text, (text,), "text")
    assert once == once.strip()
    assert "  " not in once


@given(st.integers(-(10**9), 10**9), st.sampled_from(["number", "text"]))
def test_any_integer_is_read_with_and_without_separators(value: int, kind: AnswerKind) -> None:
    assert matches(f"{value:,}", (str(value),), kind)
    assert not matches(f"{value:,}", (str(value + 1),), kind)
