"""The configuration's reference, from the schema: every file, table and key with type, default and meaning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gradtf_fl.config import (
    FederationPlan,
    MemberPolicy,
    OrganizationConfig,
    PlaceSection,
    descriptions,
    documented_tables,
)
from gradtf_fl.deployment import OURS, ListenSection

HEAD = """# Configuration

Made from the schema when the site is built. Keys that a file leaves out keep their defaults. An unknown key, a wrong
type and a value out of range are refused; all problems are reported at once, each with its file and key. Relative paths
start in the folder of the file.

| file | who writes it | what it decides |
|---|---|---|
| [`federation.toml`](#federationtoml) | `gradtf init` | a project: models, rows, privacy, rounds, the provider's work |
| [`organization.toml`](#organizationtoml) | `gradtf org init` | what an organization has, may spend and accepts |
| [`server.toml`](#servertoml) | `gradtf server init` | the server's plan of a run |
| [`policy.toml`](#policytoml) | `gradtf member new` | what a member of any Flower app accepts |

"""
ROW = "| `{key}` | {type} | {default} | {meaning} |"
HEADER = "| key | type | default | meaning |\n|---|---|---|---|"


def config_page() -> str:
    """The page."""
    parts = ["## federation.toml", "One file for a project. Options of a command win over it."]
    for table, about, places in documented_tables():
        parts += [f"### [{table}]", about + ".", _table([(key, *place) for key, place in places.items()])]
    parts += [
        "## organization.toml",
        "One file for each organization. The server cannot change it.",
        *_tables(OrganizationConfig, "organization"),
        "## server.toml",
        "Where the server listens and computes, and the plan of the run. A plan can be changed between two starts.",
    ]
    for name, model, left_out in (
        ("server", ListenSection, ()),
        ("plan", FederationPlan, (*OURS, "compute")),
        ("compute", PlaceSection, ()),
    ):
        keys = [(key, model, key) for key in model.model_fields if key not in left_out]
        parts += [f"### [{name}] {{ #server-{name} }}", _table(keys)]
    parts += ["## policy.toml", "One file for each member of a Flower app. The server cannot change it."]
    return HEAD + "\n\n".join([*parts, *_tables(MemberPolicy, "policy")]) + "\n"


def _tables(model: type[BaseModel], file: str) -> Iterator[str]:
    """The keys at a file's top, then each of its tables."""
    inner = {name: section for name, field in model.model_fields.items() if (section := _section(field)) is not None}
    yield _table([(name, model, name) for name in model.model_fields if name not in inner])
    for name, section in inner.items():
        yield f"### [{name}] {{ #{file}-{name} }}"
        yield _table([(key, section, key) for key in section.model_fields])


def _table(keys: Iterable[tuple[str, type[BaseModel], str]]) -> str:
    """A row for each (key, schema, its field there)."""
    rows = []
    for key, model, name in keys:
        field = model.model_fields[name]
        meaning = descriptions(model).get(name, "")
        rows.append(ROW.format(key=key, type=_type(field), default=_default(field), meaning=_cell(meaning)))
    return "\n".join([HEADER, *rows])


def _section(field: FieldInfo) -> type[BaseModel] | None:
    for one in (field.annotation, *get_args(field.annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def _type(field: FieldInfo) -> str:
    bounds = [word for mark in field.metadata for word in _bound(mark)]
    return _cell(", ".join([_name(field.annotation), *bounds]))


def _name(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([_name(parts[0]), *(word for mark in parts[1:] for word in _bound(mark))])
    if origin is tuple:
        return "list of " + _name(parts[0])
    if str(origin) == "typing.Literal":
        return " or ".join(f"`{part}`" for part in parts)
    if parts:
        return " or ".join(_name(part) for part in parts if part is not type(None))
    plain: Mapping[Any, str] = {str: "text", bool: "true or false", int: "whole number", float: "number"}
    return plain.get(annotation, "path" if getattr(annotation, "__name__", "") == "Path" else "text")


def _bound(mark: Any) -> Iterator[str]:
    """A bound of pydantic's in words."""
    for attribute, word in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if getattr(mark, attribute, None) is not None:
            yield f"{word} {getattr(mark, attribute)}"
    for inner in getattr(mark, "metadata", ()):
        yield from _bound(inner)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "not set"
    if isinstance(field.default, BaseModel):
        return "as below"
    value = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`" if value else "empty"
    return f"`{value}`" if str(value) else "empty"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
