"""What the tree imports: private names of Flower in one module a side, and nothing that is not declared."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CODE = ("gradtf_fl", "strategies", "clients", "experiments")
PUBLIC = {"flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
"""The modules of Flower's API reference, without those it calls legacy (client, common, server, simulation)."""
PRIVATE = {f"{side}/flower_private.py" for side in ("strategies", "clients", "experiments/bench", "tests")}
LAZY_EXTRAS = {
    "ray": "ray",
    "mlflow": "tracking",
    "tensorboard": "tracking",
    "wandb": "tracking",
    "gguf": "gguf",
    "llama_cpp": "llama-cpp",
    "tokenizers": "real-model",
    "fpdf": "pdf",
}
"""Modules that an extra brings, by the extra's name: imported inside a function only."""


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Absolute module names that a file imports, ``import_module("...")`` included; whether inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
            if node.module == "flwr":  # from flwr import common
                names = [f"flwr.{alias.name}" for alias in node.names if not alias.name.startswith("__")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "importorskip")):
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        else:
            continue
        yield from ((name, id(node) in inside) for name in names)


def files(*folders: str) -> Iterator[tuple[str, Path]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path


def distributions(extra: str) -> set[str]:
    """Names of the distributions that pyproject.toml asks for: ``"run"`` or an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] if extra == "run" else project["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(line).name) for line in wanted}


@cache
def owner(module: str) -> str:
    """The distribution that a top-level module comes from."""
    return canonicalize_name(owners().get(module, [module])[0])


@cache
def owners() -> Mapping[str, list[str]]:
    return packages_distributions()


@cache
def ours() -> frozenset[str]:
    """Top-level names of this repository, those that pytest puts on the path of a test room included."""
    rooms = {path.parent.name for path in (ROOT / "tests").rglob("*.py")}
    return frozenset({*CODE, "tests", *rooms, *(path.stem for path in (ROOT / "tests").rglob("*.py"))})


def undeclared(folder: str, *extras: str) -> set[tuple[str, str]]:
    """Files of ``folder`` and the distributions that they import without pyproject.toml naming them."""
    declared = {name for extra in ("run", *extras) for name in distributions(extra)}
    found = set()
    for name, path in files(folder):
        for module, inside in imports(path):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top in ours() or (inside and top in LAZY_EXTRAS):
                continue
            if owner(top) not in declared:
                found.add((name, top))
    return found


def test_private_names_of_flower_are_in_one_module_a_side() -> None:
    found = {
        (name, module)
        for name, path in files(*CODE, "tests")
        for module, _ in imports(path)
        if module.partition(".")[0] == "flwr" and module not in PUBLIC
    }
    assert {name for name, _ in found} == PRIVATE, sorted(found)


def test_the_sides_do_not_import_each_others_private_names() -> None:
    for side, other in (("clients", "strategies"), ("strategies", "clients")):
        for name, path in files(side):
            assert f"{other}.flower_private" not in {module for module, _ in imports(path)}, name


def test_private_fields_of_flower_are_set_there_only() -> None:
    for name, path in files(*CODE, "tests"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert "_message_id" not in texts or name in PRIVATE or path == Path(__file__), name


@pytest.mark.parametrize("folder", CODE)
def test_every_import_is_declared(folder: str) -> None:
    assert undeclared(folder, *(["examples", "docs"] if folder == "experiments" else [])) == set()


def test_every_import_of_a_test_is_declared() -> None:
    assert undeclared("tests", "dev") == set()
