"""The one reader of rows: every file format, every form of rows, and what is wrong told by file and line."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtf_fl.config import RowFormat, TaskSection, validate
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import (
    Row,
    TaskRows,
    Turn,
    count_rows,
    read_prompts,
    read_rows,
    read_task_rows,
    write_rows,
)
from gradtf_fl.tasks.reading import raw_rows
from gradtf_fl.tasks.row_forms import form_of
from gradtf_fl.tasks.task_rows import _read_once

LINE_ENDS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r\n"  # all that str.splitlines takes for the end of a line
texts = st.text(st.characters(codec="utf-8") | st.sampled_from(LINE_ENDS + "\ufeff\u00a0\"',[]{}"), max_size=30)
rows_of_texts = st.lists(st.builds(Row, texts, texts.filter(bool)), min_size=1, max_size=8)

BOM = b"\xef\xbb\xbf"


def lines_of(documents: Sequence[Mapping[str, Any]], ascii_only: bool = True) -> str:
    return "".join(json.dumps(document, ensure_ascii=ascii_only) + "\n" for document in documents)


def write_csv(path: Path, documents: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, list(documents[0]))
        writer.writeheader()
        writer.writerows(documents)


FORMATS: dict[str, Callable[[Path, Sequence[Mapping[str, Any]]], object]] = {
    "ascii.jsonl": lambda path, found: path.write_text(lines_of(found)),
    "plain.jsonl": lambda path, found: path.write_bytes(lines_of(found, ascii_only=False).encode()),
    "bom.jsonl": lambda path, found: path.write_bytes(BOM + lines_of(found, ascii_only=False).encode()),
    "crlf.jsonl": lambda path, found: path.write_bytes(lines_of(found).replace("\n", "\r\n").encode()),
    "blank.jsonl": lambda path, found: path.write_bytes(lines_of(found).replace("\n", "\n\u00a0\u3000\t\n").encode()),
    "packed.jsonl.gz": lambda path, found: path.write_bytes(gzip.compress(lines_of(found, ascii_only=False).encode())),
    "lines.json": lambda path, found: path.write_text(lines_of(found)),
    "no-ending": lambda path, found: path.write_text(lines_of(found)),
    "array.json": lambda path, found: path.write_bytes(json.dumps(found, ensure_ascii=False).encode()),
    "indented.json": lambda path, found: path.write_bytes(BOM + b" \n" + json.dumps(found, indent=2).encode() + b"\n"),
    "array.json.gz": lambda path, found: path.write_bytes(gzip.compress(json.dumps(found).encode())),
}
FLAT_FORMATS = {**FORMATS, "rows.csv": write_csv}


def as_form(form: str, row: Row) -> dict[str, Any]:
    return {
        "prompt": {"prompt": row.prompt, "answer": row.answer},
        "extra": {"id": "7", "answer": row.answer, "prompt": row.prompt},
        "input": {"input": row.prompt, "output": row.answer},
    }[form]


@settings(max_examples=60, deadline=None)
@given(rows_of_texts, st.sampled_from(sorted(FLAT_FORMATS)), st.sampled_from(["prompt", "extra", "input"]))
def test_what_is_written_reads_back_equal(rows: list[Row], name: str, form: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        FLAT_FORMATS[name](path, [as_form(form, row) for row in rows])
        assert read_rows(path) == rows
        assert count_rows(path) == len(rows)


@pytest.mark.parametrize("name", sorted(FLAT_FORMATS))
def test_line_ends_inside_a_text_end_no_row(name: str, tmp_path: Path) -> None:
    rows = [Row(f"a{end}b", f"{end}c") for end in ("\r\n", *LINE_ENDS)]
    FLAT_FORMATS[name](tmp_path / name, [as_form("prompt", row) for row in rows])
    assert read_rows(tmp_path / name) == rows
    assert count_rows(tmp_path / name) == len(rows)


def turns(*contents: str) -> dict[str, Any]:
    roles = ["system"] * (len(contents) % 2) + ["user", "assistant"] * (len(contents) // 2)
    return {
        "messages": [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)],
    }


def turns_of(document: Mapping[str, Any]) -> list[Turn]:
    return [Turn(**turn) for turn in document["messages"]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(texts.filter(bool), min_size=2, max_size=6), min_size=1), st.sampled_from(sorted(FORMATS)))
def test_turns_read_back_with_a_line_end_after_each(chats: list[list[str]], name: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        FORMATS[name](path, [turns(*chat) for chat in chats])
        wanted = [("".join(text + "\n" for text in chat[:-1]), chat[-1]) for chat in chats]
        rows = read_rows(path)
        assert [(row.prompt, row.answer) for row in rows] == wanted
        write_rows(again := Path(folder) / "again.jsonl", rows)
        assert read_rows(again) == rows


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(texts, texts, texts.filter(bool)), min_size=1), st.sampled_from(sorted(FLAT_FORMATS)))
def test_instructions_read_back_with_a_line_end_after_each(found: list[tuple[str, str, str]], name: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        FLAT_FORMATS[name](path, [dict(zip(("instruction", "input", "output"), row, strict=True)) for row in found])
        wanted = [
            Row((instruction + "\n" if instruction else "") + (given + "\n" if given else ""), output)
            for instruction, given, output in found
        ]
        assert read_rows(path) == wanted


def test_an_instruction_may_be_without_input(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        lines_of([{"instruction": "Add.", "output": "4"}, {"instruction": "a", "input": None, "output": "b"}])
    )
    assert read_rows(path) == [Row("Add.\n", "4"), Row("a\n", "b")]


@pytest.mark.parametrize("kind", ["rows.parquet", "folder"])
def test_tables_of_the_datasets_library(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    chats = [turns("be\u2028brief", "07", "a"), turns("b", "c")]
    for documents, wanted in (
        ([{"prompt": "07", "answer": "1"}, {"prompt": "", "answer": "0\r\n2"}], [Row("07", "1"), Row("", "0\r\n2")]),
        (chats, [Row.of_turns(turns_of(chat)) for chat in chats]),
    ):
        path = tmp_path / str(len(wanted[0].prompt)) / kind
        path.parent.mkdir()
        table = datasets.Dataset.from_list(documents)
        table.to_parquet(path) if kind == "rows.parquet" else table.save_to_disk(path)
        assert read_rows(path) == wanted
        assert count_rows(path) == 2
    assert not list((tmp_path / "cache").glob("**/*.arrow"))  # private rows stay where they are


def test_a_folder_of_several_data_sets_asks_for_one(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_list([{"prompt": "a", "answer": "b"}])
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "both")
    with pytest.raises(ConfigError, match="holds several data sets; name one of its folders: test, train"):
        read_rows(tmp_path / "both")
    assert read_rows(tmp_path / "both" / "train") == [Row("a", "b")]


GOOD = '{"prompt": "a", "answer": "b"}\n'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (r'{"prompt": "\ud83d", "answer": "b"}', "holds half a character"),
        (r'{"prompt": "a", "answer": "b\uDC00"}', "holds half a character"),
        (r'{"prompt": "a", "answer": ["\ud83d"]}', "holds half a character"),
        ('{"prompt": "a"}', "has none of the forms"),
        ('{"prompt": "a", "answer": ""}', "its answer is empty"),
        ('{"prompt": "a", "answer": 7}', "'answer' is not text"),
        ('{"prompt": null, "answer": "a"}', "'prompt' is not text"),
        ('["a", "b"]', "not an object with fields"),
        ("nonsense", "not JSON"),
        ("9" * 5000, "not JSON"),
        ('{"input": "a", "output": "b"}', 'is {"input", "output"}, but the file\'s first row (line 1) is'),
        ('{"messages": [{"role": "user", "content": "a"}]}', "but the file's first row (line 1) is"),
    ],
)
def test_a_bad_line_is_named(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}")
    with pytest.raises(ConfigError) as caught:
        read_rows(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"data {path}, line 3: ")
    assert reason in problem
    assert count_rows(path) == 3


def test_a_whole_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(r'{"prompt": "\ud83d\ude00", "answer": "\\ud83d"}')
    assert read_rows(path) == [Row("\U0001f600", "\\ud83d")]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ("text", "not a list of turns"),
        ([{"role": "user", "content": "a"}], "has no assistant turn"),
        ([{"role": "tool", "content": "a"}], "the role of turn 1 is not one of system, user, assistant"),
        ([{"role": "user", "content": [{"type": "image"}]}], "the content of turn 1 is not text"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}], "its answer is empty"),
    ],
)
def test_bad_turns_are_named(found: object, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": found}))
    with pytest.raises(ConfigError, match=reason):
        read_rows(path)


def test_all_problems_are_told_up_to_ten(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD + "{\n" * 12)
    with pytest.raises(ConfigError) as caught:
        read_rows(path)
    assert caught.value.problems == (*(f"data {path}, line {n}: not JSON" for n in range(2, 12)), "... and 2 more")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b'[\n{"prompt": "a", "answer": "b"},\n{"prompt"]', "line 3: the array's next element is not JSON"),
        ("a.json", b'[{"prompt": "a", "answer": "b"}\n', "line 2: the array breaks off"),
        ("a.json", b'[{"prompt": "a", "answer": "b"}] {}', "more after the end of the array"),
        ("a.json", b'[\n{"prompt": "a", "answer": "b"},\n\n{"prompt": "a"}]', "line 4: has none of the forms"),
        ("a.json", b"[ ]\n", "no rows"),
        ("a.csv", b'prompt,answer\na,b\n"a\nb",c\na,b,c\n', "line 5: 3 fields, the header names 2"),
        ("a.csv", b"prompt,answer\na,\xff\n", "not UTF-8 from here on"),
        ("a.csv", b'prompt,answer\na,"b\n', "not CSV from here on"),
        ("a.csv", b"prompt,prompt\na,b\n", "the header names a field twice"),
        ("a.csv", b"prompt;answer\na;b\n", "line 2: has none of the forms"),
        ("a.csv", b"prompt,answer\n\n\xc2\xa0\n", "no rows"),
        ("a.jsonl", b"\xc2\xa0\n\n \n", "no rows"),
        ("a.jsonl.gz", gzip.compress(GOOD.encode() * 50, mtime=0)[:-9], "can't be read to its end"),
        ("a.parquet", b"PAR1", "can't be read as Parquet"),
    ],
)
def test_a_damaged_file_is_refused(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        read_rows(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.csv", "rows.parquet", "."])
def test_what_is_not_there_is_said(name: str, tmp_path: Path) -> None:
    for read in (read_rows, read_prompts, count_rows):
        with pytest.raises(ConfigError, match="can't be read"):
            read(tmp_path / name)  # type: ignore[operator]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(max_size=12) | st.sampled_from([b"\xc2\xa0", b"\xe2\x80\xa8", BOM, GOOD.encode()]), max_size=9)
)
def test_the_count_is_of_the_rows_that_are_read_or_refused(parts: list[bytes]) -> None:
    """Check and round never disagree: what is counted is a good row or a named problem, whatever the bytes are."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(b"\n".join(parts))
        found = list(raw_rows(path))
        try:
            assert count_rows(path) == len(found)
        except ConfigError:
            assert not found
        bad = [raw for raw in found if raw.problem or not isinstance(raw.document, dict) or not form_of(raw.document)]
        if found and not bad:
            assert len(read_rows(path)) == len(found)
        else:
            with pytest.raises(ConfigError):
                read_rows(path)


class Chat:
    """A tokenizer with a template that knows no system turn."""

    chat_template = "there is one"
    all_special_tokens = ("<s>",)

    def apply_chat_template(self, found: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        if found[0]["role"] == "system":
            raise ValueError("no system turn, please\nand a traceback")
        text = "<s>" + "".join(turn["role"][0] + ":" + turn["content"] + ";" for turn in found)
        return text + "a:" * add_generation_prompt


def test_a_chat_template_that_refuses_a_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines_of([turns("q" * 2, "a1"), turns("s", "q", "a")]))
    with pytest.raises(ConfigError) as caught:
        read_rows(path, Chat())
    reason = "the tokenizer's chat template refuses its turns (no system turn, please)"
    assert caught.value.problems == (f"data {path}, line 2: {reason}",)
    assert [row.answer for row in read_rows(path)] == ["a1", "a"]


def test_turns_after_the_last_answer_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    chat = turns("q1", "a1")["messages"]
    path.write_text(json.dumps({"messages": [*chat, {"role": "user", "content": "thanks"}]}))
    assert read_rows(path) == [Row("q1\n", "a1", (Turn("user", "q1"), Turn("assistant", "a1")))]


COLUMNS = RowFormat(format="columns", prompt="{ticket.subject} ({ticket.tags.1}): {a.b}\n", answer="{{{queue}}}")


def test_columns_are_put_into_the_templates(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    document = {"ticket": {"subject": "Bed", "tags": ["x", 12]}, "a.b": "dots", "queue": "ward"}
    path.write_text(lines_of([document]))
    wanted = [Row("Bed (12): dots\n", "{ward}")]
    assert read_rows(path, None, COLUMNS) == wanted
    assert read_rows(path, None, COLUMNS.model_copy(update={"format": "auto"})) == wanted
    path.write_text(lines_of([document, document | {"ticket": {}}, document | {"queue": None}]))
    with pytest.raises(ConfigError) as caught:
        read_rows(path, None, COLUMNS)
    assert [problem.partition(", ")[2] for problem in caught.value.problems] == [
        "line 2: has no 'ticket.subject'",
        "line 3: 'queue' is neither text nor a number",
    ]
    with pytest.raises(ConfigError, match=r"has none of the forms .*: set templates of its columns"):
        read_rows(path)


def test_columns_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Body text,Queue\nlost key,desk\n")
    form = RowFormat(prompt="{Body text}?", answer="{Queue}")
    assert read_rows(path, None, form) == [Row("lost key?", "desk")]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"format": "columns"}, "columns need two templates; prompt and answer is missing"),
        ({"prompt": "{a}"}, "columns need two templates; answer is missing"),
        ({"format": "messages", "prompt": "{a}", "answer": "{b}"}, "only for format = columns, not for messages"),
        ({"prompt": "{a", "answer": "{b}"}, "prompt: .*expected '}'"),
        ({"prompt": "{a}", "answer": "yes"}, "answer: .*without a field in braces"),
        ({"prompt": "{a!r}", "answer": "{b}"}, "prompt: .*a placeholder is a name in braces"),
    ],
)
def test_templates_that_do_not_fit_are_refused(values: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        validate(RowFormat, values, lambda key: f"rows: {key}")


@pytest.mark.parametrize(
    ("format", "document", "said"),
    [
        ("messages", {"prompt": "a", "answer": "b"}, '({"messages"}), but its rows are {"prompt", "answer"}'),
        ("prompt-answer", turns("a", "b"), '({"prompt", "answer"}), but its rows are {"messages"}'),
        ("prompt-answer", {"x": "a"}, '({"prompt", "answer"}), but its rows are {"x"}'),
        ("instruction", {"text": "a"}, '({"instruction", "output"} or {"input", "output"}), but its rows are {"text"}'),
    ],
)
def test_another_form_than_the_named_one_is_one_error(
    format: Any, document: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines_of([document] * 20))
    for read in (
        lambda: read_rows(path, None, RowFormat(format=format)),
        lambda: count_rows(path, RowFormat(format=format)),
    ):
        with pytest.raises(ConfigError) as caught:
            read()
        assert caught.value.problems == (f"data {path}: format is {format} {said}",)


def test_a_named_form_reads_what_another_would_take(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines_of([{"instruction": "Add.", "output": "4"}]))
    assert read_rows(path, None, RowFormat(format="instruction")) == [Row("Add.\n", "4")]
    path.write_text(GOOD + '{"input": "a", "output": "b"}\n')
    with pytest.raises(ConfigError, match=r"line 2: is .*, but the file's format is prompt-answer"):
        read_rows(path, None, RowFormat(format="prompt-answer"))


def test_a_text_beside_other_fields_is_no_window_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines_of([{"text": "lost key " * 9, "label": "desk"}]))
    with pytest.raises(ConfigError, match=r'set format = "text" for windows of its text, or templates'):
        read_rows(path)
    assert read_rows(path, None, RowFormat(format="text", window=9)) == [Row("", "lost key ")] * 8
    with pytest.raises(ConfigError, match="shorter than one window of 128 characters"):
        read_rows(path, None, RowFormat(format="text"))
    (tmp_path / "a.txt").write_text("lost key")
    with pytest.raises(ConfigError, match="is plain text, not messages"):
        read_rows(tmp_path / "a.txt", None, RowFormat(format="messages"))
    path.write_text(lines_of([{"text": "a"}, {"label": "b"}]))
    with pytest.raises(ConfigError, match="line 2: has no 'text', and the file's format is text"):
        read_rows(path)


def test_a_file_of_another_kind_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines_of([{"q": str(number), "a": "1"} for number in range(30)]))
    with pytest.raises(ConfigError) as caught:
        read_rows(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"data {path}, line 1: has none of the forms ")
    assert problem.endswith("(and so all 30 rows)")


def test_conversations_and_pairs_are_not_written_into_one_file(tmp_path: Path) -> None:
    chat = Row.of_turns([Turn("user", "q"), Turn("assistant", "a")])
    with pytest.raises(ConfigError, match="can't be in one file"):
        write_rows(tmp_path / "rows.jsonl", [chat, Row("q", "a")])
    assert chat.answered("b") == Row.of_turns([Turn("user", "q"), Turn("assistant", "b")])
    assert Row("q", "a").answered("b") == Row("q", "b")


def test_prompts_come_from_every_form(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_bytes(BOM + b"prompt\r\n07\r\n\r\n")
    assert read_prompts(path) == [Row("07", "")]
    path = tmp_path / "prompts.jsonl"
    path.write_text(lines_of([turns("q", "a"), turns("s", "q2", "a2")]))
    assert [row.prompt for row in read_prompts(path)] == ["q\n", "s\nq2\n"]
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}]}) + "\n")  # nobody has answered yet
    (asked,) = read_prompts(path)
    assert asked == Row.of_turns([Turn("user", "q"), Turn("assistant", "a")]).answered("")
    path.write_text('{"messages": []}\n{"messages": [{"role": "user", "content": ""}]}\n{"messages": [7]}\n')
    with pytest.raises(ConfigError) as caught:
        read_prompts(path)
    assert [problem.rpartition(": ")[2] for problem in caught.value.problems] == [
        "'messages' has no assistant turn",
        "its prompt is empty",
        "'messages' is not a list of turns",
    ]


def test_curation_reads_own_rows_as_organizations_do(tmp_path: Path) -> None:
    rows = [Row(f"question {number}?", f"answer {number}") for number in range(20)]
    for folder in ("lines", "array"):
        (tmp_path / folder).mkdir()
    write_rows(tmp_path / "lines" / "train.jsonl", rows)
    documents = [turns(row.prompt, row.answer) for row in rows]
    (tmp_path / "array" / "train.json").write_text(json.dumps(documents))

    def all_of(task: TaskRows) -> list[Row]:
        return [one.row for part in (task.public, task.judged, task.private, task.test) for one in part]

    assert sorted(all_of(read_task_rows(str(tmp_path / "lines"), TaskSection())), key=rows.index) == rows
    chats = read_task_rows(str(tmp_path / "array"), TaskSection())
    assert {row.prompt for row in all_of(chats)} == {row.prompt + "\n" for row in rows}
    cut = read_task_rows(str(tmp_path / "lines"), TaskSection(format="text", window=20))
    assert cut.public[0].row.prompt == ""
    assert cut.public[0].row.answer.startswith("question ")
    with (tmp_path / "lines" / "train.jsonl").open("a") as file:
        file.write('{"input": "a", "output": "b"}\n')
    _read_once.cache_clear()
    with pytest.raises(ConfigError, match=r"train.jsonl, line 21: is {.input., .output.}, but the file's first row is"):
        read_task_rows(str(tmp_path / "lines"), TaskSection())
