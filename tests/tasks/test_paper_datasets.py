"""The paper's six data sets: prompts, training answers, references, and what is malformed; then real rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from gradtf_fl.tasks import PAPER_TASKS, FolderSource, load_task, split_public_private
from gradtf_fl.tasks.scoring import score_text
from gradtf_fl.tasks.sources import HubSource
from gradtf_fl.tasks.text_tasks import Example, MalformedRow
from tests.benchmark_data import DATA, needs_data

DOCUMENTS: dict[str, dict[str, Any]] = {
    "aqua_rat": {
        "question": "What is 2 + 3?",
        "options": ["A)4", "B)5", "C) 6", "D)$7", "E)None of these"],
        "rationale": "2 + 3 = 5\nSo it is 5.\n\nThe correct answer is B.\n",
        "correct": "B",
    },
    "gsm8k": {
        "question": "Four bags hold 300 nuts each. How many nuts?",
        "answer": "There are 4 x 300 = <<4*300=1200>>1200 nuts.\n#### 1,200",
    },
    "commonsense_qa": {
        "question": "Where does a fish swim?",
        "choices": {"label": ["A", "B", "C", "D", "E"], "text": ["sand", "sky", "water", "house", "tree"]},
        "answerKey": "C",
    },
    "drop": {
        "passage": "The Reds kicked two goals.",
        "question": "Who kicked goals?",
        "answers_spans": {"spans": ["Reds", "the Reds", " Reds ", "2"], "types": ["span", "span", "span", "number"]},
    },
    "samsum": {"dialogue": "Ann: Lunch?\nBen: At noon.", "summary": "Ann and Ben have\nlunch at noon."},
}
DOCUMENTS["dialogsum"] = DOCUMENTS["samsum"]


def converted(name: str, **changes: Any) -> Example:
    document = {key: value for key, value in (DOCUMENTS[name] | changes).items() if value is not None}
    return PAPER_TASKS[name].convert(document)


def test_the_six_are_there_under_their_hub_names() -> None:
    sources = {name: task.source for name, task in PAPER_TASKS.items()}
    assert {name: source.path for name, source in sources.items() if isinstance(source, HubSource)} == {
        "aqua_rat": "deepmind/aqua_rat",
        "gsm8k": "openai/gsm8k",
        "commonsense_qa": "tau/commonsense_qa",
        "drop": "ucinlp/drop",
        "samsum": "knkarthick/samsum",
        "dialogsum": "knkarthick/dialogsum",
    }
    tests = {name: dict(source.splits)["test"] for name, source in sources.items() if isinstance(source, HubSource)}
    assert [name for name, split in tests.items() if split == "validation"] == ["commonsense_qa", "drop"]


@pytest.mark.parametrize(
    ("name", "prompt_end", "answer", "references"),
    [
        (
            "aqua_rat",
            "Question: What is 2 + 3?\nOptions:\nA) 4\nB) 5\nC) 6\nD) $7\nE) None of these\nReasoning:\n",
            "2 + 3 = 5\nSo it is 5.\nFinal answer: B\n",
            ("B",),
        ),
        (
            "gsm8k",
            "Problem: Four bags hold 300 nuts each. How many nuts?\nReasoning:\n",
            "There are 4 x 300 = 1200 nuts.\nFinal answer: 1,200\n",
            ("1,200",),
        ),
        (
            "commonsense_qa",
            "Question: Where does a fish swim?\nOptions:\nA) sand\nB) sky\nC) water\nD) house\nE) tree\nAnswer:\n",
            "Final answer: C\n",
            ("C",),
        ),
        (
            "drop",
            "Passage: The Reds kicked two goals.\nQuestion: Who kicked goals?\nAnswer:\n",
            "Final answer: Reds\n",
            ("Reds", "the Reds", "2"),
        ),
        (
            "samsum",
            "\n\nAnn: Lunch?\nBen: At noon.\n\nSummary:\n",
            "Ann and Ben have lunch at noon.\n",
            ("Ann and Ben have lunch at noon.",),
        ),
    ],
)
def test_a_row_becomes_prompt_answer_and_references(
    name: str, prompt_end: str, answer: str, references: tuple[str, ...]
) -> None:
    example = converted(name)
    assert example.row.prompt.endswith(prompt_end)
    assert example.row.answer == answer
    assert example.references == references
    assert ("nd with a line 'Final answer: '" in example.row.prompt) == (name != "samsum")


@pytest.mark.parametrize("name", list(PAPER_TASKS))
def test_the_training_answer_scores_full_marks_and_stops_generation_at_its_end(name: str) -> None:
    task, example = PAPER_TASKS[name], converted(name)
    assert score_text(task, example.row.answer, example.references) == 1.0
    assert task.finished(example.row.answer)
    assert not task.finished(example.row.answer[:-1])


@pytest.mark.parametrize(
    ("name", "text", "score"),
    [
        ("aqua_rat", "It is 5.\nFinal answer: (b) 5", 1.0),
        ("aqua_rat", "Final answer: 5", 0.0),  # the letter is asked for
        ("aqua_rat", "B", None),
        ("gsm8k", "Final answer: $1200.", 1.0),
        ("gsm8k", "1200", None),
        ("gsm8k", "Final answer: 120", 0.0),
        ("commonsense_qa", "Final answer: C) water", 1.0),
        ("commonsense_qa", "Final answer: D", 0.0),
        ("drop", "Final answer: THE REDS", 1.0),
        ("drop", "Final answer: 2", 1.0),
        ("drop", "Final answer: the Blues", 0.0),
        # 4 of 4 words right, of 7: precision 1, recall 4/7, F 8/11
        ("samsum", "Ann and Ben have.\nMore text that does not count", 8 / 11),
        ("dialogsum", "", None),
    ],
)
def test_generated_texts_are_scored(name: str, text: str, score: float | None) -> None:
    got = score_text(PAPER_TASKS[name], text, converted(name).references)
    assert got == (None if score is None else pytest.approx(score))


def test_rouge_stems_words() -> None:
    assert score_text(PAPER_TASKS["samsum"], "walking", ("walked",)) == 1.0


@pytest.mark.parametrize("closing", ["Answer: B", "ANSWER:B", "B", "(B)", "Option B", "So the answer is B.", ""])
def test_a_rationales_own_closing_line_is_not_taught_twice(closing: str) -> None:
    assert converted("aqua_rat", rationale=f"2 + 3 = 5\n{closing}").row.answer == "2 + 3 = 5\nFinal answer: B\n"


@pytest.mark.parametrize("line", ["Answer: 5", "A train goes", "Let b", "2b = a", "B is larger"])
def test_a_rationales_other_lines_stay(line: str) -> None:
    assert converted("aqua_rat", rationale=f"x\n{line}").row.answer == f"x\n{line}\nFinal answer: B\n"


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("aqua_rat", {"options": ["4", "5"]}, "such as 'A)150'"),
        ("aqua_rat", {"options": ["A)4", "A)5"]}, "such as 'A)150'"),
        ("aqua_rat", {"options": []}, "such as 'A)150'"),
        ("aqua_rat", {"options": "A)4"}, "'options' is not a list of texts"),
        ("aqua_rat", {"options": ["A)4"]}, "'correct' is not the letter of an option"),
        ("aqua_rat", {"rationale": None}, "has no 'rationale'"),
        ("gsm8k", {"answer": "It is 5."}, "does not end with '#### ' and a number"),
        ("gsm8k", {"answer": "#### many"}, "does not end with '#### ' and a number"),
        ("gsm8k", {"question": 5}, "'question' is not text"),
        ("commonsense_qa", {"choices": ["A"]}, "'choices' is not an object"),
        ("commonsense_qa", {"choices": {"label": ["A", "B"], "text": ["x"]}}, "one text for each label"),
        ("commonsense_qa", {"choices": {"label": ["C"], "text": ["x", "y"]}}, "one text for each label"),
        ("commonsense_qa", {"choices": {"label": ["A"]}}, "has no 'choices.text'"),
        ("commonsense_qa", {"answerKey": ""}, "'answerKey' is empty"),  # the hub's test split
        ("commonsense_qa", {"answerKey": "F"}, "'answerKey' is not the letter of an option"),
        ("drop", {"answers_spans": {"spans": [" "]}}, "holds no answer"),
        ("drop", {"answers_spans": {"spans": "Reds"}}, "'answers_spans.spans' is not a list of texts"),
        ("drop", {"answers_spans": None}, "'answers_spans' is not an object"),
        ("samsum", {"summary": "Привет"}, "no word that ROUGE reads"),
        ("dialogsum", {"dialogue": ""}, "'dialogue' is empty"),
    ],
)
def test_a_malformed_row_says_why(name: str, changes: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(MalformedRow) as caught:
        converted(name, **changes)
    assert reason in str(caught.value)


def test_groups_hold_what_may_not_be_on_both_sides() -> None:
    assert converted("drop", question="Another?").group == converted("drop").group
    assert converted("dialogsum", summary="Another.").group == converted("dialogsum").group
    assert converted("gsm8k", question="Another?").group != converted("gsm8k").group


ROWS = {"aqua_rat": (1139, 254), "gsm8k": (6473, 800), "commonsense_qa": (8000, 800), "drop": (4000, 400)}
ROWS |= {"dialogsum": (8000, 798), "samsum": (8000, 798)}


@needs_data
@pytest.mark.parametrize("name", list(PAPER_TASKS))
def test_every_real_row_is_read_and_its_own_answer_scores_full_marks(name: str) -> None:
    task = PAPER_TASKS[name]
    folder = FolderSource(DATA / ("dialogsum" if name == "samsum" else name))
    train, test = load_task(task, "train", folder), load_task(task, "test", folder)
    assert (len(train.rows), len(test.rows)) == ROWS[name]
    assert train.skipped + test.skipped == 0
    for example in train.examples[:1000] + test.examples:
        assert score_text(task, example.row.answer, example.references) == 1.0
        assert task.finished(example.row.answer)
        assert not task.finished(example.row.answer[:-1])


@needs_data
def test_real_dialogsum_has_three_references_for_each_test_dialogue() -> None:
    test = load_task(PAPER_TASKS["dialogsum"], "test", FolderSource(DATA / "dialogsum"))
    prompts = [row.prompt for row in test.rows]
    assert {prompts.count(prompt) for prompt in prompts} == {3}


@needs_data
def test_real_drop_passages_stay_on_one_side() -> None:
    train = load_task(PAPER_TASKS["drop"], "train", FolderSource(DATA / "drop"))
    public, private = split_public_private(train.examples, seed=3)

    def passages(examples: list[Example]) -> set[str]:
        return {e.row.prompt.partition("Passage: ")[2].rpartition("\nQuestion: ")[0] for e in examples}

    assert not passages(public) & passages(private)
    assert abs(len(public) - len(private)) < 60
