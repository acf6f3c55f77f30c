"""A project's first ``federation.toml``, from its models and a look at its rows: ``gradtf init``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtf_fl.adapters import load_encoder
from gradtf_fl.config import (
    FEDERATION,
    HOUSE_RULES,
    SimulationConfig,
    TaskSection,
    project_toml,
    read_project,
    validate,
)
from gradtf_fl.deployment import filled
from gradtf_fl.errors import ConfigError
from gradtf_fl.files import PUBLIC, replace_file
from gradtf_fl.preparation.check import MOST_ENCODED
from gradtf_fl.tasks import count_encoded, first_form, has_template, positions, read_task_rows, source_name

PREPARED = "prepared"
OWN_ROUNDS = {"rounds": 2, "steps": 40, "batch": 32, "rate": 5e-3}
"""Of a starter for own rows: small enough for a first try on a laptop."""
ANSWER_SHARE = 4
"""A generated answer gets this part of a short context."""
PAIR = ("tiny", "llm", "adapter", "targets", "rank", "alpha")
SHOWN: dict[str, tuple[str, ...]] = {
    "pair": PAIR,
    "task": ("source", "rules"),
    "federation": ("organizations", "rows", "test_rows"),
    "privacy": ("epsilon", "delta", "clip", "unit"),
    "rounds": ("rounds", "steps", "batch", "rate"),
}
OWN_TASK = ("source", "format", "max_tokens", "end", "public", "group", "metric", "max_new_tokens", "max_cut")
OWN_FEDERATION = ("organizations", "partition", "alpha", "by", "rows", "test_rows", "test", "weight_rule")
OWN_PROVIDER = (
    *("transformer", "controls", "tuples", "library", "refine", "shadow_rows", "shadow_sets", "pair_sets"),
    *("mixtures", "mechanisms", "tuning_steps", "tuning_batch", "tuning_rate"),
    *("backbone", "training_steps", "training_groups", "training_rate"),
)


@dataclass(frozen=True)
class Starter:
    """What was written, and what a person should know about it."""

    path: Path
    notes: tuple[str, ...]


def make_project(
    folder: Path,
    sources: Sequence[str],
    tiny: str | None,
    llm: str | None,
    templates: tuple[str, str] | None = None,
) -> Starter:
    """Write ``FOLDER/federation.toml``.

    Args:
        sources: the task's rows, see `TaskSection`; none stands for House Rules.
        tiny, llm: the pair; None: the embedded one.
        templates: of prompt and answer, where rows have columns of their own.

    Raises:
        ConfigError: a model or rows can't be had, or the folder is not empty; nothing is written.
    """
    values: dict[str, Any] = {"tiny": _absolute(tiny or "embedded:tiny"), "llm": _absolute(llm or "embedded:llm")}
    shown, notes = dict(SHOWN), []
    if list(sources) not in ([], [HOUSE_RULES]):
        values |= {"task": {"source": [_absolute(source) for source in sources]}, **OWN_ROUNDS, "refine": False}
        values |= {"organizations": 4, "partition": "dirichlet" if len(sources) > 1 else "iid"}
        values["transformer"] = f"{PREPARED}/grad-transformer.safetensors"
        values["controls"] = f"{PREPARED}/controls.safetensors"
        values["provider"] = {
            "tuples": f"{PREPARED}/tuples",
            "library": f"{PREPARED}/task-library.safetensors",
            "mixtures": 16 if len(sources) > 1 else 0,
            "mechanisms": ["adamw", "dp-sgd"],
        }
        if templates:
            values["task"] |= {"format": "columns", "prompt": templates[0], "answer": templates[1]}
        notes = _look(values)
        as_text = values["task"].get("format") == "text"
        task = ("source", "format", "window", "public", "max_cut") if as_text else OWN_TASK
        if templates:
            task = (*task[:2], "prompt", "answer", *task[2:])
        shown |= {"task": task, "federation": OWN_FEDERATION, "provider": OWN_PROVIDER}
    elif values["tiny"] != "embedded:tiny" or values["llm"] != "embedded:llm":
        raise ConfigError(f"--task: {HOUSE_RULES} is a task of the embedded pair alone; name the rows of your own")
    settings = validate(SimulationConfig, values, lambda key: key or "project")
    text = project_toml(settings, shown)
    path = folder / FEDERATION
    with filled(folder, "a project"):
        replace_file(path, text.encode(), PUBLIC)
        read_project(path)
    return Starter(path, tuple(notes))


def _look(values: dict[str, Any]) -> list[str]:
    """Set format and end from the rows, and say why."""
    problems: list[str] = []
    encoders = {}
    for name in (values["tiny"], values["llm"]):
        try:
            encoders[name] = load_encoder(name)
        except ConfigError as error:
            problems += error.problems
    sources = values["task"]["source"]
    here = [
        source
        for source in sources
        if Path(source).exists() or any(Path(source + e).exists() for e in (".txt", ".txt.gz"))
    ]
    notes = [
        f"{source}: not on this machine; gradtf check reads it from the hub" for source in sources if source not in here
    ]
    if here and all(first_form(source) == "messages" for source in here):
        values["task"]["format"] = "messages"
        notes.append("rows are chats: the loss is on assistant turns only")
        for name, (_, tokenizer) in encoders.items():
            way = "its own chat template writes them" if has_template(tokenizer) else "no chat template: as plain text"
            notes.append(f"  {Path(name).name}: {way}")
    for source in here:
        try:
            notes += _fitting(source, values, encoders)
        except ConfigError as error:
            problems += error.problems
    if not problems:
        notes += _short_answers(values, encoders)
        try:
            notes += _small_sets(here, values)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return notes


def _short_answers(values: dict[str, Any], encoders: dict[str, Any]) -> list[str]:
    """Shorter generated answers where the default length fills a model's context."""
    contexts = [length for config, _ in encoders.values() if (length := positions(config)) is not None]
    if values["task"].get("format") == "text" or not contexts or TaskSection().max_new_tokens < min(contexts):
        return []
    values["task"]["max_new_tokens"] = max(1, min(contexts) // ANSWER_SHARE)
    return [f"answers have at most {values['task']['max_new_tokens']} tokens, since a model reads {min(contexts)}"]


def _small_sets(sources: list[str], values: dict[str, Any]) -> list[str]:
    """Smaller shadow sets where a source has too few public rows for those of the default size."""
    settings = validate(SimulationConfig, values, lambda key: key or "project")
    public = {name: len(read_task_rows(name, settings.task).public) for name in sources}
    if not public or min(public.values()) >= settings.provider.shadow_rows:
        return []
    source = min(public, key=public.__getitem__)
    rows = max(8, public[source] // 2)
    values["provider"]["shadow_rows"] = rows
    return [f"{source_name(source)}: {public[source]:,} rows are public, so a shadow set has {rows:,} of them"]


def _fitting(source: str, values: dict[str, Any], encoders: dict[str, Any]) -> list[str]:
    """Read a source as it stands; as windows of text where too many of its rows do not fit."""
    task = values["task"]
    settings = validate(SimulationConfig, values, lambda key: key or "project").task
    found = read_task_rows(source, settings)
    if found.task is None:
        task["format"] = "text"
        return []
    rows = [example.row for example in (*found.public, *found.private)][:MOST_ENCODED]
    for name, (config, tokenizer) in encoders.items():
        limit = min(settings.max_tokens, positions(config) or settings.max_tokens)
        cut = count_encoded(rows, tokenizer, limit).cut / len(rows)
        if cut > settings.max_cut:
            task["format"] = "text"
            return [
                f"{found.name}: {cut:.0%} of its rows are longer than the {limit} tokens that {Path(name).name} reads: "
                "read as windows of text, scored by loss (format = 'text')"
            ]
    return []


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    looks_local = name.startswith((".", "~", "/")) or path.exists()
    return os.path.abspath(path) if looks_local and not name.startswith("embedded:") else name  # links stay
