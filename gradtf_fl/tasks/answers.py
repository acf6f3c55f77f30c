"""Final answers: where a generated text states one, and when it equals a reference.

The paper's metric (appendix A.2): the model gives its final answer at the end, after its reasoning, and that answer
must match the ground truth exactly. Prompts ask for a last line ``Final answer: X`` and training answers end with it.
What is compared is X, so reasoning never counts. Anything ambiguous is wrong: two numbers where one is required, or no
final answer at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

AnswerKind = Literal["option", "number", "text"]

MARKER = "Final answer:"
LETTERS = "ABCDE"

_MARKED = re.compile(r"^[ \t]*(?:\*\*)?(?:final answer[ \t]*:|####)(.*)$", re.IGNORECASE | re.MULTILINE)
# What untuned models write instead; read only where no marked line is
_LOOSE = re.compile(r"(?:\banswer(?:[ \t]+is)?[ \t]*:|\banswer[ \t]+is\b|\\boxed(?=\{))(.*)", re.IGNORECASE)
_FINISHED = re.compile(
    r"^[ \t]*(?:\*\*)?(?:final answer[ \t]*:|####)[^\n]*[^\s*][^\n]*\n", re.IGNORECASE | re.MULTILINE
)
_NUMBER = re.compile(r"(?<![\w.])-?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])-?\.[0-9]+")
_CURRENCY = re.compile(r"\\?[$€£]")
_BOXED = re.compile(r"(?:\\boxed)?\{([^{}]*)\}")
_ARTICLES = frozenset({"a", "an", "the"})
_EDGES = " \t\r\n.,;:!?'\"`*()[]{}<>“”‘’«»"


def final_answer(text: str) -> str | None:
    """What ``text`` states as its final answer, or None.

    The last line that begins with ``Final answer:`` (or GSM8K's ``####``) counts; without one, what follows the
    last "answer is", "answer:" or ``\\boxed`` on its line.
    """
    found = _MARKED.findall(text) or _LOOSE.findall(text)
    answer = _plain(found[-1]) if found else ""
    return answer or None


def states_final_answer(text: str) -> bool:
    """Whether ``text`` holds a whole line with a final answer, newline included: generation may stop there."""
    return _FINISHED.search(text) is not None


def first_line(text: str) -> str | None:
    """The first line of ``text`` that is not blank, stripped, or None: the answer of tasks that ask for one line."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else None


def has_first_line(text: str) -> bool:
    """Whether the first non-blank line of ``text`` is complete, newline included."""
    return "\n" in text.lstrip()


def matches(answer: str, references: Sequence[str], kind: AnswerKind) -> bool:
    """Whether a final answer equals one of ``references``.

    - option: the letter, whatever stands around it: ``b``, ``(B)``, ``B) because``, ``option B.``;
    - number: the value: ``$1,200.00 in all`` equals ``1200``. After the last ``=`` there must be exactly one number;
    - text: as the DROP evaluator has it (Dua et al. 2019): case, articles, punctuation, hyphens and currency signs
      do not count, numbers compare by value.
    """
    if kind == "option":
        letter = option_letter(answer)
        return letter is not None and letter in references
    if kind == "number":
        number = only_number(answer)
        return number is not None and any(number == only_number(reference) for reference in references)
    return any(normal_text(answer) == normal_text(reference) for reference in references)


def option_letter(answer: str) -> str | None:
    """The option letter (A..E, upper case) that ``answer`` names, or None where it names none or several."""
    text = re.sub(r"^\W*(?:option|choice|letter)\b\W*", "", _plain(answer), flags=re.IGNORECASE)
    alone = re.fullmatch(rf"\W*([{LETTERS}])\W*", text, re.IGNORECASE)
    leading = re.match(rf"\W*([{LETTERS}])(?:[).:]|[ \t]+-)", text, re.IGNORECASE)
    for found in (alone, leading):
        if found:
            return found[1].upper()
    named = set(re.findall(rf"(?<![\w'])([{LETTERS}])(?![\w'])", text))
    return named.pop() if len(named) == 1 else None


def only_number(answer: str) -> Decimal | None:
    """The one number in ``answer`` (after its last ``=``), without sign of currency or thousands separators."""
    text = _CURRENCY.sub("", _plain(answer)).rpartition("=")[2].replace("−", "-")
    found = _NUMBER.findall(re.sub(r"-\s+(?=[0-9.])", "-", text))
    return Decimal(found[0].replace(",", "")) if len(found) == 1 else None


def normal_text(answer: str) -> str:
    """``answer`` as compared for text answers: words and numbers in one spelling, joined by single spaces."""
    text = _CURRENCY.sub("", _plain(answer)).casefold().replace("−", "-").replace("%", " ")
    words = []
    for word in re.split(r"[\s–—]+|(?<=\w)-", text):
        bare = word.strip(_EDGES)
        words.append(_plain_number(bare) if _NUMBER.fullmatch(bare) else "".join(c for c in bare if c not in _EDGES))
    words = [word for word in words if word]
    # A label that is only "A" stays: dropping it as an article would make it equal to "the"
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _plain_number(word: str) -> str:
    text = format(Decimal(word.replace(",", "")), "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"


def _plain(text: str) -> str:
    """Without bold marks, TeX boxes and outer blanks."""
    return _BOXED.sub(r"\1", text.replace("**", "")).strip()
