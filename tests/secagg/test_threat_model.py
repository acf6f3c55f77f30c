"""docs/threat-model.md cannot rot: what it names exists, and every test of a row plays with the row's exceptions."""

from __future__ import annotations

import ast
import itertools
import re
from functools import cache
from pathlib import Path

import pytest

from gradtf_fl import errors, round_messages
from gradtf_fl.secagg import violations

REPOSITORY = Path(__file__).parent.parent.parent
NO_EXCEPTIONS = {"SecureAverage"}  # other classes that the page names
PAGE = (REPOSITORY / "docs" / "threat-model.md").read_text()


def backticked(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def named_exceptions(text: str) -> list[str]:
    names = (name for name in backticked(text) if re.fullmatch(r"([A-Z][a-z0-9]*)+", name))
    return [name for name in names if name not in NO_EXCEPTIONS]


def named_tests(text: str) -> list[str]:
    return [name for name in backticked(text) if name.startswith("test_")]


def attacks() -> dict[str, str]:
    """Rows of the table of attacks, by what the attack is called."""
    table = PAGE.split("\n## Attacks\n")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    return {row.split("|")[1].strip(): row for row in rows}


@cache
def sources_of_tests() -> dict[str, str]:
    """Source, decorators included, of every test function under tests/, by name; those that classes share, too."""
    found: dict[str, str] = {}
    for path in sorted((REPOSITORY / "tests").rglob("*.py")):
        lines = path.read_text().splitlines()
        body = ast.parse("\n".join(lines)).body
        for node in itertools.chain(body, *(node.body for node in body if isinstance(node, ast.ClassDef))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                found[node.name] = found.get(node.name, "") + "\n".join(lines[start - 1 : node.end_lineno])
    return found


def test_every_exception_on_the_page_exists() -> None:
    names = named_exceptions(PAGE)
    assert len(set(names)) > 20
    for name in names:
        found = next((vars(room)[name] for room in (violations, errors, round_messages) if name in vars(room)), None)
        assert isinstance(found, type), name
        assert issubclass(found, errors.GradtfError), name


def test_every_violation_is_in_the_table() -> None:
    table = set(named_exceptions("".join(attacks().values())))
    defined = {
        name
        for name, value in vars(violations).items()
        if isinstance(value, type) and value.__module__ == violations.__name__
    }
    assert defined - table == {"ProtocolViolation"}  # the base of them all is never raised


def test_every_test_on_the_page_exists() -> None:
    missing = [name for name in named_tests(PAGE) if name not in sources_of_tests()]
    assert missing == []


@pytest.mark.parametrize("attack", attacks())
def test_a_rows_tests_expect_its_exceptions(attack: str) -> None:
    row = attacks()[attack]
    played = "".join(sources_of_tests()[name] for name in named_tests(row))
    assert played
    for name in named_exceptions(row):
        assert re.search(rf"\b{name}\b", played), f"no test of this row expects {name}"


def test_every_path_on_the_page_exists() -> None:
    paths = [name for name in backticked(PAGE) if "/" in name]
    modules = re.findall(r"`python -m ([a-z_.]+)", PAGE)
    assert paths
    assert modules
    for path in [*paths, *(module.replace(".", "/") + ".py" for module in modules)]:
        assert (REPOSITORY / path).exists(), path
