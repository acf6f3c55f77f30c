"""Conversations as a tokenizer's own chat template writes them, and where in that text each answer stands.

A template is a program, so little about it is assumed. Each assistant turn is written once more with a mark in place of
its content: what then stands after the mark says where the content ends. An answer begins where the template's own
generation prompt ends; where that is not how the template writes the turn itself, a row is refused, as what is trained
would not be what is generated later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradtf_fl.tasks.reading import MalformedRow
from gradtf_fl.tasks.rows import Turn

MARK = "gradtf7content7mark"


@dataclass(frozen=True)
class Answer:
    """Where an assistant turn stands in the text of a conversation, in characters.

    Attributes:
        start: where the model begins to write.
        stop: the end of its content.
        end: the end of the special token that closes the turn; ``stop`` without one.
    """

    start: int
    stop: int
    end: int


@dataclass(frozen=True)
class Conversation:
    """A conversation as text, with the template's own special tokens in it, and its answers in order."""

    text: str
    answers: tuple[Answer, ...]


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer writes conversations."""
    return bool(getattr(tokenizer, "chat_template", None))


def conversation(turns: Sequence[Turn], tokenizer: Any) -> Conversation:
    """``turns``, of which the last is an assistant's, by the tokenizer's template.

    Raises:
        MalformedRow: the template refuses them, leaves an answer out, or writes a turn otherwise than it asks for it.
    """
    text = _written(turns, tokenizer)
    numbers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    rests = [_after(turns, number, text, tokenizer) for number in numbers]
    closing = _closing(rests[-1], tokenizer)
    answers = []
    for number, rest in zip(numbers, rests, strict=True):
        asked = _written(turns[:number], tokenizer, asks=True)
        if not text.startswith(asked):
            raise MalformedRow(
                f"the tokenizer's chat template asks for turn {number + 1} otherwise than it writes it, so where the "
                "answer begins is not known"
            )
        stop = len(text) - len(rest)
        if stop <= len(asked):
            raise MalformedRow(f"the tokenizer's chat template writes nothing of turn {number + 1}")
        answers.append(Answer(len(asked), stop, stop + (len(closing) if rest.startswith(closing) else 0)))
    return Conversation(text, tuple(answers))


def turn_end(tokenizer: Any) -> str:
    """The special token that the template closes an assistant turn with; "" without one."""
    if not has_template(tokenizer):
        return ""
    turns = [Turn("user", "a"), Turn("assistant", MARK)]
    try:
        after = _written(turns, tokenizer).rpartition(MARK)[2]
    except MalformedRow:  # said of each row that it refuses
        return ""
    return _closing(after, tokenizer).lstrip()


def _after(turns: Sequence[Turn], number: int, text: str, tokenizer: Any) -> str:
    """What stands after the content of turn ``number`` in ``text``."""
    changed = [*turns[:number], Turn("assistant", MARK), *turns[number + 1 :]]
    _, mark, after = _written(changed, tokenizer).partition(MARK)
    if not mark or not text.endswith(after):
        raise MalformedRow(f"the tokenizer's chat template does not write the content of turn {number + 1}")
    return after


def _closing(after: str, tokenizer: Any) -> str:
    """How ``after``, which follows an answer, closes the turn: perhaps white space, then a special token; or ""."""
    rest = after.lstrip()
    found = [token for token in special_tokens(tokenizer) if rest.startswith(token)]
    return after[: len(after) - len(rest) + len(max(found, key=len))] if found else ""


def special_tokens(tokenizer: Any) -> list[str]:
    """All special tokens as text, those of a template too."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return [*tokenizer.all_special_tokens, *(token.content for token in added if token.special)]


def _written(turns: Sequence[Turn], tokenizer: Any, asks: bool = False) -> str:
    documents = [turn._asdict() for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(documents, tokenize=False, add_generation_prompt=asks))
    except Exception as error:  # templates are programs: what one raises, it says of these turns
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MalformedRow(f"the tokenizer's chat template refuses its turns ({cause})") from error
