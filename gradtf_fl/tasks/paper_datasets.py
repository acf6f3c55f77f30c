"""The paper's six data sets (table 5, appendix A), by the field names that they have on the Hugging Face hub.

``test`` is each set's labelled evaluation split on the hub: the test split, but validation for CommonsenseQA (its
test split has no answers) and DROP (its test split is not public). A local folder's test file is used as it is.

DialogSum's test split has three reference summaries for each dialogue, each in a row of its own. They stay separate
rows: a dialogue is generated once, scored against each of its references, and the mean over rows is reported, which
is the mean over dialogues of the mean over references.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gradtf_fl.tasks.answers import (
    MARKER,
    final_answer,
    first_line,
    has_first_line,
    only_number,
    states_final_answer,
)
from gradtf_fl.tasks.reading import MalformedRow
from gradtf_fl.tasks.rouge import scoreable
from gradtf_fl.tasks.rows import Row
from gradtf_fl.tasks.sources import HubSource, Split
from gradtf_fl.tasks.text_tasks import Example, TextTask, one_line, same_text, text_field, text_list

_OPTION = re.compile(r"\(?([A-E])\s*[).:]\s*(.*)", re.DOTALL)
# A rationale's own last word on the matter ("Answer: E", "The answer is B.", "C"): the final answer line says it
_CLOSING = re.compile(r"\W*(?:.{0,25}\b(?:answer|ans|option|choice)\b[^\n]{0,15}?)?\(?\b[A-E]\b\)?\W*", re.IGNORECASE)
_CALCULATION = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator calls, e.g. <<28*4=112>>


def aqua_rat(document: Mapping[str, Any]) -> Example:
    """AQuA-RAT: question, five options ``A)150``, rationale, correct letter."""
    question = text_field(document, "question")
    options = [_OPTION.fullmatch(option.strip()) for option in text_list(document, "options")]
    listed = {found[1]: found[2].strip() for found in options if found}
    if not options or len(listed) < len(options):
        raise MalformedRow("'options' are not texts such as 'A)150' with a letter each")
    correct = _letter(text_field(document, "correct"), listed, "correct")
    lines = text_field(document, "rationale").splitlines()
    while lines and (not lines[-1].strip() or _CLOSING.fullmatch(lines[-1])):
        lines.pop()
    prompt = (
        "Answer the question with one of the options. Reason step by step and end with a line "
        f"'{MARKER} ' and the letter.\n\nQuestion: {question}\nOptions:\n{_options(listed)}\nReasoning:\n"
    )
    return Example(Row(prompt, "\n".join([*lines, _final(correct)])), (correct,), same_text(question))


def gsm8k(document: Mapping[str, Any]) -> Example:
    """GSM8K: question, and an answer that ends with ``#### N``. Its calculator calls ``<<...>>`` are taken out."""
    question = text_field(document, "question")
    reasoning, marker, number = text_field(document, "answer").rpartition("####")
    if not marker or only_number(number) is None:
        raise MalformedRow("'answer' does not end with '#### ' and a number")
    number = number.strip()
    reasoning = _CALCULATION.sub("", reasoning).strip()
    prompt = (
        f"Solve the problem. Reason step by step and end with a line '{MARKER} ' and the number.\n\n"
        f"Problem: {question}\nReasoning:\n"
    )
    answer = "\n".join([part for part in (reasoning, _final(number)) if part])
    return Example(Row(prompt, answer), (number,), same_text(question))


def commonsense_qa(document: Mapping[str, Any]) -> Example:
    """CommonsenseQA: question, choices {label, text}, answerKey. It has no rationales to tune on."""
    question = text_field(document, "question")
    choices = document.get("choices")
    if not isinstance(choices, Mapping):
        raise MalformedRow("'choices' is not an object with 'label' and 'text'")
    labels, texts = text_list(choices, "label", "choices."), text_list(choices, "text", "choices.")
    listed = dict(zip(labels, texts, strict=False))
    if not labels or len(listed) != len(labels) or len(labels) != len(texts):
        raise MalformedRow("'choices' has not one text for each label")
    correct = _letter(text_field(document, "answerKey"), listed, "answerKey")
    prompt = (
        f"Answer the question with one of the options. End with a line '{MARKER} ' and the letter.\n\n"
        f"Question: {question}\nOptions:\n{_options(listed)}\nAnswer:\n"
    )
    return Example(Row(prompt, _final(correct)), (correct,), same_text(question))


def drop(document: Mapping[str, Any]) -> Example:
    """DROP: passage, question, answers_spans.spans. Every span is right by itself; the first one is tuned on."""
    passage, question = text_field(document, "passage"), text_field(document, "question")
    answers = document.get("answers_spans")
    if not isinstance(answers, Mapping):
        raise MalformedRow("'answers_spans' is not an object with 'spans'")
    spans = [one_line(span) for span in text_list(answers, "spans", "answers_spans.")]
    spans = list(dict.fromkeys(span for span in spans if span))
    if not spans:
        raise MalformedRow("'answers_spans.spans' holds no answer")
    prompt = (
        f"Answer the question about the passage. End with a line '{MARKER} ' and the answer.\n\n"
        f"Passage: {passage}\nQuestion: {question}\nAnswer:\n"
    )
    return Example(Row(prompt, _final(spans[0])), tuple(spans), same_text(passage))


def dialogue_summary(document: Mapping[str, Any]) -> Example:
    """SAMSum and DialogSum: dialogue and summary. Summaries become one line, so that a newline ends them."""
    dialogue, summary = text_field(document, "dialogue"), one_line(text_field(document, "summary"))
    if not scoreable(summary):
        raise MalformedRow("'summary' has no word that ROUGE reads (letters a to z, digits)")
    prompt = f"Summarize the dialogue in one line.\n\n{dialogue}\n\nSummary:\n"
    return Example(Row(prompt, summary + "\n"), (summary,), same_text(dialogue))


def _letter(letter: str, listed: Mapping[str, str], name: str) -> str:
    if letter not in listed:
        raise MalformedRow(f"{name!r} is not the letter of an option")
    return letter


def _options(listed: Mapping[str, str]) -> str:
    return "\n".join(f"{letter}) {text}" for letter, text in listed.items())


def _final(answer: str) -> str:
    return f"{MARKER} {answer}\n"


def _hub(path: str, config: str | None = None, test: str = "test") -> HubSource:
    splits: tuple[tuple[Split, str], ...] = (("train", "train"), ("validation", "validation"), ("test", test))
    return HubSource(path, config, splits)


# max_new_tokens: GSM8K and AQuA rationales seldom pass 250 tokens of a large vocabulary, summaries 80
PAPER_TASKS: dict[str, TextTask] = {
    task.name: task
    for task in (
        TextTask(
            "aqua_rat",
            "exact_match",
            "option",
            aqua_rat,
            final_answer,
            states_final_answer,
            256,
            _hub("deepmind/aqua_rat", "raw"),
        ),
        TextTask(
            "gsm8k",
            "exact_match",
            "number",
            gsm8k,
            final_answer,
            states_final_answer,
            256,
            HubSource("openai/gsm8k", "main", (("train", "train"), ("test", "test"))),
        ),
        TextTask(
            "commonsense_qa",
            "exact_match",
            "option",
            commonsense_qa,
            final_answer,
            states_final_answer,
            128,
            _hub("tau/commonsense_qa", test="validation"),
        ),
        TextTask(
            "drop",
            "exact_match",
            "text",
            drop,
            final_answer,
            states_final_answer,
            128,
            _hub("ucinlp/drop", test="validation"),
        ),
        TextTask(
            "samsum",
            "rouge1",
            "text",
            dialogue_summary,
            first_line,
            has_first_line,
            96,
            _hub("knkarthick/samsum"),
        ),
        TextTask(
            "dialogsum",
            "rouge1",
            "text",
            dialogue_summary,
            first_line,
            has_first_line,
            96,
            _hub("knkarthick/dialogsum"),
        ),
    )
}
