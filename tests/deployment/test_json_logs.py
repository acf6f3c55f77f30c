"""Log lines: nothing private gets into one, none is lost, none spoils another."""

from __future__ import annotations

import fcntl
import json
import math
import os
import stat
import subprocess
import sys
from datetime import datetime
from enum import Enum, StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtf_fl.deployment.json_logs import WITHHELD, WORDS, JsonLog, last_lines, read_lines
from gradtf_fl.errors import RoundAborted
from gradtf_fl.round_messages import Refusal

ROOT = Path(__file__).parents[2]
PRIVATE = [
    "what a patient wrote",
    "Alzheimer",  # a row's answer may be one short word, or a number
    "42",
    "+49-170-1234567",
    "1234567890123456",
    "/srv/hospital/rows/patients.jsonl",
    "patients.jsonl",
    "..",
    "KeyError('Anna')",
    "127.0.0.1:9092/rows",
    "0a1b2c3d",
    "F" * 64,
    "f" * 63,
    "advertise\n",
    "äöü",
]


def written(folder: Path, **fields: object) -> dict[str, object]:
    """The one line that ``fields`` become."""
    path = folder / "events.jsonl"
    path.unlink(missing_ok=True)
    JsonLog(path, "server").write("test", **fields)
    (line,) = path.read_text(encoding="utf-8").splitlines()
    document: dict[str, object] = json.loads(line)
    return document


def test_a_line(tmp_path: Path) -> None:
    line = written(tmp_path, round=3, stage="mask", seconds=1.5, again=False, organization="a" * 64, why=None)
    when = str(line.pop("time"))
    assert when.endswith("Z")
    assert len(when) == len("2026-01-01T00:00:00.000Z")
    assert datetime.fromisoformat(when).tzinfo is not None
    assert line == {
        "component": "server",
        "event": "test",
        "round": 3,
        "stage": "mask",
        "seconds": 1.5,
        "again": False,
        "organization": "a" * 64,
        "why": None,
    }
    assert stat.S_IMODE((tmp_path / "events.jsonl").stat().st_mode) == 0o600


@pytest.mark.parametrize("text", PRIVATE)
def test_private_text_is_withheld(tmp_path: Path, text: str) -> None:
    line = written(tmp_path, detail=text, stage="mask")
    assert (line["detail"], line["stage"], line["withheld"]) == (WITHHELD, "mask", 1)


@given(text=st.text(max_size=200) | st.from_regex(r"\A[A-Za-z0-9._:+/-]{1,128}\Z"))
def test_no_text_but_words_and_digests_gets_through(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    line = written(tmp_path_factory.getbasetemp(), detail=text)
    digest = len(text) in (32, 64) and set(text) <= set("0123456789abcdef")
    version = text.count(".") == 2 and all(part.isascii() and part.isdigit() for part in text.split("."))
    address = text.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")
    if text in WORDS:
        assert line["detail"] == text
    elif line["detail"] != WITHHELD:
        assert digest or version or address
    else:
        assert line["withheld"] == 1


@given(name=st.text(min_size=1, max_size=80), value=st.integers())
def test_field_names_are_no_way_round(tmp_path_factory: pytest.TempPathFactory, name: str, value: int) -> None:
    line = written(tmp_path_factory.getbasetemp(), **{name: value})
    assert set(line) - {"time", "component", "event", "withheld"} <= {name}
    assert all(character in "abcdefghijklmnopqrstuvwxyz0123456789_.-" for key in line for character in key)
    assert line["event"] == "test"
    assert line["component"] == "server"


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    text_as_number = int.from_bytes(b"what a patient wrote", "big")
    line = written(tmp_path, small=2**53 - 1, large=2**53, text=text_as_number, nan=math.nan, infinite=math.inf)
    assert (line["small"], line["nan"], line["infinite"]) == (2**53 - 1, None, None)
    assert (line["large"], line["text"], line["withheld"]) == (WITHHELD, WITHHELD, 2)


def test_what_the_source_wrote_is_a_word(tmp_path: Path) -> None:
    class Kind(StrEnum):
        NEW = "brand-new"
        TEXT = "a text"

    class Level(Enum):
        HIGH = 3

    line = written(tmp_path, code=Refusal.POLICY, error=RoundAborted, kind=Kind.NEW, text=Kind.TEXT, level=Level.HIGH)
    assert (line["code"], line["error"], line["kind"]) == ("policy", "RoundAborted", "brand-new")
    assert (line["text"], line["level"]) == (WITHHELD, WITHHELD)


@pytest.mark.parametrize("value", [b"row", ["row"], {"row": 1}, ValueError("row"), Path("/rows"), int])
def test_other_types_are_withheld(tmp_path: Path, value: object) -> None:
    assert written(tmp_path, detail=value)["detail"] == WITHHELD


def test_a_caller_may_name_more_words(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log", "server", words=["st-anna"])
    log.write("joined", organization="st-anna")
    log.write("joined", organization="st-bertha")
    assert [line["organization"] for line in read_lines(log.path)] == ["st-anna", WITHHELD]
    assert log.withheld == 1


def test_events_and_components_are_names(tmp_path: Path) -> None:
    JsonLog(tmp_path / "log", "a patient").write("wrote: pain")
    (line,) = read_lines(tmp_path / "log")
    assert (line["component"], line["event"], line["withheld"]) == (WITHHELD, WITHHELD, 1)


def test_old_files_are_renamed_and_few_are_kept(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log", "server", max_bytes=1000, kept=3)
    for number in range(90):
        log.write("test", number=number)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["log", "log.1", "log.2", "log.3"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())
    numbers = [line["number"] for line in read_lines(log.path, kept=3)]
    assert numbers == list(range(numbers[0], 90))  # the newest, in order, without a gap
    assert 10 < len(numbers) < 90


def test_whoever_cannot_rename_appends(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log", "server", max_bytes=200)
    for number in range(2):
        log.write("test", number=number)
    with log.path.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        log.write("test", number=2)
        assert [path.name for path in tmp_path.iterdir()] == ["log"]
    log.write("test", number=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert [line["number"] for line in read_lines(log.path)] == [0, 1, 2, 3]


def test_a_file_is_renamed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process renames it between our look at its size and our lock."""
    log = JsonLog(tmp_path / "log", "server", max_bytes=200)
    for number in range(2):
        log.write("test", number=number)

    def late(descriptor: int, how: int) -> None:
        log.path.rename(tmp_path / "log.1")
        log.path.write_text('{"number": 2}\n')

    monkeypatch.setattr("gradtf_fl.deployment.json_logs.fcntl.flock", late)
    log.write("test", number=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert [line["number"] for line in read_lines(log.path)] == [0, 1, 2, 3]


def test_several_processes_lose_no_line(tmp_path: Path) -> None:
    """Four processes, 250 lines each, while files are renamed under them."""
    code = (
        "import sys; from pathlib import Path; from gradtf_fl.deployment.json_logs import JsonLog\n"
        f"log = JsonLog(Path({str(tmp_path / 'log')!r}), 'worker', max_bytes=10_000, kept=50)\n"
        "for number in range(250): log.write('test', writer=int(sys.argv[1]), number=number)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)], env=environment, cwd=ROOT) for n in range(4)]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    assert len(list(tmp_path.iterdir())) > 5
    lines = read_lines(tmp_path / "log", kept=50)
    assert sorted((line["writer"], line["number"]) for line in lines) == [(w, n) for w in range(4) for n in range(250)]


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log", "server")
    log.write("test", number=1)
    with log.path.open("a") as file:
        file.write('{"event": "te')
    log.write("test", number=2)
    assert [line["number"] for line in read_lines(log.path)] == [1, 2]
    assert [line["number"] for line in read_lines(log.path, event="other")] == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="log"):
        JsonLog(tmp_path / "log", "server").write("test")
    assert not (tmp_path / "elsewhere").exists()


def test_the_last_lines_of_a_long_log_are_read_from_its_end(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log", "server")
    for number in range(50):
        log.write("counted", number=number)
    assert [line["number"] for line in last_lines(log.path, 3)] == [47, 48, 49]
    assert [line["number"] for line in last_lines(log.path, 100)] == list(range(50))
    size = len(log.path.read_bytes().splitlines()[-1]) + 1
    for more in (0, 5, size - 1):
        assert [line["number"] for line in last_lines(log.path, 100, block=3 * size + more)] == [47, 48, 49]
    with log.path.open("a") as file:
        file.write('{"torn": ')
    assert [line["number"] for line in last_lines(log.path, 2)] == [49]
    assert last_lines(tmp_path / "none", 3) == []
