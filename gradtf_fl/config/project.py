"""``federation.toml``: one file for a project, read by every verb.

Its tables and keys are `SimulationConfig`'s, sorted by what they are about. Paths in it are relative to its folder. A
command line's options win over it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gradtf_fl.config.base import Section, validate
from gradtf_fl.config.compute import ComputeSection
from gradtf_fl.config.plan import FederationPlan
from gradtf_fl.config.provider import BACKBONES, ProviderSection
from gradtf_fl.config.simulation import SimulationConfig
from gradtf_fl.config.task import HOUSE_RULES, SharingOut, TaskSection
from gradtf_fl.config.toml import descriptions, read_toml
from gradtf_fl.config.unit import UnitSection
from gradtf_fl.errors import ConfigError

FEDERATION = "federation.toml"
ABOUT = {
    "pair": "The models, each by name (embedded:tiny), folder or hub id, and the adapter that is trained",
    "compute": "Where and how this machine computes. An organization has its own table in organization.toml",
    "task": "The rows and how answers are scored",
    "federation": "Who takes part; in a simulation, who holds which rows",
    "privacy": "What a round may cost, and whose epsilon it is. Adjacency: add or remove one unit",
    "rounds": "Training at the organizations",
    "secure_sum": "The sum of update vectors",
    "provider": "The provider's own work on public rows: gradtf prepare",
}
Path_ = tuple[str, ...]


def _same(*names: str) -> dict[str, Path_]:
    return {name: (name,) for name in names}


def _inside(table: str, names: Iterable[str]) -> dict[str, Path_]:
    return {name: (table, name) for name in names}


TABLES: dict[str, dict[str, Path_]] = {
    "pair": _same("tiny", "llm", "adapter", "targets", "rank") | {"alpha": ("lora_alpha",)},
    "compute": _inside("compute", ComputeSection.model_fields),
    "task": _inside("task", TaskSection.model_fields),
    "federation": _same("organizations", "allow_two", "weight_rule", *SharingOut.model_fields),
    "privacy": _same("epsilon", "delta", "budget", "clip", *UnitSection.model_fields),
    "rounds": _same("rounds", "steps", "batch", "rate", "seed"),
    "secure_sum": _same("update_clip", "bits", "groups", "combine", "sample", "noise_multiplier", "max_norm")
    | _same("deadline_s"),
    "provider": _same("transformer", "controls", "refine") | _inside("provider", ProviderSection.model_fields),
}
"""Table -> key -> where that stands in `SimulationConfig`."""
KEYS = {path: f"{table}.{key}" for table, keys in TABLES.items() for key, path in keys.items()}


def read_project(path: Path | None, options: Mapping[str, Any] | None = None) -> SimulationConfig:
    """The settings of a project file (None: the embedded defaults), overlaid with options.

    Args:
        options: values by their names in `SimulationConfig`; those of a table inside it by ``table.name``.

    Raises:
        ConfigError: every problem at once, each named by its option or by file and key.
    """
    problems: list[str] = []
    values = _from_tables(path, problems) if path is not None else {}
    given = {tuple(name.split(".")): value for name, value in (options or {}).items()}
    for place, value in given.items():
        _put(values, place, value)

    def where(dotted: str) -> str:
        place = tuple(part for part in dotted.split(".") if not part.isdecimal())
        found = next((one for one in (place, place[:2], place[:1]) if one in given), None)
        if found is not None or path is None:
            return "--" + (found or place)[-1].replace("_", "-") if dotted else "options"
        return f"{path}: {KEYS.get(place, dotted)}" if dotted else str(path) + (" and options" if given else "")

    try:
        settings = validate(SimulationConfig, values, where)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return settings


def located(settings: SimulationConfig, folder: Path) -> SimulationConfig:
    """``settings`` with absolute paths: relative ones start in ``folder``. They mean the same from anywhere."""
    values = settings.model_dump(mode="json")
    _resolve(values, folder)
    return SimulationConfig.model_validate(values)


def differing(settings: SimulationConfig, path: Path | None, options: Mapping[str, Any], folder: Path) -> list[str]:
    """What of a project file and of options is other than in ``settings``, by the names that their user knows.

    Args:
        options: as `read_project` takes them; None and () are not given.
        folder: that paths of options are relative to.

    Raises:
        ConfigError: a value that can't be one.
    """
    problems: list[str] = []
    in_file = _from_tables(path, problems) if path is not None else {}
    tables = read_toml(path) if path is not None else {}
    chosen = {name: value for name, value in options.items() if value is not None and value != ()}
    given = {tuple(name.split(".")): value for name, value in chosen.items()}
    names = {place: f"{path}: {key}" for place, key in KEYS.items() if _at(tables, tuple(key.split("."))) is not None}
    names |= {place: "--" + place[-1].replace("_", "-") for place in given}
    values = settings.model_dump(mode="json")
    for place in names:
        _put(values, place, given[place] if place in given else _at(in_file, place))
    try:
        asked = located(SimulationConfig.model_validate(values), folder)
    except ValueError:  # the values by themselves may be wrong, or only together with the others
        asked = located(read_project(path, chosen), folder)
    now, then = asked.model_dump(mode="json"), settings.model_dump(mode="json")
    if problems:
        raise ConfigError(problems)
    return [name for place, name in names.items() if _at(now, place) != _at(then, place)]


def _at(values: Mapping[str, Any], place: Path_) -> Any:
    found: Any = values
    for part in place:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def plan_values(settings: SimulationConfig) -> dict[str, Any]:
    """What of a project is the server's plan, by the names of `FederationPlan`; what a folder decides is left out."""
    left_out = ("organizations", "seed")
    values = {n: getattr(settings, n) for n in type(settings).model_fields if n in FederationPlan.model_fields}
    chosen = {name: value for name, value in values.items() if value is not None and name not in left_out}
    return chosen | {"llm": settings.adapted_model, "compute": settings.compute.place}


def project_toml(settings: SimulationConfig, shown: Mapping[str, Iterable[str]]) -> str:
    """A commented ``federation.toml``.

    Args:
        shown: table -> its keys that are written, the others being left to their defaults.
    """
    import tomlkit

    from gradtf_fl.config.toml import item_of

    values = settings.model_dump(mode="json")
    document = tomlkit.document()
    for line in (
        "One file for a federation. gradtf check, prepare, simulate and server init read it: --config federation.toml",
        "Paths are relative to this folder. Keys that are not here keep their defaults; options of a command win.",
    ):
        document.add(tomlkit.comment(line))
    for name, keys in shown.items():
        document.add(tomlkit.nl())
        document.add(tomlkit.comment(ABOUT[name]))
        table = tomlkit.table()
        for key in keys:
            place = TABLES[name][key]
            about = descriptions(_owner(place))
            table.add(tomlkit.comment(about[place[-1]]))
            value = values
            for part in place:
                value = value[part]
            if value is None:
                table.add(tomlkit.comment(f"{key} ="))
            else:
                table.add(key, item_of(value))
        document.add(name, table)
        table.trivia.indent = ""
    return tomlkit.dumps(document)


def documented_tables() -> Iterator[tuple[str, str, dict[str, tuple[type[Section], str]]]]:
    """Each table: its name, what it is about, and its keys, each with the schema and the field that it is there."""
    for table, keys in TABLES.items():
        yield table, ABOUT[table], {key: (_owner(place), place[-1]) for key, place in keys.items()}


def _owner(place: Path_) -> type[Section]:
    """The schema that has the key at ``place``."""
    return _OWNERS[place[0]] if len(place) > 1 else SimulationConfig


_OWNERS: dict[str, type[Section]] = {"compute": ComputeSection, "task": TaskSection, "provider": ProviderSection}


def _from_tables(path: Path, problems: list[str]) -> dict[str, Any]:
    """`SimulationConfig`'s values in the file's tables; what is in none of them is a problem."""
    values: dict[str, Any] = {}
    for name, table in read_toml(path).items():
        if name not in TABLES or not isinstance(table, Mapping):
            problems.append(f"{path}: {name}: is not a known table; there are {', '.join(TABLES)}")
            continue
        for key, value in table.items():
            if key not in TABLES[name]:
                problems.append(f"{path}: {name}.{key}: is not a known key")
            else:
                _put(values, TABLES[name][key], value)
    _resolve(values, path.absolute().parent)
    return values


def _put(values: dict[str, Any], place: Path_, value: Any) -> None:
    for part in place[:-1]:
        values = values.setdefault(part, {})
    values[place[-1]] = value


def _resolve(values: dict[str, Any], folder: Path) -> None:
    """Paths that are relative to the file become absolute; names of models and data sets stay."""
    for name in ("tiny", "llm"):
        if isinstance(values.get(name), str):
            values[name] = _located(values[name], folder)
    for name, word in (("transformer", ("embedded", "none")), ("controls", ("embedded",))):
        if isinstance(values.get(name), str) and values[name] not in word:
            values[name] = str(folder / Path(values[name]).expanduser())
    provider = values.setdefault("provider", {})
    for name in ("tuples", "library"):
        given = provider.get(name, str(getattr(ProviderSection(), name)))
        if isinstance(given, str):
            provider[name] = str(folder / Path(given).expanduser())
    backbone = provider.get("backbone")
    if isinstance(backbone, str) and backbone not in BACKBONES:
        provider["backbone"] = _located(backbone, folder)
    task = values.get("task", {})
    source = task.get("source")
    if isinstance(source, str):
        task["source"] = _located(source, folder)
    elif isinstance(source, list):
        task["source"] = [_located(one, folder) if isinstance(one, str) else one for one in source]


def _located(name: str, folder: Path) -> str:
    """An absolute path where ``name`` is one or begins like one; else as it stands."""
    if name == HOUSE_RULES or name.startswith("embedded:"):
        return name
    path = folder / Path(name).expanduser()
    return os.path.abspath(path) if name.startswith((".", "~", "/")) or path.exists() else name  # links stay
