"""A trial: curate a small House Rules store, train a small Grad-Transformer on it, score it on fresh private rows.

Variants of one experiment share what they have in common. Stores, private sets, checkpoints and scores lie in one
folder, each under a name made of all its settings, so that a killed run goes on and no setting is mixed up with
another. Scores are accuracies, means over rules; PGR is taken of the means.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from experiments.embedded import Bench
from experiments.measuring import Cell, Progress, recovered
from experiments.paper.measures.private_sets import PrivatePlan, PrivateSets, make_private
from gradtf_fl.adapters import Place
from gradtf_fl.baselines import Controls
from gradtf_fl.curation import CurationConfig, TupleStore, curate, worker_pool
from gradtf_fl.errors import ConfigError
from gradtf_fl.files import write_whole
from gradtf_fl.transformer import GradTransformer, TrainConfig, train_grad_transformer

Scores = dict[str, float]
"""Accuracies and distances by name, e.g. "seen one generated"."""
T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """One variant.

    Attributes:
        sets: train on the first shards of the store only, until they hold this many shadow sets; None: on all.
    """

    store: CurationConfig
    train: TrainConfig
    sets: int | None = None


@dataclass(frozen=True)
class Site:
    """Where trials are kept, and what computes them.

    Attributes:
        workers: processes of one thread each; 0: one per core.
        device: of all fine-tuning, as torch has it; another one rounds differently, so what it gives is kept apart.
            Grad-Transformers this small train on the CPU.
    """

    folder: Path
    workers: int = 1
    device: str = "cpu"

    @property
    def processes(self) -> int:
        return self.workers or os.cpu_count() or 1


def key_of(settings: Any) -> str:
    """12 hex digits of the SHA-256 over settings in their JSON form."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def store_folder(site: Site, config: CurationConfig) -> Path:
    """Where the store of these settings lies."""
    return site.folder / f"store-{key_of([asdict(config), site.device])}"


def run_trials(trials: Mapping[str, Trial], private: PrivatePlan, site: Site, progress: Progress) -> dict[str, Scores]:
    """Scores of every trial, by its name."""
    stores = {store_folder(site, trial.store): trial.store for trial in trials.values()}
    specs = {store.spec: store for store in stores.values()}
    done, total = 0, len(stores) + len(trials)

    def count(what: str) -> None:
        nonlocal done
        done += 1
        progress(what, done, total)

    progress("curate", done, total)
    with nullcontext() if site.processes == 1 else worker_pool(site.processes) as pool:
        if site.device == "cpu":
            for store in stores.values():
                _curate(store, site, site.processes)
                count("curate")
        else:  # a shard takes so short there that its process would take longer
            _results(pool, _curate, [(store, site, 1) for store in stores.values()], lambda: count("curate"))
        _results(pool, private_sets, [(private, store, site) for store in specs.values()], lambda: None)
        calls = [(trial, private, site) for trial in trials.values()]
        found = _results(pool, score_trial, calls, lambda: count("train and score"))
    return dict(zip(trials, found, strict=True))


def _curate(store: CurationConfig, site: Site, workers: int) -> None:
    folder = store_folder(site, store)
    with _alone(folder):
        curate(store, folder, workers=workers, place=Place.find(site.device))


def score_trial(trial: Trial, private: PrivatePlan, site: Site) -> Scores:
    """Train one trial, or take its checkpoint, and score it, or take its scores."""
    torch.set_num_threads(1)
    folder = store_folder(site, trial.store)
    name = key_of([trial.train.to_json(), trial.sets, trial.train.scaled, trial.train.averaged])
    scores = folder / f"scores-{name}-{key_of(asdict(private))}.json"
    with _alone(folder / name):
        if not scores.exists():
            tuples = folder if trial.sets is None else first_sets(folder, trial.sets)
            checkpoint = folder / f"{name}.safetensors"
            exists = checkpoint.exists()
            made = (
                GradTransformer.load(checkpoint) if exists else train_grad_transformer(trial.train, tuples, checkpoint)
            )
            bench = Bench(made, Controls.fit_on_store(tuples))
            found = score(bench, private_sets(private, trial.store, site))
            write_whole(scores, json.dumps(found, indent=1))
        read: Scores = json.loads(scores.read_text())
    return read


def score(bench: Bench, private: PrivateSets) -> Scores:
    """Accuracies of base, floor, ceiling, generated and controls, one and five organizations; and how far the
    generated updates are from the mean shadow update.

    ``distance`` to the mean and ``spread`` between inputs are relative to those of the updates of the LLM tuned on the
    private rows: both are 0 where the mean comes out for every input. ``cosine`` is between generated and mean update.
    """
    scores: Scores = {}
    for group in private.groups:
        for members, updates in (("one", group.one), ("five", group.five)):
            for way, accuracies in bench.generated(updates, group.test).items():
                scores[f"{group.name} {members} {way}"] = _mean(accuracies)
        scores[f"{group.name} tiny_tuned"] = group.tiny_tuned
        scores[f"{group.name} llm_ceiling"] = group.llm_ceiling
        made = torch.stack([torch.from_numpy(bench.transformer.generate(u.numpy())) for u in group.one]).flatten(1)
        tuned, mean = group.llm.flatten(1), torch.from_numpy(bench.controls.mean_update()).flatten()
        scores[f"{group.name} distance"] = float((made - mean).norm() / (tuned - mean).norm())
        scores[f"{group.name} spread"] = float((made - made.mean(0)).norm() / (tuned - tuned.mean(0)).norm())
        scores[f"{group.name} cosine"] = float(torch.cosine_similarity(made, mean[None]).mean())
    return scores


def accuracy_cells(row: str, scores: Scores, members: str = "one", way: str = "generated") -> list[Cell]:
    """Accuracy and PGR of one way on seen and unseen rules."""
    cells = []
    for group in ("seen", "unseen"):
        made = scores[f"{group} {members} {way}"]
        cells.append(Cell(row, f"{group} accuracy", made))
        cells.append(Cell(row, f"{group} PGR", pgr(scores, group, made)))
    return cells


def beside_cells(scores: Scores) -> list[Cell]:
    """Floor, ceiling and controls of one store: what a variant's figures are read against."""
    cells = []
    for group in ("seen", "unseen"):
        for row, name in (("TinyLM tuned (floor)", "tiny_tuned"), ("LLM tuned (ceiling)", "llm_ceiling")):
            cells.append(Cell(row, f"{group} accuracy", scores[f"{group} {name}"]))
            cells.append(Cell(row, f"{group} PGR", pgr(scores, group, scores[f"{group} {name}"])))
    for row, way in (("mean update", "mean_update"), ("nearest update", "nearest_update"), ("ridge", "ridge")):
        cells += accuracy_cells(row, scores, way=way)
    return cells


def pgr(scores: Scores, group: str, made: float) -> float:
    """Share of the gap between the tuned TinyLM and the tuned LLM that an accuracy recovers."""
    return recovered([made], [scores[f"{group} tiny_tuned"]], [scores[f"{group} llm_ceiling"]])


def first_sets(folder: Path, sets: int) -> Path:
    """A store of ``folder``'s first shards, so many that they hold ``sets`` shadow sets; ConfigError when none do."""
    whole, held = TupleStore.open(folder), 0
    with _alone(folder / f"first-{sets}"):
        part = TupleStore.create(folder / f"first-{sets}", whole.header)
        for name in whole.names:
            if held >= sets:
                break
            shard = whole.shard(name)
            held += len(shard.tensors["group"])
            if name not in part.names:
                part.add(name, shard.tensors, shard.about)
    if held != sets:
        raise ConfigError(f"tuple store {folder}: no run of first shards holds {sets} shadow sets, but {held}")
    return part.folder


def private_sets(private: PrivatePlan, store: CurationConfig, site: Site) -> PrivateSets:
    """What a store's trials are scored on."""
    settings = [asdict(private), store.tiny, store.llm, asdict(store.spec), site.device]
    path = site.folder / f"private-{key_of(settings)}.safetensors"
    with _alone(path):
        return make_private(private, store.tiny, store.llm, store.spec, path, site.device)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds back other processes that want the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _results(
    pool: Executor | None, function: Callable[..., T], calls: list[tuple[Any, ...]], told: Callable[[], None]
) -> list[T]:
    """What ``function`` returns for the arguments of each call, in ``pool`` or here; ``told`` after each of them."""
    waits = [partial(function, *call) if pool is None else pool.submit(function, *call).result for call in calls]
    results = []
    for wait in waits:
        results.append(wait())
        told()
    return results


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
