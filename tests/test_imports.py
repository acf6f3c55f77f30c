"""The import graph of the product breaks no rule, and the checker finds each kind of break in a small tree."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.import_graph import PAGE, ROOT, ImportGraph, read_rooms

GRAPH = ImportGraph.of()

FACE = """
from typing import TYPE_CHECKING
from gradtf_fl.lazy_names import lazy_names
if TYPE_CHECKING:
    from gradtf_fl.{room}.{module} import {name}
else:
    __getattr__, __dir__ = lazy_names(__name__)
__all__ = ["{name}"]
"""
SOUND = {
    "gradtf_fl/__init__.py": "",
    "gradtf_fl/lazy_names.py": "lazy_names = None",
    "gradtf_fl/low/__init__.py": FACE.format(room="low", module="first", name="one"),
    "gradtf_fl/low/first.py": "one = 1",
    "gradtf_fl/low/second.py": "from gradtf_fl.low.first import one",
    "gradtf_fl/high/__init__.py": FACE.format(room="high", module="top", name="two"),
    "gradtf_fl/high/top.py": "from gradtf_fl.low import one\ntwo = 2",
    "strategies/__init__.py": "from gradtf_fl.high import two\nimport flwr",
    "clients/__init__.py": "",
    "experiments/examples/__init__.py": "",
}
PUBLIC = {"gradtf_fl/__init__.py": FACE.replace("gradtf_fl.{room}.{module}", "gradtf_fl.high").format(name="two")}
ROOMS = ("gradtf_fl.lazy_names", "gradtf_fl.low", "gradtf_fl.high", "strategies", "clients", "experiments.examples")


def found(folder: Path, changes: dict[str, str]) -> list[tuple[str, str]]:
    """(rule, where) of each problem in the sound tree with ``changes``."""
    page = "# Architecture\n\n```rooms\n" + "".join(f"{room}  what it is for\n" for room in ROOMS) + "```\n"
    for name, text in {**SOUND, PAGE: page, **changes}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [(problem.rule, problem.where) for problem in ImportGraph.of(folder).problems()]


def test_the_product_breaks_no_rule() -> None:
    problems = GRAPH.problems()
    assert not problems, "\n".join(map(str, problems))


def test_the_script_draws_every_room_and_its_exit_code_says_whether_all_is_well() -> None:
    run = subprocess.run([sys.executable, "-m", "tests.import_graph"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    *drawn, figures = run.stdout.splitlines()
    assert [line.split()[0] for line in drawn] == list(GRAPH.rooms)
    assert figures.endswith("0 circles, 0 up, 0 deep, 0 other problems")
    assert sum(len(line.partition("-> ")[2].split(", ")) for line in drawn if "-> none" not in line) == sum(
        map(len, GRAPH.arrows.values())
    )


@pytest.mark.parametrize("room", sorted(GRAPH.faces))
def test_every_name_on_a_face_resolves_and_is_listed(room: str) -> None:
    face = import_module(room)
    for name in face.__all__ if hasattr(face, "__all__") else ():
        assert getattr(face, name) is not None, name
        assert name in dir(face)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = face.nonsense


def test_a_sound_tree_has_no_problem(tmp_path: Path) -> None:
    assert found(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"gradtf_fl/low/first.py": "def late():\n    from gradtf_fl.low import second\none = 1"},
            [("circle", "gradtf_fl.low.first")],
        ),
        (
            {
                "gradtf_fl/low/first.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
                "    from gradtf_fl.high import two\none = 1"
            },
            [("circle", "gradtf_fl.high.top"), ("up", "gradtf_fl/low/first.py:3")],
        ),
        ({"gradtf_fl/low/third.py": "from gradtf_fl.high import two"}, [("up", "gradtf_fl/low/third.py:1")]),
        ({"gradtf_fl/low/third.py": "from gradtf_fl import two"}, [("up", "gradtf_fl/low/third.py:1")]),
        ({**PUBLIC, "clients/one.py": "from gradtf_fl import two"}, [("up", "clients/one.py:1")]),
        ({**PUBLIC, "experiments/examples/one.py": "from gradtf_fl import two"}, []),
        (
            {**PUBLIC, "experiments/examples/one.py": "from gradtf_fl import three"},
            [("up", "experiments/examples/one.py:1")],
        ),
        (
            {"clients/__init__.py": "import strategies"},
            [("up", "clients/__init__.py:1"), ("deep", "clients/__init__.py:1")],
        ),
        ({"gradtf_fl/high/more.py": "from gradtf_fl.low.first import one"}, [("deep", "gradtf_fl/high/more.py:1")]),
        ({"gradtf_fl/high/more.py": "import gradtf_fl.low.first"}, [("deep", "gradtf_fl/high/more.py:1")]),
        ({"gradtf_fl/high/more.py": "from ..low import first"}, [("deep", "gradtf_fl/high/more.py:1")]),
        ({"gradtf_fl/high/more.py": "from gradtf_fl.low import hidden"}, [("deep", "gradtf_fl/high/more.py:1")]),
        (
            {"gradtf_fl/__init__.py": "def late():\n    from gradtf_fl.low.first import one"},
            [("deep", "gradtf_fl/__init__.py:2")],
        ),
        ({"gradtf_fl/low/second.py": "from . import one"}, [("own face", "gradtf_fl/low/second.py:1")]),
        (
            {
                "gradtf_fl/low/__init__.py": FACE.format(room="low", module="first", name="one").replace(
                    '["one"]', '["one", "none"]'
                )
            },
            [("face", "gradtf_fl.low")],
        ),
        (
            {
                "gradtf_fl/low/__init__.py": FACE.format(room="low", module="first", name="second"),
                "gradtf_fl/low/first.py": "second = 1",
                "gradtf_fl/high/top.py": "from gradtf_fl.low import second\ntwo = 2",
            },
            [("face", "gradtf_fl.low")],
        ),
        ({"gradtf_fl/high/top.py": "two = 2"}, [("unused", "gradtf_fl.low")]),
        ({"gradtf_fl/high/top.py": "two = 2", "tests/test_low.py": "from gradtf_fl.low import one"}, []),
        ({"gradtf_fl/low/third.py": "from flwr.app import Message"}, [("flower", "gradtf_fl/low/third.py:1")]),
        ({"gradtf_fl/attic.py": ""}, [("room", "gradtf_fl.attic")]),
    ],
)
def test_each_kind_of_break_is_found(changes: dict[str, str], expected: list[tuple[str, str]], tmp_path: Path) -> None:
    assert found(tmp_path, changes) == expected


def test_a_page_must_list_rooms_that_are_there(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```rooms\n```")
    with pytest.raises(ValueError, match="no block"):
        read_rooms(page)
    listed = "\n```rooms\n" + "\n".join([*ROOMS, "gradtf_fl.nowhere"]) + "\n```\n"
    assert found(tmp_path, {PAGE: listed}) == [("room", "gradtf_fl.nowhere")]
