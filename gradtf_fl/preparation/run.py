"""The provider's work from public rows to a judged Grad-Transformer. Every part is kept, so a killed run continues."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gradtf_fl.adapters import Place, model_hash
from gradtf_fl.baselines import Controls
from gradtf_fl.curation import TupleStore, curate
from gradtf_fl.errors import ConfigError
from gradtf_fl.files import PUBLIC, replace_file
from gradtf_fl.preparation.judgement import Judgement, judge, played
from gradtf_fl.preparation.library import tune_library
from gradtf_fl.preparation.work import ProviderWork
from gradtf_fl.training import StackedAdapters
from gradtf_fl.transformer import GradTransformer, train_grad_transformer

PrepareProgress = Callable[[str, int, int], None]
REPORT, SETTINGS = "preparation.json", "preparation-settings.json"


@dataclass(frozen=True)
class Prepared:
    """What there is when the work is done.

    Attributes:
        report: file that holds the judgement.
    """

    transformer: GradTransformer
    judgement: Judgement
    report: Path


def prepare(
    work: ProviderWork, progress: PrepareProgress, workers: int | None = 1, place: Place | None = None
) -> Prepared:
    """Curate, train, fit the controls, tune the task library, judge. What exists is kept.

    Raises:
        ConfigError: a model or rows can't be had, or what is there was made with other settings.
    """
    check_work(work)
    try:
        return _prepared(work, progress, workers, place)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or work.tuples.parent}: can't be written ({error.strerror or error}); what is finished "
            "is kept: make room and run again"
        ) from error


def check_work(work: ProviderWork) -> None:
    """Whether the work can be begun, or taken up: what would stop its last part is told before the first.

    Raises:
        ConfigError: a model or rows can't be had or are too few, or what is there was made with other settings.
    """
    played(work.curation)
    header = json.loads(json.dumps(work.curation.header()))
    path = work.checkpoint.with_name(SETTINGS)
    begun = any(made.exists() for made in (work.tuples, work.checkpoint, work.controls, work.library))
    if begun and path.is_file() and path.read_text() != _settings(work):
        raise ConfigError(
            f"{path.parent}: prepared with other settings (see {path.name}); remove what is there, or name other files "
            "under [provider]"
        )
    if work.tuples.exists() and any(work.tuples.iterdir()):
        stored = TupleStore.open(work.tuples).header
        models = {"tiny": work.curation.tiny, "llm": work.curation.llm}
        other = [name for name, value in header.items() if stored.get(name) != value]
        other += [name for name, model in models.items() if stored[name]["sha256"] != model_hash(model)]
        if other:
            raise ConfigError(
                f"tuple store {work.tuples}: made with other settings, rows or models ({', '.join(other)}); remove it, "
                "or name another one (provider.tuples)"
            )


def _prepared(work: ProviderWork, progress: PrepareProgress, workers: int | None, place: Place | None) -> Prepared:
    path = work.checkpoint.with_name(SETTINGS)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, _settings(work).encode(), PUBLIC)
    curate(work.curation, work.tuples, lambda what, done, all_: progress(f"curate {what}", done, all_), workers, place)
    if not work.checkpoint.is_file():
        work.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        train_grad_transformer(
            work.training,
            work.tuples,
            work.checkpoint,
            lambda done, all_, loss: progress(f"train, loss {loss:.3f}", done, all_),
        )
    if not work.controls.is_file():
        progress("controls", 0, 1)
        work.controls.parent.mkdir(parents=True, exist_ok=True)
        Controls.fit_on_store(work.tuples).save(work.controls)
    curation = work.curation
    tiny, llm = (StackedAdapters.load(name, curation.spec, place) for name in (curation.tiny, curation.llm))
    library = tune_library(work, llm, lambda done, all_: progress("task library", done, all_))
    progress("judge", 0, 1)
    transformer, controls = GradTransformer.load(work.checkpoint), Controls.load(work.controls)
    judgement = judge(curation, transformer, controls, library, tiny, llm)
    report = work.checkpoint.with_name(REPORT)
    document = judgement.to_json() | {"transformer_sha256": transformer.sha256, "settings": curation.settings()}
    replace_file(report, (json.dumps(document, indent=1) + "\n").encode(), PUBLIC)
    progress("judge", 1, 1)
    return Prepared(transformer, judgement, report)


def seen_rows_differ(work: ProviderWork) -> str | None:
    """Why a federation must not run on what was prepared: its private rows may be ones that the provider has seen.

    None where the rows are those of the preparation, or where nobody noted which those were.
    """
    path = work.checkpoint.with_name(SETTINGS)
    if not path.is_file():
        return None
    noted, now = json.loads(path.read_text())["curation"], json.loads(json.dumps(work.curation.settings()))
    if all(noted.get(key) == now[key] for key in ("tasks", "task")):
        return None
    return f"{work.checkpoint}: prepared on other public rows than [task] names now; run gradtf prepare again"


def _settings(work: ProviderWork) -> str:
    """All that the results depend on, as JSON."""
    return json.dumps({"curation": work.curation.settings(), "training": work.training.to_json()}, indent=1) + "\n"
