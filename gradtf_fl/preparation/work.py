"""What a project asks of its provider: the curation, the training, and where their files go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gradtf_fl.adapters import chosen_spec
from gradtf_fl.config import NO_TRANSFORMER, SimulationConfig
from gradtf_fl.curation import TaskCuration
from gradtf_fl.errors import ConfigError
from gradtf_fl.training import DpRecipe, PlainRecipe
from gradtf_fl.transformer import Backbone, TrainConfig

SNAPSHOTS = (0.25, 0.5, 0.75, 1.0)
"""Shares of a shadow set's tuning at which the TinyLM's update is kept."""
MIXTURE_SHARE = 0.5
"""Of the training, where there are mixtures: a federation of several sources sums a mixture of them, whatever it is."""


@dataclass(frozen=True)
class ProviderWork:
    """All of it, by settings alone.

    Attributes:
        tuples, checkpoint, controls, library: where each is kept.
    """

    curation: TaskCuration
    training: TrainConfig
    tuples: Path
    checkpoint: Path
    controls: Path
    library: Path

    @classmethod
    def of(cls, settings: SimulationConfig) -> ProviderWork:
        """The work of a project.

        Raises:
            ConfigError: the project has none to do, or does not say where its results go.
        """
        provider, task = settings.provider, settings.task
        problems = []
        if task.is_house_rules:
            problems.append("task.source house-rules: the embedded pair comes prepared; name the rows of your own task")
        for name, value in (("transformer", settings.transformer), ("controls", settings.controls)):
            if value in ("embedded", NO_TRANSFORMER):
                problems.append(f"provider.{name}: {value!r} is not a file; name the one that prepare writes")
        if problems:
            raise ConfigError(problems)
        recipe = PlainRecipe(provider.tuning_steps, provider.tuning_batch, provider.tuning_rate)
        curation = TaskCuration(
            tiny=settings.tiny,
            llm=settings.llm,
            sources=task.source,
            task=task,
            seed=settings.seed,
            rows=provider.shadow_rows,
            shadow_sets=provider.shadow_sets,
            pair_sets=provider.pair_sets,
            mixtures=provider.mixtures,
            mechanisms=provider.mechanisms,
            stack=provider.stack,
            last_k=provider.last_k,
            plain=recipe,
            llm_recipe=recipe,
            dp=DpRecipe(1, provider.tuning_steps, min(settings.batch, provider.shadow_rows), rate=provider.tuning_rate),
            snapshots=tuple(sorted({max(1, round(share * provider.tuning_steps)) for share in SNAPSHOTS})),
            spec=chosen_spec(settings),
        )
        training = TrainConfig(
            backbone=Backbone.named(provider.backbone) if provider.backbone else Backbone(),
            objective=provider.objective,
            steps=provider.training_steps,
            groups=provider.training_groups,
            rows=1,
            rate=provider.training_rate,
            mixture_share=MIXTURE_SHARE if provider.mixtures else 0.0,
            seed=settings.seed,
            device=settings.compute.device,
            precision=settings.compute.precision,
        )
        return cls(
            curation, training, provider.tuples, Path(settings.transformer), Path(settings.controls), provider.library
        )
