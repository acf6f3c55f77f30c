"""The provider of a text pair: a tuple store and a Grad-Transformer, made once and kept for all seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.cells import Progress
from experiments.measures.trial import key_of
from gradtf_fl.baselines import Controls, Pair, PairSide
from gradtf_fl.config import Count, Rate, Section, Seed
from gradtf_fl.curation import TaskCuration, curate
from gradtf_fl.transformer import GradTransformer, TrainConfig, train
from gradtf_fl.transformer.train_config import Objective

PROVIDER_SEED = 0


class TextPlan(Section):
    """What the provider of any text pair does.

    Attributes:
        shared: folder with ``data`` and ``models``.
        tiny: the TinyLM's folder in ``models``. tasks: see `gradtf_fl.tasks.text_windows.read_task_rows`.
        window: characters. rows: windows in a shadow set, and of an organization.
        shadow_sets, pair_sets: of each task. mixtures: shadow sets on mixtures of tasks, in all.
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
            tasks=tuple(self.tasks),
            data=str(Path(self.shared) / "data"),
            window=self.window,
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
    """What the provider has once it is ready; ``pair`` are both models."""

    curation: TaskCuration
    transformer: GradTransformer
    controls: Controls
    pair: Pair


def provider(plan: TextPlan, llm: str, progress: Progress) -> Provider:
    """Curate and train, or take what was made with the same settings; a killed run goes on.

    Raises ConfigError when a model or a task is missing or does not fit.
    """
    curation, training = plan.curation(llm), plan.training()
    folder = Path(plan.folder) / f"{llm}-{key_of(asdict(curation))}"
    checkpoint = folder / f"{key_of(asdict(training))}.safetensors"
    curate(curation, folder / "tuples", lambda what, done, total: progress(f"curate {what}", done, total))
    if not checkpoint.exists():
        train(
            training,
            folder / "tuples",
            checkpoint,
            lambda done, total, loss: progress(f"train, loss {loss:.3f}", done, total),
        )
    return Provider(
        curation,
        GradTransformer.load(checkpoint),
        Controls.fit_on_store(folder / "tuples"),
        Pair(*(PairSide.load(name, curation.spec) for name in (curation.tiny, curation.llm))),
    )
