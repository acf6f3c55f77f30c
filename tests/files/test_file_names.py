"""Names of files stand in `gradtf_fl.file_names` and nowhere else in the product."""

from __future__ import annotations

import ast
from pathlib import Path

from gradtf_fl import file_names

REPOSITORY = Path(__file__).resolve().parents[2]


def test_each_name_is_written_once() -> None:
    values = [value for value in vars(file_names).values() if isinstance(value, str)]
    names = {value for value in values if "." in value and not value.startswith("gradtf_fl")} - {file_names.__doc__}
    assert {"organization.toml", "identity.key", "server.toml"} <= names
    found = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {node.value}"
        for package in ("gradtf_fl", "clients", "strategies")
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        if path != Path(file_names.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not found, found
