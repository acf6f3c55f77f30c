"""The provider of a text pair: a tuple store and a Grad-Transformer, made once and kept for all seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.measuring import Progress
from experiments.paper.measures.trial import key_of
from gradtf_fl.adapters import Vector
from gradtf_fl.baselines import Controls, FromUpdate, Pair
from gradtf_fl.config import Count, Rate, Section, Seed, TaskSection
from gradtf_fl.curation import TaskCuration, TupleStore, curate, encode_causal
from gradtf_fl.training import StackedAdapters, fine_tune_stacked
from gradtf_fl.transformer import GradTransformer, Objective, TrainConfig, train_grad_transformer

PROVIDER_SEED = 0


class TextPlan(Section):
    """What the provider of any text pair does.

    Attributes:
        shared: folder with ``data`` and ``models``.
        tiny: the TinyLM's folder in ``models``.
        tasks: see `gradtf_fl.tasks.read_task_rows`.
        window: characters.
        rows: windows in a shadow set, and of an organization.
        shadow_sets, pair_sets: of each task.
        mixtures: shadow sets on mixtures of tasks, in all.
        steps, groups, rate: of the Grad-Transformer's training, a row a group.
        folder: where store and checkpoint are kept, by their settings.
    """

    shared: str
    tiny: str
    tasks: list[str]
    window: Count
    rows: Count
    shadow_sets: Count
    pair_sets: Count
    mixtures: int
    objective: Objective
    steps: Count
    groups: Count
    rate: Rate
    folder: str
    provider_seed: Seed = PROVIDER_SEED

    def curation(self, llm: str) -> TaskCuration:
        """The store of the pair with ``llm``."""
        models = Path(self.shared) / "models"
        return TaskCuration(
            tiny=str(models / self.tiny),
            llm=str(models / llm),
            sources=tuple(str(Path(self.shared) / "data" / name) for name in self.tasks),
            task=TaskSection(format="text", window=self.window, split_seed=self.provider_seed),
            seed=self.provider_seed,
            rows=self.rows,
            shadow_sets=self.shadow_sets,
            pair_sets=self.pair_sets,
            mixtures=self.mixtures,
        )

    def training(self) -> TrainConfig:
        """How the Grad-Transformer is trained on it."""
        return TrainConfig(
            objective=self.objective,
            steps=self.steps,
            groups=self.groups,
            rows=1,
            rate=self.rate,
            mixture_share=0.15 if self.mixtures else 0.0,
            seed=self.provider_seed,
        )


@dataclass(frozen=True)
class Provider:
    """What the provider has once it is ready; ``pair`` are both models, ``folder`` is where it all lies,
    ``data`` where tasks are."""

    curation: TaskCuration
    training: TrainConfig
    transformer: GradTransformer
    controls: Controls
    pair: Pair
    folder: Path
    data: Path

    def source(self, name: str) -> str:
        """Where the rows of a task are."""
        return str(self.data / name)


def provider(plan: TextPlan, llm: str, progress: Progress) -> Provider:
    """Curate and train, or take what was made with the same settings; a killed run goes on.

    Raises ConfigError when a model or a task is missing or does not fit.
    """
    curation, training = plan.curation(llm), plan.training()
    folder = Path(plan.folder) / f"{llm}-{key_of(curation.settings())}"
    checkpoint = folder / f"{key_of(training.to_json())}.safetensors"
    curate(curation, folder / "tuples", lambda what, done, total: progress(f"curate {what}", done, total))
    if not checkpoint.exists():
        train_grad_transformer(
            training,
            folder / "tuples",
            checkpoint,
            lambda done, total, loss: progress(f"train, loss {loss:.3f}", done, total),
        )
    return Provider(
        curation,
        training,
        GradTransformer.load(checkpoint),
        Controls.fit_on_store(folder / "tuples"),
        Pair(*(StackedAdapters.load(name, curation.spec) for name in (curation.tiny, curation.llm))),
        folder,
        Path(plan.shared) / "data",
    )


def nearest_tuned_longer(made: Provider) -> FromUpdate:
    """The rival that only has to recognise the task: of the nearest shadow set's task, an LLM update tuned longer.

    The LLM is tuned on as many public rows of each task as the Grad-Transformer saw in its functional training, so
    what is left between the two does not come from more rows.
    """
    updates = _tuned_longer(made)
    shards = [shard for shard in TupleStore.open(made.folder / "tuples").shards() if "llm" in shard.tensors]
    tasks = [shard.about["groups"][group]["task"] for shard in shards for group in shard.tensors["group"].tolist()]
    place = [made.curation.tasks.index(task) for task in tasks]

    def generate(update: Vector) -> Vector:
        longer: Vector = updates[place[made.controls.nearest_set(update)]].numpy()
        return longer

    return FromUpdate("nearest, tuned longer", "control", generate)


def _tuned_longer(made: Provider) -> Tensor:
    """LLM updates [tasks, L2, n2], kept with the checkpoint."""
    curation, training, side = made.curation, made.training, made.pair.llm
    seen = training.steps * training.groups * training.rows // len(curation.tasks)
    recipe = replace(curation.llm_recipe, steps=max(1, seen // curation.llm_recipe.batch))
    path = made.folder / f"longer-{key_of(asdict(recipe))}.safetensors"
    if not path.exists():
        rng = np.random.default_rng([curation.seed, 9])
        pools = [[example.row for example in curation.task_rows(name).public] for name in curation.tasks]
        count = min(seen, *(len(pool) for pool in pools))
        rows = [pool[i] for pool in pools for i in rng.choice(len(pool), count, replace=False)]
        seeds = [[curation.seed, 9, number] for number in range(len(pools))]
        encoded = encode_causal(rows, side.tokenizer, side.max_tokens)
        tuned = fine_tune_stacked(side, encoded, len(pools), recipe, seeds, [recipe.steps])[0]
        save_file({"updates": tuned.contiguous()}, path)
    updates: Tensor = load_file(path)["updates"]
    return updates
