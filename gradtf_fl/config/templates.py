"""Templates of text: names of fields in braces, ``{{`` and ``}}`` for braces."""

from __future__ import annotations

import string

Piece = tuple[str, str | None]  # literal text, then the placeholder after it


def pieces_of(template: str, paths: bool = False) -> list[Piece]:
    """A template as (literal text, placeholder or None) pairs.

    Args:
        paths: a placeholder may be any name of a field, nested by dots: ``{meta.tags.0}``.

    Raises:
        ValueError: not a template, or a placeholder is more than a name.
    """
    pieces: list[Piece] = []
    for literal, name, spec, conversion in string.Formatter().parse(template):
        sound = name is None or (bool(name.strip()) if paths else name.isidentifier())
        if not sound or spec or conversion:
            raise ValueError(f"{{{name}}}: a placeholder is a name in braces and nothing else")
        pieces.append((literal, name))
    return pieces


def placeholders(template: str, paths: bool = False) -> list[str]:
    """The placeholders of a template, in order, each once. ValueError as `pieces_of`."""
    return list(dict.fromkeys(name for _, name in pieces_of(template, paths) if name is not None))
