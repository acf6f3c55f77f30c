"""From what a file holds to rows of prompt and answer. `reading` says which files are read.

A row has one of these forms. The fields of the first row decide which, unless the file's format is named; all rows of a
file have the same:

| format | fields | prompt | answer |
|---|---|---|---|
| prompt-answer | ``prompt``, ``answer`` | as it stands | as it stands |
| instruction | ``instruction``, ``output``, ``input`` | instruction and input, a line end after each | ``output`` |
| instruction | ``input``, ``output`` | ``input`` as it stands | ``output`` |
| messages | ``messages``: turns with ``role`` and ``content`` | the turns before the answer | the last assistant turn |
| columns | any | the template of prompts | the template of answers |
| text | ``text`` alone | empty | a window of the text |

An instruction may be without ``input``. Of ``messages`` every assistant turn is trained, through the tokenizer's chat
template (see `Row.turns`); turns after the last one are left out.

Of text, in a file of rows or in a plain text file (``.txt``, ``.txt.gz``), a row of the task is a window: documents are
joined, a blank line between them, and cut into windows of a fixed number of characters (`text_windows`). Such a window
has no end, so none is trained. Rows that have other fields too are read as text only where the format says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from gradtf_fl.config import Format, RowFormat
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.chat import conversation, has_template
from gradtf_fl.tasks.columns import rendered_fields
from gradtf_fl.tasks.documents import TEXT_ENDINGS, cut_windows, joined_documents, read_text, split_documents
from gradtf_fl.tasks.persons import grouped, person_of
from gradtf_fl.tasks.reading import MalformedRow, RawRow, named, raw_rows
from gradtf_fl.tasks.rows import Row, Turn, joined
from gradtf_fl.tasks.text_tasks import same_text

ROLES = ("system", "user", "assistant")
T = TypeVar("T")


@dataclass(frozen=True)
class Form:
    """One form of rows.

    Attributes:
        format: what a configuration calls it.
        name: for messages.
        fields: all of them mark the form.
        row: fields to row; raises MalformedRow.
    """

    format: Format
    name: str
    fields: tuple[str, ...]
    row: Callable[[Mapping[str, Any]], Row]


def read_rows(
    path: str | Path, tokenizer: Any = None, form: RowFormat | None = None, person: str | None = None
) -> list[Row]:
    """Rows of a file or ``datasets`` folder in any of the forms (see the module).

    Args:
        tokenizer: whose chat template has to write the rows of ``messages``; None asks none.
        form: how they are read; None for the form of the first row.
        person: field that says whose a row is (`persons`); None leaves that open.

    Raises:
        ConfigError: the file can't be read, has no rows, is not in the form that was named, or has bad rows: each by
            file and line, up to ten. A row that is nobody's is a bad one.

    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> from gradtf_fl import read_rows
    >>> path = Path(mkdtemp()) / "rows.jsonl"
    >>> _ = path.write_text('{"prompt": "The capital of France is", "answer": " Paris"}')
    >>> read_rows(path)[0].answer
    ' Paris'
    """
    path, form = Path(path), form or RowFormat()
    told = told_form(path, form)
    if told.format == "text":
        return _windows(path, form.window, person)
    reader = RowReader(told if told.format == "columns" else form)

    def row(raw: RawRow) -> Row:
        found = reader(raw.fields(), raw.place)
        if found.turns and has_template(tokenizer):
            conversation(found.turns, tokenizer)
        return found if person is None else replace(found, person=person_of(raw.fields(), person))

    return _all(path, "data", row)


def count_rows(path: str | Path, form: RowFormat | None = None, person: str | None = None) -> int:
    """How many rows the file has, good or bad; of text, windows; with the field of a person, how many persons.

    Raises:
        ConfigError: as `raw_rows`; without any row; of persons, as `read_rows`.
    """
    path, form = Path(path), told_form(path, form or RowFormat())
    if form.format == "text":
        windows = _windows(path, form.window, person)
        rows = len(windows) if person is None else len({row.person for row in windows})
    elif person is not None:
        rows = len(set(_all(path, "data", lambda raw: person_of(raw.fields(), person))))
    else:
        rows = sum(1 for _ in raw_rows(path))
    if rows == 0:
        raise ConfigError(f"data {path}: no rows")
    return rows


def told_form(path: str | Path, form: RowFormat) -> RowFormat:
    """``form`` for this file: ``auto`` told by the file's name or its first row, and no end where rows are windows.

    What has no form of its own stays ``auto``: reading it says so.

    Raises:
        ConfigError: the file can't be read, or is in another form than the one that was named.
    """
    path = Path(path)
    format: Format = form.format
    if path.name.lower().endswith(TEXT_ENDINGS):
        if format not in ("auto", "text"):
            raise ConfigError(f"data {path}: is plain text, not {format}: correct format, or name another file")
        format = "text"
    elif format == "auto" and form.prompt is not None:
        format = "columns"
    elif format not in ("columns", "text"):
        first = next(raw_rows(path), None)
        fields = first.document if first is not None and isinstance(first.document, Mapping) else {}
        found = form_of(fields)
        if format == "auto":
            format = found.format if found else "text" if set(fields) == {"text"} else "auto"
        elif fields and (found is None or found.format != format):
            raise ConfigError(
                f"data {path}: format is {format} ({_names_of(format)}), but its rows are {_shown(fields)}"
            )
    return form.model_copy(update={"format": format, "end": form.end and format != "text"})


def read_prompts(path: str | Path, form: RowFormat | None = None) -> list[Row]:
    """Rows in any of the forms without their answers, of objects with a "prompt" alone, and of ``messages`` that end
    with a question. ConfigError as `read_rows`.
    """
    reader = RowReader(form or RowFormat())

    def prompt(raw: RawRow) -> Row:
        fields = raw.fields()
        if reader.form.format in ("auto", "prompt-answer") and "prompt" in fields:
            found = Row(_text(fields, "prompt"), "")
        else:
            found = reader(_asked(fields), raw.place).answered("")
        if not found.prompt:
            raise MalformedRow("its prompt is empty")
        return found

    return _all(Path(path), "prompts", prompt)


def _asked(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """``fields``, with some answer after the ``messages`` where they end with a question."""
    turns = fields.get("messages")
    if not isinstance(turns, list) or not turns or not isinstance(turns[-1], Mapping):
        return fields
    return (
        fields
        if turns[-1].get("role") == "assistant"
        else {"messages": [*turns, {"role": "assistant", "content": "?"}]}
    )


class RowReader:
    """Fields to rows, all in the form that is named, or in the one of the first row that has a form."""

    def __init__(self, form: RowFormat | None = None) -> None:
        self.form = form or RowFormat()
        self._first: tuple[Form, str] | None = None

    def __call__(self, fields: Mapping[str, Any], place: str = "") -> Row:
        """The row. MalformedRow says why there is none; ``place`` is told where a later row has another form."""
        if self.form.format == "columns":
            return _columns(self.form, fields)
        form = form_of(fields)
        if self.form.format != "auto" and (form is None or form.format != self.form.format):
            wanted = f"{self.form.format} ({_names_of(self.form.format)})"
            raise MalformedRow(f"is {_shown(fields)}, but the file's format is {wanted}")
        if form is None:
            raise MalformedRow(f"has none of the forms {FORM_NAMES}{_advice(fields)}")
        first, where = self._first = self._first or (form, place.rpartition(", ")[2])
        if form is not first:
            of_first = f"the file's first row ({where})" if where else "the file's first row"
            raise MalformedRow(f"is {form.name}, but {of_first} is {first.name}")
        return form.row(fields)


def form_of(fields: Mapping[str, Any]) -> Form | None:
    """The form that a row's fields mark, None where they mark none."""
    return next((form for form in FORMS if all(name in fields for name in form.fields)), None)


def _names_of(format: Format) -> str:
    return " or ".join(form.name for form in FORMS if form.format == format)


def _shown(fields: Mapping[str, Any]) -> str:
    """A row's form, or its fields."""
    form = form_of(fields)
    return form.name if form else "{" + ", ".join(f'"{name}"' for name in fields) + "}"


def _advice(fields: Mapping[str, Any]) -> str:
    text = ' format = "text" for windows of its text, or' if "text" in fields else ""
    return f": set{text} templates of its columns (prompt and answer)"


def _all(path: Path, what: str, parse: Callable[[RawRow], T]) -> list[T]:
    found, problems, rows = [], [], 0
    reasons: set[str] = set()
    for raw in raw_rows(path, what):
        rows += 1
        try:
            found.append(parse(raw))
        except MalformedRow as reason:
            problems.append(f"{raw.place}: {reason}")
            reasons.add(str(reason))
    if len(problems) == rows > 1 and len(reasons) == 1:  # another kind of file: one message, not one a row
        raise ConfigError(f"{problems[0]} (and so all {rows} rows)")
    if problems:
        raise ConfigError(named(problems))
    if not rows:
        raise ConfigError(f"{what} {path}: no rows")
    return found


def _windows(path: Path, window: int, person: str | None = None) -> list[Row]:
    """Windows of all documents of a file, or of each person's. Documents that share their text, or their prompt, are
    read once; of two persons who share one, each has it, as what one has may not depend on the other."""
    if path.name.lower().endswith(TEXT_ENDINGS):
        if person is not None:
            raise ConfigError(f"data {path}: is plain text, which has no {person!r} (privacy.unit)")
        found: list[tuple[str, str, str | None]] = [(text, text, None) for text in split_documents(read_text(path))]
    else:
        found = _all(path, "data", lambda raw: (*_document(raw.fields()), person and person_of(raw.fields(), person)))
        found = list({(same_text(one[0]), one[2]): one for one in reversed(found)}.values())[::-1]
    rows = [
        Row("", piece, person=whose)
        for whose, places in grouped(one[2] for one in found).items()
        for piece in cut_windows(joined_documents([found[place][1] for place in places]), window)
    ]
    if not rows:
        whole = "is" if person is None else "each person's text is"
        raise ConfigError(f"data {path}: {whole} shorter than one window of {window} characters")
    return rows


def _document(fields: Mapping[str, Any]) -> tuple[str, str]:
    """(what tells two documents apart, the document) of a row in one of the forms, or with a text."""
    form = form_of(fields)
    if form is not None:
        row = form.row(fields)
        return row.prompt or row.answer, row.text
    if "text" not in fields:
        raise MalformedRow("has no 'text', and the file's format is text")
    text = _text(fields, "text").strip()
    if not text:
        raise MalformedRow("'text' is empty")
    return text, text


def _columns(form: RowFormat, fields: Mapping[str, Any]) -> Row:
    prompt, answer = (rendered_fields(str(template), fields) for template in (form.prompt, form.answer))
    return _row(prompt, answer)


def _prompt_answer(fields: Mapping[str, Any]) -> Row:
    return _row(_text(fields, "prompt"), _text(fields, "answer"))


def _instruction(fields: Mapping[str, Any]) -> Row:
    given = _text(fields, "input") if fields.get("input") is not None else ""
    return _row(joined([_text(fields, "instruction"), given]), _text(fields, "output"))


def _input_output(fields: Mapping[str, Any]) -> Row:
    return _row(_text(fields, "input"), _text(fields, "output"))


def _messages(fields: Mapping[str, Any]) -> Row:
    found = fields["messages"]
    if not isinstance(found, list) or not all(isinstance(turn, Mapping) for turn in found):
        raise MalformedRow("'messages' is not a list of turns")
    for number, turn in enumerate(found, 1):
        if turn.get("role") not in ROLES:
            raise MalformedRow(f"the role of turn {number} is not one of {', '.join(ROLES)}")
        if not isinstance(turn.get("content"), str):
            raise MalformedRow(f"the content of turn {number} is not text")
    turns = [Turn(turn["role"], turn["content"]) for turn in found]
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        raise MalformedRow("'messages' has no assistant turn")
    if not all(turns[number].content for number in answers):
        raise MalformedRow("its answer is empty")
    return Row.of_turns(turns[: answers[-1] + 1])


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
    Form("messages", '{"messages"}', ("messages",), _messages),
    Form("prompt-answer", '{"prompt", "answer"}', ("prompt", "answer"), _prompt_answer),
    Form("instruction", '{"instruction", "output"}', ("instruction", "output"), _instruction),
    Form("instruction", '{"input", "output"}', ("input", "output"), _input_output),
)
"""In the order in which a row is asked for them."""
FORM_NAMES = ", ".join(form.name for form in FORMS)
