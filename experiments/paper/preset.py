"""Presets: one TOML for each table or figure, checked before any work begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from experiments.measuring import Measure
from gradtf_fl.config import Section, Seed, read_toml, validate
from gradtf_fl.errors import ConfigError
from gradtf_fl.transformer import embedded_checkpoint

PRESETS = Path(__file__).parent / "presets"

Words = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
ChartKind = Literal["table", "line", "bar"]


class PresetFile(Section):
    """A preset as its TOML has it.

    Attributes:
        title: what the table or figure shows.
        question: what it answers, one sentence.
        measure: ``module:function``, see `experiments.measuring.cells.measure`.
        minutes: of two cores, measured, all seeds.
        paper: the paper's figures for the same question.
        note: what a reader of our figures should know.
        kind: how the report draws it; with ``line`` rows are numbers on the axis ``x`` and columns are curves.
        unit: of the cells, where the column doesn't say PGR.
        parameters: handed to the measure.
    """

    title: Words
    question: Words
    measure: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    minutes: Annotated[float, Field(gt=0)]
    paper: Words
    note: Words | None = None
    kind: ChartKind
    unit: Words
    x: Words | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _axis_of_a_line(self) -> Self:
        if (self.kind == "line") != (self.x is not None):
            raise ValueError('x names the axis of kind "line", and only of that')
        return self

    @field_validator("seeds")
    @classmethod
    def _no_seed_twice(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is there twice")
        return seeds


@dataclass(frozen=True)
class Preset:
    """A checked preset: its file's name without ``.toml``, what is in it, and the function that it names."""

    name: str
    file: PresetFile
    function: Measure

    @property
    def words(self) -> dict[str, Any]:
        """What is said about the results; it may change after they were measured."""
        return self.file.model_dump(include={"title", "question", "paper", "note"})

    def document(self) -> dict[str, Any]:
        """What goes into the results, in front of the runs."""
        described = {"preset": self.name, **self.file.model_dump(exclude={"seeds", "minutes"})}
        return described | {"checkpoint_sha256": _sha256(embedded_checkpoint())} if self.function.shipped else described


def preset_names(folder: Path | None = None) -> list[str]:
    """Names of all presets in ``folder`` (those of the package), in alphabetical order.

    Raises:
        ConfigError: there are none.
    """
    place = folder or PRESETS
    names = sorted(path.stem for path in place.glob("*.toml"))
    if not names:
        raise ConfigError(f"presets {place}: no preset (*.toml)")
    return names


def load_preset(name: str, folder: Path | None = None) -> Preset:
    """Read and check one preset, its measure and the parameters.

    Raises:
        ConfigError: every problem of the file, each naming file and key; or there is no such preset.
    """
    if name not in (names := preset_names(folder)):
        raise ConfigError(f"experiment {name!r}: there is no such preset; there are {', '.join(names)}")
    path = (folder or PRESETS) / f"{name}.toml"
    values = read_toml(path)
    problems: list[str] = []

    def where(key: str) -> str:
        return f"{path}: {key}" if key else str(path)

    try:
        file = validate(PresetFile, values, where)
    except ConfigError as error:
        problems += error.problems
    measure, parameters = values.get("measure"), values.get("parameters", {})
    if isinstance(measure, str) and ":" in measure and isinstance(parameters, dict):
        try:
            function = _measure(measure, where("measure"))
            function.check(parameters, lambda key: where(f"parameters.{key}"))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return Preset(name, file, function)


def load_presets(folder: Path | None = None) -> list[Preset]:
    """All presets; ConfigError with the problems of all files at once."""
    loaded: list[Preset] = []
    problems: list[str] = []
    for name in preset_names(folder):
        try:
            loaded.append(load_preset(name, folder))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return loaded


def _measure(where: str, place: str) -> Measure:
    """The function ``module:function``; ConfigError, naming ``place``, when it can't be had."""
    module, _, attribute = where.partition(":")
    try:
        function = getattr(import_module(module), attribute)
    except Exception as error:
        raise ConfigError(f"{place}: {where} can't be imported ({type(error).__name__}: {error})") from error
    if not callable(function) or not hasattr(function, "check"):
        raise ConfigError(f"{place}: {where} is not a measure (see experiments.measuring.cells.measure)")
    measure: Measure = function
    return measure


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, ``key: mine, not theirs`` each."""
    keys = sorted(mine.keys() | theirs.keys())
    return [f"{key}: {mine.get(key)!r}, not {theirs.get(key)!r}" for key in keys if mine.get(key) != theirs.get(key)]
