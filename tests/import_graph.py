"""The import graph of the product: ``python -m tests.import_graph`` draws it and exits 1 where it breaks a rule.

Rooms and their order come from the ``rooms`` block of docs/architecture.md, lowest first. A room is a module or a
package; the ``__init__.py`` of a package is its face. Imports are read from the source, those for type checkers and
those inside functions too, and an import from a face counts as one of the module where the name is defined.

The rules:
    room      every module lies in a room of the list, and every room of the list exists
    circle    no modules import each other in a circle
    up        a room imports only rooms before it in the list; strategies and clients never import each other; the
              public face is for programs alone, such as the examples
    deep      from another room only what its face names
    own face  inside a room modules are imported directly
    face      ``__all__`` names what stands under ``if TYPE_CHECKING``; no name hides a submodule
    unused    every name on a face is imported by another room, by the public face or by a test
    flower    Flower is imported only where a federation runs
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = "docs/architecture.md"
TOPS = ("gradtf_fl", "strategies", "clients", "experiments")
PUBLIC_FACE = "gradtf_fl"
PROGRAMS = "experiments.examples"  # written as a user writes: it may import the public face
APART = frozenset({"strategies", "clients"})
FLOWER_ROOMS = ("strategies", "clients", "gradtf_fl.simulation", "gradtf_fl.flower", "gradtf_fl.cli", "experiments")


@dataclass(frozen=True)
class Import:
    """One imported thing.

    Attributes:
        importer: module that imports.
        line: line number of the statement.
        target: module or package that is imported, or that the name is taken from.
        name: the name taken from it; empty where the module itself is imported.
        home: module that defines it: ``target``, or where ``target``'s face has the name from.
    """

    importer: str
    line: int
    target: str
    name: str
    home: str


@dataclass(frozen=True)
class Problem:
    """A broken rule (see the module's text), where, and what is wrong."""

    rule: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: {self.what}"


@dataclass(frozen=True)
class Face:
    """A package's names: module that each comes from, and ``__all__`` in its order."""

    homes: Mapping[str, str]
    listed: tuple[str, ...]


@dataclass(frozen=True)
class ImportGraph:
    """The product under ``root``, cut into ``rooms``, lowest first."""

    root: Path
    rooms: tuple[str, ...]

    @classmethod
    def of(cls, root: Path = ROOT) -> ImportGraph:
        """The graph of the tree at ``root``, whose page names the rooms."""
        return cls(root, read_rooms(root / PAGE))

    @cached_property
    def files(self) -> dict[str, Path]:
        """File of each module, packages included."""
        found = {}
        for top in TOPS:
            for path in sorted((self.root / top).rglob("*.py")):
                parts = path.relative_to(self.root).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return found

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """Parsed source of each module."""
        return {module: ast.parse(path.read_text(encoding="utf8")) for module, path in self.files.items()}

    def is_package(self, module: str) -> bool:
        """Whether ``module`` is an ``__init__.py``."""
        return self.files[module].name == "__init__.py"

    @cached_property
    def faces(self) -> dict[str, Face]:
        """Faces of the rooms that are packages, and the public one."""
        packages = [room for room in (PUBLIC_FACE, *self.rooms) if room in self.files and self.is_package(room)]
        return {package: _face(self.trees[package]) for package in packages}

    def room(self, module: str) -> str | None:
        """The room that ``module`` lies in; None outside all."""
        around = [room for room in self.rooms if module == room or module.startswith(f"{room}.")]
        return max(around, key=len, default=None)

    @cached_property
    def imports(self) -> list[Import]:
        """Every import of one module of the product by another."""
        return [one for module, tree in self.trees.items() for one in self.imports_of(module, tree)]

    def imports_of(self, importer: str, tree: ast.Module) -> Iterator[Import]:
        """Imports of the product's modules in ``tree``, the source of ``importer``."""
        package = importer if importer in self.files and self.is_package(importer) else importer.rpartition(".")[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in self.files:
                        yield Import(importer, node.lineno, alias.name, "", alias.name)
            elif isinstance(node, ast.ImportFrom):
                base = _base(package, node)
                for alias in node.names:
                    yield from self._taken(importer, node.lineno, base, alias.name)

    def _taken(self, importer: str, line: int, base: str, name: str) -> Iterator[Import]:
        submodule = f"{base}.{name}"
        face = self.faces.get(base)
        if face is not None and name in face.homes:
            home = face.homes[name]
            yield Import(importer, line, base, name, submodule if home == base else self._home(home, name))
        elif submodule in self.files:
            yield Import(importer, line, submodule, "", submodule)
        elif base in self.files:
            yield Import(importer, line, base, name, base)

    def _home(self, module: str, name: str) -> str:
        """Where ``name`` of ``module`` is defined: a face may have it from another room's face (the public one has)."""
        face = self.faces.get(module)
        return self._home(face.homes[name], name) if face is not None and name in face.homes else module

    # -- the rules ----------------------------------------------------------------------------------------

    def problems(self) -> list[Problem]:
        """Every broken rule."""
        return [
            *self._room_problems(),
            *(Problem("circle", circle[0], " -> ".join([*circle, circle[0]])) for circle in self.circles()),
            *(problem for one in self.imports for problem in self._import_problems(one)),
            *self._face_problems(),
            *self._unused(),
            *self._flower_problems(),
        ]

    def _room_problems(self) -> Iterator[Problem]:
        yield from (
            Problem("room", room, f"{PAGE} lists it, it is not there") for room in self.rooms if not self._is(room)
        )
        for module, tree in self.trees.items():
            around_rooms = any(room.startswith(f"{module}.") for room in self.rooms)
            if self.room(module) is None and not (around_rooms and (module == PUBLIC_FACE or not _says(tree))):
                yield Problem("room", module, f"lies in none; name its room in {PAGE}")

    def _is(self, room: str) -> bool:
        return room in self.files

    def circles(self) -> list[list[str]]:
        """Strongly connected modules, faces left out (Tarjan 1972)."""
        arrows: dict[str, set[str]] = {module: set() for module in self.files if not self.is_package(module)}
        for one in self.imports:
            if one.importer in arrows and one.home in arrows and one.importer != one.home:
                arrows[one.importer].add(one.home)
        return _circles(arrows)

    def _import_problems(self, one: Import) -> Iterator[Problem]:
        where = f"{self.files[one.importer].relative_to(self.root)}:{one.line}"
        source, target = self._side(one.importer), self._side(one.target)
        if source is None or target is None or one.importer == target == source:
            return  # modules outside all rooms are told once; a face has its names from its own modules
        if source == target:
            if one.target == target and one.importer != target and one.name and one.home != f"{target}.{one.name}":
                yield Problem("own face", where, f"imports {one.name or 'it'} from {target}, the room that it is in")
            return
        if target == PUBLIC_FACE:
            if source != PROGRAMS or one.name not in self.faces[PUBLIC_FACE].homes:
                yield Problem("up", where, f"imports {one.name or 'all'} from the public face")
            return
        if self._place(target) > self._place(source):
            yield Problem("up", where, f"{source} imports {target}, which stands above it")
        if {source, target} == APART:
            yield Problem("up", where, f"{source} imports {target}: they know each other by messages alone")
        face = self.faces.get(target)
        if one.target != target:
            yield Problem("deep", where, f"imports {one.target} past the face of {target}")
        elif face is not None and one.name not in face.homes:
            yield Problem("deep", where, f"imports {one.name or 'all'} of {target}, which its face does not name")

    def _side(self, module: str) -> str | None:
        return PUBLIC_FACE if module == PUBLIC_FACE else self.room(module)

    def _place(self, room: str) -> int:
        return len(self.rooms) if room == PUBLIC_FACE else self.rooms.index(room)

    def _face_problems(self) -> Iterator[Problem]:
        for package, face in self.faces.items():
            public = [name for name in face.listed if name != "__version__"]
            if sorted(public) != sorted(face.homes):
                strange = sorted(set(public) ^ set(face.homes)) or ["a name is there twice"]
                yield Problem(
                    "face", package, f"__all__ and the imports for type checkers differ: {', '.join(strange)}"
                )
            for name, home in face.homes.items():
                if home != package and f"{package}.{name}" in self.files:
                    yield Problem("face", package, f"{name} has the name of a submodule, which hides it once imported")

    def _unused(self) -> Iterator[Problem]:
        used = {(one.target, one.name) for one in self.imports if self._side(one.importer) != one.target}
        for path in sorted((self.root / "tests").rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf8"))
            used |= {(one.target, one.name) for one in self.imports_of(f"tests.{path.stem}", tree)}
        for package, face in self.faces.items():
            for name in face.homes if package != PUBLIC_FACE else ():
                if (package, name) not in used:
                    yield Problem("unused", package, f"nobody imports {name} from this face")

    def _flower_problems(self) -> Iterator[Problem]:
        for module, tree in self.trees.items():
            if any(module == room or module.startswith(f"{room}.") for room in FLOWER_ROOMS):
                continue
            for node in ast.walk(tree):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                if any(name.split(".")[0] == "flwr" for name in names):
                    where = f"{self.files[module].relative_to(self.root)}:{node.lineno}"
                    yield Problem("flower", where, "imports Flower outside the rooms where a federation runs")

    # -- the drawing --------------------------------------------------------------------------------------

    @cached_property
    def arrows(self) -> dict[str, list[str]]:
        """Rooms that each room imports, both in the list's order."""
        found: dict[str, set[str]] = {room: set() for room in self.rooms}
        for one in self.imports:
            source, target = self.room(one.importer), self.room(one.target)
            if source is not None and target is not None and source != target and one.importer != PUBLIC_FACE:
                found[source].add(target)
        return {room: sorted(targets, key=self.rooms.index) for room, targets in found.items()}

    def drawing(self) -> str:
        """Rooms in order, each with the rooms that it imports."""
        width = max(map(len, self.rooms))
        return "\n".join(
            f"{room:{width}} -> {', '.join(map(_short, to)) or 'none'}" for room, to in self.arrows.items()
        )

    def figures(self, problems: Sequence[Problem]) -> str:
        """One line of counts."""
        count = {rule: sum(problem.rule == rule for problem in problems) for rule in ("circle", "up", "deep")}
        others = len(problems) - sum(count.values())
        modules = sum(not self.is_package(module) for module in self.files)
        return (
            f"{len(self.rooms)} rooms, {modules} modules, {sum(map(len, self.arrows.values()))} arrows between rooms, "
            f"{count['circle']} circles, {count['up']} up, {count['deep']} deep, {others} other problems"
        )


def read_rooms(page: Path) -> tuple[str, ...]:
    """First word of each line in ``page``'s block with the info string ``rooms``; ValueError without the block."""
    _, fence, after = page.read_text(encoding="utf8").partition("\n```rooms\n")
    block, end, _ = after.partition("\n```")
    if not (fence and end):
        raise ValueError(f"{page}: no block with the info string rooms")
    return tuple(line.split()[0] for line in block.splitlines() if line.strip())


def _face(tree: ast.Module) -> Face:
    homes: dict[str, str] = {}
    listed: tuple[str, ...] = ()
    for node in tree.body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    homes |= {alias.asname or alias.name: line.module for alias in line.names}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            listed = tuple(ast.literal_eval(node.value))
    return Face(homes, listed)


def _says(tree: ast.Module) -> bool:
    """Whether a module holds more than its docstring."""
    return len(tree.body) > (ast.get_docstring(tree) is not None)


def _base(package: str, node: ast.ImportFrom) -> str:
    """Absolute name of what an import statement in ``package`` takes names from."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _short(room: str) -> str:
    return room.removeprefix("gradtf_fl.")


def _circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    place: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        place[module] = low[module] = len(place)
        stack.append(module)
        for target in sorted(arrows[module]):
            if target not in place:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], place[target])
        if low[module] == place[module]:
            circle = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(circle) > 1:
                found.append(circle)

    for module in arrows:
        if module not in place:
            visit(module)
    return found


def main() -> int:
    graph = ImportGraph.of()
    problems = graph.problems()
    print(graph.drawing())
    for problem in problems:
        print(problem)
    print(graph.figures(problems))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
