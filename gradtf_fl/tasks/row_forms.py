"""From what a file holds to rows of prompt and answer. `reading` says which files are read.

A row has one of four forms. The fields of the first row decide which, and all rows of a file have the same:

| fields | prompt | answer |
|---|---|---|
| ``prompt``, ``answer`` | as it stands | as it stands |
| ``instruction``, ``output``, perhaps ``input`` | instruction and input, a line end after each | ``output`` |
| ``input``, ``output`` | ``input`` as it stands | ``output`` |
| ``messages``: turns with ``role`` and ``content`` | the turns before the answer | the last assistant turn |

The turns before the answer go through the tokenizer's chat template, where a tokenizer with one is given; without one
they are joined, a line end after each. Only the last assistant turn is an answer so far: earlier ones are prompt, and
turns after it are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.reading import MalformedRow, RawRow, named, raw_rows
from gradtf_fl.tasks.rows import Row

ROLES = ("system", "user", "assistant")
T = TypeVar("T")


@dataclass(frozen=True)
class Form:
    """One form of rows.

    Attributes:
        name: for messages. fields: all of them mark the form.
        row: fields and tokenizer (or None) to row; raises MalformedRow.
    """

    name: str
    fields: tuple[str, ...]
    row: Callable[[Mapping[str, Any], Any], Row]


def read_rows(path: str | Path, tokenizer: Any = None) -> list[Row]:
    """Rows of a file or ``datasets`` folder in any of the forms (see the module).

    Args:
        tokenizer: whose chat template makes a prompt of ``messages``; None joins the turns.

    Raises:
        ConfigError: the file can't be read, has no rows, or has bad ones: each by file and line, up to ten.

    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> from gradtf_fl import read_rows
    >>> path = Path(mkdtemp()) / "rows.jsonl"
    >>> _ = path.write_text('{"prompt": "The capital of France is", "answer": " Paris"}')
    >>> read_rows(path)
    [Row(prompt='The capital of France is', answer=' Paris')]
    """
    reader = RowReader(tokenizer)
    return _all(Path(path), "data", lambda raw: reader(raw.fields(), raw.place))


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of rows in any of the forms, or of objects with a "prompt" alone. ConfigError as `read_rows`."""
    reader = RowReader()

    def prompt(raw: RawRow) -> str:
        fields = raw.fields()
        found = _text(fields, "prompt") if "prompt" in fields else reader(fields, raw.place).prompt
        if not found:
            raise MalformedRow("its prompt is empty")
        return found

    return _all(Path(path), "prompts", prompt)


class RowReader:
    """Fields to rows, all in the form of the first one that has a form."""

    def __init__(self, tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        self._first: tuple[Form, str] | None = None

    def __call__(self, fields: Mapping[str, Any], place: str = "") -> Row:
        """The row. MalformedRow says why there is none; ``place`` is told where a later row has another form."""
        form = form_of(fields)
        if form is None:
            raise MalformedRow(f"has none of the forms {FORM_NAMES}")
        first, where = self._first = self._first or (form, place.rpartition(", ")[2])
        if form is not first:
            of_first = f"the file's first row ({where})" if where else "the file's first row"
            raise MalformedRow(f"is {form.name}, but {of_first} is {first.name}")
        return form.row(fields, self._tokenizer)


def form_of(fields: Mapping[str, Any]) -> Form | None:
    """The form that a row's fields mark, None where they mark none."""
    return next((form for form in FORMS if all(name in fields for name in form.fields)), None)


def _all(path: Path, what: str, parse: Callable[[RawRow], T]) -> list[T]:
    found, problems = [], []
    for raw in raw_rows(path, what):
        try:
            found.append(parse(raw))
        except MalformedRow as reason:
            problems.append(f"{raw.place}: {reason}")
    if problems:
        raise ConfigError(named(problems))
    if not found:
        raise ConfigError(f"{what} {path}: no rows")
    return found


def _prompt_answer(fields: Mapping[str, Any], _: Any) -> Row:
    return _row(_text(fields, "prompt"), _text(fields, "answer"))


def _instruction(fields: Mapping[str, Any], _: Any) -> Row:
    given = _text(fields, "input") if fields.get("input") is not None else ""
    return _row(joined([_text(fields, "instruction"), given]), _text(fields, "output"))


def _input_output(fields: Mapping[str, Any], _: Any) -> Row:
    return _row(_text(fields, "input"), _text(fields, "output"))


def _messages(fields: Mapping[str, Any], tokenizer: Any) -> Row:
    found = fields["messages"]
    if not isinstance(found, list) or not all(isinstance(turn, Mapping) for turn in found):
        raise MalformedRow("'messages' is not a list of turns")
    turns = [{"role": turn.get("role"), "content": turn.get("content")} for turn in found]
    for number, turn in enumerate(turns, 1):
        if turn["role"] not in ROLES:
            raise MalformedRow(f"the role of turn {number} is not one of {', '.join(ROLES)}")
        if not isinstance(turn["content"], str):
            raise MalformedRow(f"the content of turn {number} is not text")
    last = max((number for number, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise MalformedRow("'messages' has no assistant turn")
    if getattr(tokenizer, "chat_template", None):
        prompt = _by_template(turns[:last], tokenizer)
    else:
        prompt = joined([turn["content"] for turn in turns[:last]])
    return _row(prompt, turns[last]["content"])


def joined(texts: list[str]) -> str:
    """Texts that are not empty, a line end after each."""
    return "".join(text + "\n" for text in texts if text)


def _by_template(turns: list[dict[str, Any]], tokenizer: Any) -> str:
    try:
        prompt = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # templates are programs: what one raises, it says of these turns
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MalformedRow(f"the tokenizer's chat template refuses its turns ({cause})") from error
    begin = tokenizer.bos_token
    added = begin is not None and list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]
    return prompt.removeprefix(begin) if added else prompt  # encoding writes it again


def _row(prompt: str, answer: str) -> Row:
    if not answer:
        raise MalformedRow("its answer is empty")
    return Row(prompt, answer)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise MalformedRow(f"{name!r} is not text")
    return value


FORMS = (
    Form('{"messages"}', ("messages",), _messages),
    Form('{"prompt", "answer"}', ("prompt", "answer"), _prompt_answer),
    Form('{"instruction", "output"}', ("instruction", "output"), _instruction),
    Form('{"input", "output"}', ("input", "output"), _input_output),
)
"""In the order in which a row is asked for them."""
FORM_NAMES = ", ".join(form.name for form in FORMS)
