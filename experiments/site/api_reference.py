"""The library's reference: the public names, each rendered by mkdocstrings from the docstring of the real object."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]
HEAD = """# Library

`from gradtf_fl import ...` gives these names. Each is imported when it is first used, so a secure sum or a ledger needs
no torch. The examples run as tests. [Architecture](../architecture.md) is the map of the rooms behind them.

| room | names |
|---|---|
"""
INTRODUCED = {
    "adapters": "Adapters and base models: what is trained, how it is stored, and its update vector.",
    "baselines": "What a user would pick in place of the Grad-Transformer.",
    "config": "The settings of a simulation and of a server's plan.",
    "curation": "Public rows become shadow sets, and these become tuples of update vectors.",
    "errors": "Exceptions. Each has the exit code that the command line ends with.",
    "flower": "Secure aggregation for any Flower app.",
    "privacy": "Accountants, calibration and the organization's ledger.",
    "secagg": "Secure aggregation as state machines that know no network.",
    "simulation": "A whole federation on this machine.",
    "strategies": "The server's side in Flower.",
    "tasks": "Rows of prompt and answer, and their encoding.",
    "training": "Private fine-tuning.",
    "transformer": "The Grad-Transformer: training, loading, conversion of an adapter.",
}


def api_pages() -> dict[str, str]:
    """An overview, and a page for each room with public names: the site's paths and their text."""
    rooms: dict[str, list[str]] = {}
    for name, face in imported("gradtf_fl").items():
        rooms.setdefault(face, []).append(name)
    pages, rows = {}, []
    for face, names in sorted(rooms.items()):
        room = face.rpartition(".")[2]
        homes = imported(face)
        parts = [f"# {room}", INTRODUCED[room]]
        parts += [f"::: {homes.get(name, face)}.{name}" for name in names]
        pages[f"reference/api/{room}.md"] = "\n\n".join(parts) + "\n"
        links = ", ".join(f"[`{name}`](api/{room}.md#{homes.get(name, face)}.{name})" for name in names)
        rows.append(f"| [{room}](api/{room}.md) | {links} |")
    return {"reference/api.md": HEAD + "\n".join(rows) + "\n"} | pages


def imported(package: str) -> dict[str, str]:
    """Name on a package's face -> module that it is imported from, read from the source."""
    path = PACKAGE / package.replace(".", "/") / "__init__.py"
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.If):
            for line in statement.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    found |= {alias.asname or alias.name: line.module for alias in line.names}
    return found
