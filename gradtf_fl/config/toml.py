"""TOML files, read and written. Written ones explain each key in a comment, from the schema's own docstrings."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from gradtf_fl.config.base import M, validate
from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    from tomlkit import TOMLDocument
    from tomlkit.items import Item, Table

LONG_LIST = 3  # entries; from then on each stands on its own line


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def load_toml(model: type[M], path: Path) -> M:
    """``model`` from a TOML file; raises `ConfigError` with every problem, each naming file and key."""
    return validate(model, read_toml(path), lambda key: f"{path}: {key}" if key else str(path))


def to_toml(values: BaseModel) -> str:
    """``values`` as TOML that `load_toml` reads back equal.

    Every key is in it, below a line that explains it. One that is not set (None) is commented out; a table that is not
    set is left out.
    """
    import tomlkit

    document = tomlkit.document()
    _fill(document, values)
    return tomlkit.dumps(document)


def tables_to_toml(tables: Mapping[str, BaseModel], leave_out: Collection[str] = ()) -> str:
    """`to_toml` of a file with these tables and nothing else, without the keys of ``leave_out``."""
    import tomlkit

    document = tomlkit.document()
    for name, values in tables.items():
        _add_table(document, name, type(values), values.model_dump(mode="json", exclude=set(leave_out)))
    return tomlkit.dumps(document)


def with_values(text: str, model: type[BaseModel], changes: Mapping[str, Mapping[str, Any]]) -> str:
    """TOML ``text`` with other values in some tables; comments, order and layout stay as somebody wrote them.

    A table or key that ``text`` lacks is added, with its comment. A key that has its value already is not touched.

    Args:
        text: TOML in which every name of ``changes`` is a table, if it is there.
        model: schema of the file.
        changes: table -> key -> plain value.
    """
    import tomlkit
    from tomlkit.items import Table

    document = tomlkit.parse(text)
    for name, values in changes.items():
        section = _section(model, name)
        if name not in document:
            _add_table(document, name, section, values)
            continue
        table: Any = document[name]
        about = descriptions(section)
        for key, value in values.items():
            if key in table:
                if table[key] != value:
                    table[key] = item_of(value)
                continue
            if isinstance(table, Table) and about.get(key):
                table.add(tomlkit.comment(about[key]))
            table[key] = item_of(value)
    return tomlkit.dumps(document)


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """What each key is for, as one line: the ``Attributes`` in the docstrings of ``model`` and its bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        listed = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")[2].partition("\n\n")[0]
        for entry in re.split(r"\n(?=    \w)", "\n" + listed)[1:]:
            name, _, text = entry.partition(":")
            found[name.strip()] = _plain(text)
    return found


def _summary(model: type[BaseModel]) -> str:
    """The first paragraph of the docstring, without the ``[table]`` that it starts with."""
    first = inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0]
    return _plain(re.sub(r"^``\[\w+\]``[:.]\s*", "", first))


def _plain(text: str) -> str:
    line = " ".join(text.replace("`", "").split())
    return line[:1].upper() + line[1:]


def _section(model: type[BaseModel], name: str) -> type[BaseModel]:
    """The model of the table ``name``, which may be optional."""
    annotation = model.model_fields[name].annotation
    (section,) = [one for one in (annotation, *get_args(annotation)) if _is_section(one)]
    assert isinstance(section, type)
    return section


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _fill(document: TOMLDocument, values: BaseModel) -> None:
    import tomlkit

    model, plain = type(values), values.model_dump(mode="json")
    tables = {name: getattr(values, name) for name in plain if isinstance(getattr(values, name), BaseModel)}
    absent = [
        name
        for name, field in model.model_fields.items()
        if plain[name] is None and any(map(_is_section, get_args(field.annotation)))
    ]
    document.add(tomlkit.comment(_summary(model)))
    document.add(tomlkit.nl())
    _fill_table(document, model, {name: plain[name] for name in plain if name not in (*tables, *absent)})
    for name, section in tables.items():
        _add_table(document, name, type(section), plain[name])


def _add_table(document: TOMLDocument, name: str, model: type[BaseModel], values: Mapping[str, Any]) -> None:
    import tomlkit

    if document.body:
        document.add(tomlkit.nl())
    if about := _summary(model):
        document.add(tomlkit.comment(about))
    table = tomlkit.table()
    _fill_table(table, model, values)
    document.add(name, table)
    table.trivia.indent = ""  # tomlkit parts a new table from the comment above it


def _fill_table(table: Table | TOMLDocument, model: type[BaseModel], values: Mapping[str, Any]) -> None:
    import tomlkit

    about = descriptions(model)
    for key, value in values.items():
        if key in about:
            table.add(tomlkit.comment(about[key]))
        if value is None:
            table.add(tomlkit.comment(f"{key} ="))
        else:
            table.add(key, item_of(value))


def item_of(value: Any) -> Item:
    """A plain value as TOML."""
    import tomlkit

    if isinstance(value, Mapping):
        inline = tomlkit.inline_table()
        for key, item in value.items():
            if item is not None:
                inline.add(key, item_of(item))
        return inline
    if isinstance(value, list):
        array = tomlkit.array()
        array.extend([item_of(item) for item in value])
        return array.multiline(len(value) >= LONG_LIST)
    plain: Item = tomlkit.item(value)
    return plain
