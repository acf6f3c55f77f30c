"""Own columns: a row's fields, named by dots, put into templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradtf_fl.config import pieces_of, placeholders
from gradtf_fl.tasks.reading import MalformedRow


def value_at(document: Mapping[str, Any], path: str) -> str:
    """The field ``path`` as text: a name, or names and places in lists joined by dots (``meta.tags.0``).

    A field whose own name holds dots goes first. MalformedRow without one, or neither text nor a number.
    """
    value: Any = document
    for part in (path,) if path in document else path.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise MalformedRow(f"has no {path!r}") from None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise MalformedRow(f"{path!r} is neither text nor a number")
    return str(value)


def rendered(template: str, values: Mapping[str, str], paths: bool = False) -> str:
    """The template with its placeholders' values; ``paths`` as `pieces_of` has it."""
    return "".join(literal + (values[name] if name is not None else "") for literal, name in pieces_of(template, paths))


def rendered_fields(template: str, fields: Mapping[str, Any]) -> str:
    """The template with the fields that it names. MalformedRow as `value_at`."""
    return rendered(template, {name: value_at(fields, name) for name in placeholders(template, paths=True)}, paths=True)
