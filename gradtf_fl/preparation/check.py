"""Everything that could stop a project, and what to do about it: ``gradtf check``. It trains nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gradtf_fl.adapters import chosen_spec, load_encoder
from gradtf_fl.config import NO_TRANSFORMER, SimulationConfig
from gradtf_fl.deployment import Finding
from gradtf_fl.errors import ConfigError, GradtfError
from gradtf_fl.preparation.judgement import played
from gradtf_fl.preparation.run import seen_rows_differ
from gradtf_fl.preparation.work import ProviderWork
from gradtf_fl.privacy import noise_multiplier
from gradtf_fl.tasks import (
    Persons,
    Row,
    RowCounts,
    TaskRows,
    count_encoded,
    federation_data,
    positions,
    read_task_rows,
    source_name,
)
from gradtf_fl.transformer import GradTransformer

MOST_ENCODED = 2000
"""Rows of a source that each tokenizer encodes."""
Encoder = tuple[Any, Any]
"""A model's config and tokenizer."""
Encoders = dict[str, Encoder]
MOST_NAMED = 5
"""Problems of a source that are listed."""


def check_project(settings: SimulationConfig) -> list[Finding]:
    """All findings about a project, in the order of its file."""
    encoders: Encoders = {}
    findings = [*_models(settings, encoders), *_adapter(settings)]
    answers: list[Finding] = []
    rows = list(_rows(settings, encoders, answers))
    findings += rows
    if not any(finding.level == "fail" for finding in rows):
        findings += _federation(settings)
        if not any(finding.level == "fail" for finding in findings):
            findings += _shadow_sets(settings)
    return [*findings, *answers, *_provider(settings)]


def _models(settings: SimulationConfig, encoders: Encoders) -> Iterator[Finding]:
    for what, name in (("TinyLM", settings.tiny), ("LLM", settings.adapted_model)):
        try:
            config, tokenizer = load_encoder(name)
        except ConfigError as error:
            yield Finding("fail", what, str(error), f"correct [pair] {'tiny' if what == 'TinyLM' else 'llm'}")
            continue
        encoders[name] = config, tokenizer
        context = positions(config)
        said = f"{config.model_type}, {len(tokenizer):,} tokens" + (f", context {context:,}" if context else "")
        yield Finding("ok", what, f"{name}: {said}")


def _adapter(settings: SimulationConfig) -> Iterator[Finding]:
    try:
        spec = chosen_spec(settings)
    except ConfigError as error:
        if "model" not in str(error):  # told by `_models`
            yield Finding("fail", "adapter", str(error), "correct [pair] targets")
        return
    kind = settings.adapter if settings.adapter == "full" else f"{settings.adapter} of rank {spec.rank}"
    yield Finding("ok", "adapter", f"{kind} on {', '.join(spec.targets)}")


def _rows(settings: SimulationConfig, encoders: Encoders, answers: list[Finding]) -> Iterator[Finding]:
    """What stops the work with the rows; ``answers`` takes what stops their scoring alone."""
    task = settings.task
    if task.is_house_rules:
        return (yield Finding("ok", "rows", "house-rules, drawn from the seed"))
    for source in task.source:
        try:
            found = read_task_rows(source, task, settings.by, settings.test, settings.person)
        except ConfigError as error:
            yield Finding("fail", f"rows of {source_name(source)}", _listed(error), "correct the file or [task]")
            continue
        sides = f"{len(found.public):,} public, {len(found.private):,} private, {len(found.test):,} for tests"
        yield Finding("ok", f"rows of {found.name}", sides)
        some = [example.row for example in (*found.private, *found.test, *found.public)][:MOST_ENCODED]
        for name, encoder in encoders.items():
            yield from _encoded(settings, found.name, name, encoder, some)
            answers += _answers(settings, found, name, encoder)


def _answers(settings: SimulationConfig, found: TaskRows, model: str, encoder: Encoder) -> Iterator[Finding]:
    """Whether a generated answer leaves room for a prompt."""
    task, context = found.task, positions(encoder[0])
    if task is None or context is None or settings.task.metric == "loss" or task.max_new_tokens < context:
        return
    said = f"{task.max_new_tokens} new tokens leave no room for a prompt in a context of {context}"
    yield Finding("fail", f"answers of {Path(model).name} to {found.name}", said, "set a smaller task.max_new_tokens")


def _listed(error: ConfigError) -> str:
    """Its problems: of many the first, and the last, which says how many there are."""
    problems = error.problems
    if len(problems) <= MOST_NAMED:
        return "\n".join(problems)
    shown = MOST_NAMED - 1
    return "\n".join([*problems[:shown], f"and {len(problems) - MOST_NAMED} more", problems[-1]])


def _encoded(
    settings: SimulationConfig, source: str, model: str, encoder: Encoder, rows: list[Row]
) -> Iterator[Finding]:
    config, tokenizer = encoder
    limit = min(settings.task.max_tokens, positions(config) or settings.task.max_tokens)
    counts = count_encoded(rows, tokenizer, limit)
    what = f"{source} for {Path(model).name}"
    if counts.unscorable:
        text = f"{counts.unscorable:,} of {counts.rows:,} rows have no token that is scored"
        return (
            yield Finding("fail", what, text, "its tokenizer can't write their answers: other rows, or another model")
        )
    said = ", ".join([f"{counts.rows:,} encoded", *_told(counts, limit)])
    share = counts.cut / counts.rows
    if share > settings.task.max_cut:
        remedy = (
            f"{share:.0%} are longer than {limit} tokens, {settings.task.max_cut:.0%} may be: a larger task.max_tokens "
            "where the model's context allows it, another model, or format = 'text'"
        )
        return (yield Finding("fail", what, said, remedy))
    yield Finding(
        "warn" if counts.cut else "ok", what, said, "cut rows lose the start of their prompt" if counts.cut else ""
    )


def _told(counts: RowCounts, limit: int) -> list[str]:
    found = {
        f"longer than {limit} tokens": counts.cut,
        "with an empty prompt": counts.empty,
        "there twice": counts.duplicate,
    }
    return [f"{number:,} {what}" for what, number in found.items() if number]


def _federation(settings: SimulationConfig) -> Iterator[Finding]:
    try:
        data = federation_data(
            settings.task, settings, settings.organizations, settings.batch, settings.seed, settings.person
        )
    except ConfigError as error:
        return (yield Finding("fail", "federation", str(error), "correct [federation]"))
    sizes = [len(one.train) for one in data.organizations]
    said = f"{len(sizes)} organizations, {settings.partition}: {_from_to(sizes)} training rows each"
    yield Finding("ok", "federation", f"{said}; scored by {data.metric.replace('_', ' ')}")
    if settings.person is not None:
        all_persons = [Persons.of(one.train, settings.rows_per_person) for one in data.organizations]
        sizes = [len(persons) for persons in all_persons]
        few = f"org-{1 + int(sizes.index(min(sizes)))} has {min(sizes)} persons, the batch is {settings.batch} of them"
        if min(sizes) < settings.batch:
            remedy = "a smaller batch, fewer organizations, or more rows (federation.rows)"
            return (yield Finding("fail", "persons", few, remedy))
        text = f"by {settings.person!r}, {_from_to(sizes)} at each organization; together {_together(all_persons)}"
        yield Finding("ok", "persons", text)
    steps = settings.rounds * settings.steps
    try:
        sigmas = [
            noise_multiplier(settings.epsilon, settings.delta, settings.batch / size, steps)
            for size in sorted({min(sizes), max(sizes)})
        ]
    except GradtfError as error:
        return (yield Finding("fail", "privacy", str(error), "a larger epsilon, fewer steps or a smaller batch"))
    noise = " to ".join(dict.fromkeys(f"{sigma:.2f}" for sigma in sorted(sigmas)))
    yield Finding(
        "ok",
        "privacy",
        f"epsilon {settings.epsilon:g} at delta {settings.delta:g} in {steps} steps: noise multiplier {noise}",
    )


def _from_to(sizes: Sequence[int]) -> str:
    return f"{min(sizes):,} to {max(sizes):,}" if min(sizes) < max(sizes) else f"{max(sizes):,}"


def _together(parts: Sequence[Persons]) -> Persons:
    """All organizations' persons, of whom nobody is at two of them."""
    return Persons(tuple(own for part in parts for own in part.rows), parts[0].most)


def _shadow_sets(settings: SimulationConfig) -> Iterator[Finding]:
    """Whether the public rows are enough for what `gradtf prepare` makes of them."""
    if settings.task.is_house_rules or settings.transformer in (NO_TRANSFORMER, "embedded"):
        return
    try:
        curation = ProviderWork.of(settings).curation
        curation.header()
        _, _, test = played(curation)
    except ConfigError as error:
        return (yield Finding("fail", "shadow sets", _listed(error), "correct [provider], or add public rows"))
    sets = len(curation.sources) * (curation.shadow_sets + curation.pair_sets) + curation.mixtures
    yield Finding(
        "ok", "shadow sets", f"{sets} of {curation.rows:,} public rows each; {len(test[0])} others to judge on"
    )


def _provider(settings: SimulationConfig) -> Iterator[Finding]:
    if settings.transformer == NO_TRANSFORMER:
        return (yield Finding("ok", "Grad-Transformer", "none: the sum is an adapter of the TinyLM"))
    if settings.transformer == "embedded":
        level, text, remedy = "ok", "embedded", ""
        if not settings.tiny.startswith("embedded:"):
            level, text, remedy = (
                "fail",
                "the embedded one is for the embedded pair",
                "name a file for prepare to write",
            )
        return (yield Finding(level, "Grad-Transformer", text, remedy))  # type: ignore[arg-type]
    if not Path(settings.transformer).is_file():
        return (
            yield Finding("warn", "Grad-Transformer", f"{settings.transformer}: not there yet", "run gradtf prepare")
        )
    try:
        made = GradTransformer.load(settings.transformer)
    except GradtfError as error:
        return (yield Finding("fail", "Grad-Transformer", str(error), "remove it and run gradtf prepare"))
    other = [side.model for side in (made.source, made.target) if not side.model_is_at_hand()]
    if other:
        return (
            yield Finding("fail", "Grad-Transformer", f"made for another {other[0]}", "remove it, run gradtf prepare")
        )
    if settings.controls != "embedded" and (why := seen_rows_differ(ProviderWork.of(settings))) is not None:
        return (yield Finding("fail", "Grad-Transformer", why, "or undo the change of [task]"))
    yield Finding("ok", "Grad-Transformer", settings.transformer)
