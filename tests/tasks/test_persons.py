"""Whose rows are whose: rows carry their person through every reader, and a row that is nobody's is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gradtf_fl.config import DataSection, RowFormat, SharingOut, SimulationConfig, TaskSection, validate
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Persons, Row, count_rows, federation_data, read_rows, read_task_rows, write_rows
from gradtf_fl.tasks.persons import person_of
from gradtf_fl.tasks.reading import MalformedRow


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def visit(person: object, number: int) -> dict[str, Any]:
    return {"prompt": f"visit {number}:", "answer": f"finding {number}", "patient": person}


@pytest.mark.parametrize(
    ("fields", "field", "person"),
    [
        ({"patient": "Ann  Lee"}, "patient", "ann lee"),
        ({"patient": 7}, "patient", "7"),
        ({"patient": 7.0}, "patient", "7"),
        ({"patient": "007"}, "patient", "7"),
        ({"patient": "700"}, "patient", "700"),
        ({"patient": "Nan"}, "patient", "nan"),
        ({"patient": 7.5}, "patient", "7.5"),
        ({"patient": "Jo\u0308rg"}, "patient", "j\u00f6rg"),
        ({"patient": "\ufeffAnn\u200b \uff2cee"}, "patient", "ann lee"),
        ({"patient": [{"id": 3e16}]}, "patient.0.id", "30000000000000000"),
        ({"customer": {"id": "A-1"}}, "customer.id", "a-1"),
    ],
    ids=[
        "case and space",
        "number",
        "float",
        "digits",
        "hundreds",
        "a name",
        "broken number",
        "accents",
        "unseen",
        "exponent",
        "nested",
    ],
)
def test_a_person_is_a_value(fields: dict[str, Any], field: str, person: str) -> None:
    assert person_of(fields, field) == person


@pytest.mark.parametrize(
    "fields",
    [{}, {"patient": None}, {"patient": ""}, {"patient": " \t"}, {"patient": True}, {"patient": float("nan")}],
    ids=["missing", "null", "empty", "blank", "bool", "nan"],
)
def test_a_row_of_nobody_has_no_person(fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedRow, match=r"'patient'.*privacy.unit"):
        person_of(fields, "patient")


def test_a_row_of_nobody_is_refused_by_file_and_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [visit("ann", 1), visit(None, 2), visit("bo", 3), visit("", 4)])
    for read in (read_rows, count_rows):
        with pytest.raises(ConfigError) as refused:
            read(path, form=None, person="patient")
        assert len(refused.value.problems) == 2
        for line, problem in zip((2, 4), refused.value.problems, strict=True):
            assert f"data {path}, line {line}: " in problem
            assert "'patient'" in problem
            assert "privacy.unit" in problem
    assert [row.person for row in read_rows(path)] == [None] * 4


def test_a_person_in_two_files_is_one(tmp_path: Path) -> None:
    """A folder of files is read as one: JSONL, gzipped, and CSV that has numbers as text."""
    folder = tmp_path / "rows"
    folder.mkdir()
    jsonl(folder / "2024.jsonl", [visit(1, 1), visit(2, 2)])
    jsonl(folder / "2025.jsonl.gz", [visit(1, 3), visit(3.0, 4)])
    (folder / "old.csv").write_text("prompt,answer,patient\nvisit 5:,finding 5,2\n")
    (folder / "readme.md").write_text("no rows")
    rows = read_rows(folder, person="patient")
    assert Persons.of(rows, 4).rows == ((0, 2), (1, 4), (3,))
    assert (count_rows(folder, person="patient"), count_rows(folder)) == (3, 5)
    jsonl(folder / "2024.jsonl", [visit(1, 1), visit(None, 2)])
    with pytest.raises(ConfigError, match=r"2024.jsonl, line 2"):
        read_rows(folder, person="patient")


def test_a_folder_with_tests_beside_is_not_read_as_one(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [visit(1, 1)])
    jsonl(tmp_path / "test.jsonl", [visit(2, 2)])
    with pytest.raises(ConfigError, match=r"holds test.jsonl alongside"):
        read_rows(tmp_path)


def test_windows_are_of_one_persons_text(tmp_path: Path) -> None:
    """No window holds two persons' text, and what one wrote decides nobody else's windows."""
    texts = [("ann", "a" * 50), ("bo", "b" * 45), ("ann", "c" * 50), ("cy", "d" * 5), ("bo", "a" * 50)]
    rows = [{"text": text, "author": person} for person, text in texts]
    form = RowFormat(format="text", window=20)
    path = jsonl(tmp_path / "texts.jsonl", rows)
    found = read_rows(path, None, form, "author")
    whose = {row.person: set("".join(r.answer for r in found if r.person == row.person)) - {"\n"} for row in found}
    assert whose == {"ann": {"a", "c"}, "bo": {"a", "b"}}  # who has less than a window has no row
    assert count_rows(path, form, "author") == 2
    without = jsonl(tmp_path / "without.jsonl", [row for row in rows if row["author"] != "ann"])
    bo = [row for row in found if row.person == "bo"]
    assert read_rows(without, None, form, "author") == bo
    plain = tmp_path / "plain.txt"
    plain.write_text("words " * 100)
    with pytest.raises(ConfigError, match="plain text, which has no 'author'"):
        read_rows(plain, None, form, "author")


def test_written_rows_keep_their_person(tmp_path: Path) -> None:
    rows = [Row("a", "b", person="ann"), Row("c", "d", person="bo")]
    write_rows(tmp_path / "rows.jsonl", rows, "customer.id")
    read = read_rows(tmp_path / "rows.jsonl", person="customer.id")
    assert [row.person for row in read] == ["ann", "bo"]
    assert read == rows
    with pytest.raises(ConfigError, match="field of its own"):
        write_rows(tmp_path / "rows.jsonl", rows, "answer")


def test_persons_in_words() -> None:
    persons = Persons(((0, 1, 2), (3,), (4, 5, 6, 7, 8, 9)), most=4)
    assert str(persons) == (
        "3 persons of 1 to 6 rows (median 3), at most 4 of each in a step: 2 of 10 rows are beyond that"
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Sixty persons of one to five rows each, two labels."""
    rows = [
        visit(f"p{person}", 10 * person + number) | {"ward": "AB"[person % 2]}
        for person in range(60)
        for number in range(1 + person % 5)
    ]
    return jsonl(tmp_path / "visits.jsonl", rows)


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards", "natural"])
def test_a_person_is_at_one_organization(source: Path, partition: Any) -> None:
    config = SimulationConfig(
        task=TaskSection(source=(str(source),), public=0.2),
        unit="patient",
        organizations=2,
        allow_two=True,
        partition=partition,
        by="ward",
        batch=4,
        rows=0,
        transformer="none",
    )
    assert config.task.group == ("patient",)
    data = federation_data(config.task, config, 2, 4, 0, config.person)
    holders = [{row.person for row in one.train} for one in data.organizations]
    assert holders[0]
    assert holders[1]
    assert not holders[0] & holders[1]
    tested = {example.row.person for one in data.organizations for example in one.examples}
    public = {row.person for row in data.public}
    assert not (holders[0] | holders[1]) & (tested | public)
    for one in data.organizations:  # all rows of a person or none
        for person in {row.person for row in one.train}:
            assert sum(row.person == person for row in one.train) == 1 + int(str(person)[1:]) % 5


def test_which_rows_are_public_does_not_hang_on_the_unit(source: Path) -> None:
    """Who prepared without knowing the unit has not seen a private row."""
    for format in ("auto", "text"):
        task = TaskSection(source=(str(source),), group=("patient",), format=format, window=8)  # type: ignore[arg-type]
        plain, persons = read_task_rows(str(source), task), read_task_rows(str(source), task, person="patient")
        if format == "auto":
            assert [one.row for one in plain.public] == [one.row for one in persons.public]
        assert all(one.row.person for one in persons.private)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"unit": "patient"}, "house-rules are drawn"),
        ({"unit": ""}, "unit"),
        ({"rows_per_person": 0}, "rows_per_person"),
    ],
    ids=["drawn rows", "no name", "no rows"],
)
def test_units_that_can_not_be(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(SimulationConfig, values, lambda key: key)


def test_a_person_is_not_told_apart_in_a_federation_without_unit(source: Path) -> None:
    task = TaskSection(source=(str(source),), public=0.2)
    data = federation_data(task, SharingOut(rows=0), 3, 4, 0)
    assert {row.person for one in data.organizations for row in one.train} == {None}
    assert DataSection(train=source).train == source
