"""TOML files as configuration, read and written."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gradtf_fl.config.base import M, validate
from gradtf_fl.errors import ConfigError


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


def to_toml(values: BaseModel) -> str:
    """``values`` as TOML that `load_toml` reads back equal; what is not set (None) is left out."""
    return toml_of(values.model_dump(mode="json", exclude_none=True))


def toml_of(document: Mapping[str, Any]) -> str:
    """A document of plain values, and tables of them, as TOML."""
    tables = {name: table for name, table in document.items() if isinstance(table, dict)}
    lines = [f"{name} = {_toml_value(value)}" for name, value in document.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # bool, int, float and string have one form in both


def load_toml(model: type[M], path: Path) -> M:
    """``model`` from a TOML file; raises `ConfigError` with every problem, each naming file and key."""
    return validate(model, read_toml(path), lambda key: f"{path}: {key}" if key else str(path))
