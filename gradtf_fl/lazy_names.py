"""Faces: a package's public names, each imported from its module when it is first used.

A face lists its names once, under ``if TYPE_CHECKING``, where type checkers and editors read them::

    if TYPE_CHECKING:
        from gradtf_fl.privacy.ledger.ledger import Ledger
    else:
        __getattr__, __dir__ = lazy_names(__name__)

    __all__ = ["Ledger"]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` (PEP 562) of ``package``, whose source names where its names come from."""
    homes = _homes(package)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        module = homes[name]
        value = import_module(f"{package}.{name}") if module == package else getattr(import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes)


def _homes(package: str) -> dict[str, str]:
    """Module of each name that ``package`` imports for type checkers."""
    spec = sys.modules[package].__spec__
    source = None if spec is None or spec.loader is None else spec.loader.get_source(package)  # type: ignore[attr-defined]
    if source is None:
        raise ImportError(f"{package}: its source is missing; gradtf-fl needs its .py files", name=package)
    found: dict[str, str] = {}
    for statement in ast.parse(source).body:
        if (
            isinstance(statement, ast.If)
            and isinstance(statement.test, ast.Name)
            and statement.test.id == "TYPE_CHECKING"
        ):
            for line in statement.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    found |= {alias.asname or alias.name: line.module for alias in line.names}
    return found
