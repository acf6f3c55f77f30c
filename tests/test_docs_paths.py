"""Pages cannot point at what is gone: every path, module, link, name and make target that one names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("gradtf_fl", "strategies", "clients", "experiments")
TOP = (*PACKAGES, "tests", "docs", "deploy")
PAGES = sorted(
    [
        *(page for page in REPOSITORY.glob("*.md") if page.name != "CHANGELOG.md"),  # it names what was, too
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / ".github").rglob("*.md"),
        REPOSITORY / "deploy" / "README.md",
        REPOSITORY / "experiments" / "results" / "README.md",
        REPOSITORY / "tests" / "vectors" / "secagg" / "README.md",
    ]
)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))

PATH = re.compile(rf"(?<![\w/.-])(?:{'|'.join(TOP)})/[\w.*/-]*[\w*/]")
NAME = re.compile(rf"(?<![\w/.-])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+(?![\w/])")
RUN = re.compile(r"python3? (?:-W ignore )?-m ([A-Za-z_][\w.]*)")
MAKE = r"make (?:PYTHON=\S+ )?([a-z-]+)"
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACEHOLDER = re.compile(r"(?<![A-Za-z])[A-Z]{3,}(?![A-Za-z])")  # gradtf_fl.ROOM, gradtf_fl/cli/VERB.py
SOURCE = re.compile(r"\.(?:py|sh|md|toml|json|txt|png|html|safetensors)$")


def there(path: str) -> bool:
    """Whether the repository has ``path``: a file, a folder, a pattern, or the stem of written files."""
    path = path.rstrip("/")
    found = (REPOSITORY / path).exists() or any(REPOSITORY.glob(path))
    return found or (not SOURCE.search(path) and any(REPOSITORY.glob(f"{path}.*")))


@cache
def bound_names(path: Path) -> frozenset[str]:
    """What a module defines or imports, at its top and under ``if TYPE_CHECKING``; of classes, their members too."""
    names: set[str] = set()

    def collect(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names.update(alias.asname or alias.name for alias in node.names)
            elif isinstance(node, ast.AnnAssign):
                names.update(name.id for name in ast.walk(node.target) if isinstance(name, ast.Name))
            elif isinstance(node, ast.Assign):
                names.update(
                    name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)
                )
            if isinstance(node, ast.ClassDef | ast.If | ast.Try):
                collect(node.body)

    collect(ast.parse(path.read_text()).body)
    return frozenset(names)


def module_file(parts: list[str], root: Path = REPOSITORY) -> Path | None:
    """Source file of a module or package, None where there is none."""
    place = root.joinpath(*parts)
    if place.with_suffix(".py").is_file():
        return place.with_suffix(".py")
    return place / "__init__.py" if (place / "__init__.py").is_file() else None


def means_something(dotted: str) -> bool:
    """Whether ``a.b.c`` is a module, or a name (or a member of a name) in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        source = module_file(parts[:length])
        if source is not None:
            return set(parts[length:]) <= bound_names(source)
    return False


@every_page
def test_paths_exist(page: Path) -> None:
    named = [path for path in PATH.findall(page.read_text()) if not PLACEHOLDER.search(path)]
    assert sorted({path for path in named if not there(path)}) == []


@every_page
def test_dotted_names_exist(page: Path) -> None:
    named = [name for name in NAME.findall(page.read_text()) if not PLACEHOLDER.search(name)]
    assert sorted({name for name in named if not means_something(name)}) == []


@every_page
def test_modules_that_a_page_runs_can_be_run(page: Path) -> None:
    broken = []
    for name in set(RUN.findall(page.read_text())) - {"pytest", "venv", "pip"}:
        parts = name.rstrip(".").split(".")
        source = module_file(parts) or module_file(parts, REPOSITORY / "tests")  # a page may say: run in tests/
        if PLACEHOLDER.search(name):
            continue
        if source is None or '__name__ == "__main__"' not in source.read_text():
            broken.append(name)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as repository hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@every_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    fenced = "\n".join(re.findall(r"^```[^\n]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    named = re.findall(r"`" + MAKE, page.read_text()) + re.findall(r"^" + MAKE, fenced, re.MULTILINE)
    assert sorted(set(named) - targets) == []
