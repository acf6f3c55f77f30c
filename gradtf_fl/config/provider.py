"""``[provider]``: how shadow sets are made and the Grad-Transformer is trained (``gradtf prepare``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gradtf_fl.config.base import Count, Location, Rate, Section

Mechanism = Literal["adamw", "sgld", "dp-sgd"]
BACKBONES = ("small", "base", "large")
Objective = Literal["mse", "functional", "mse-then-functional"]


class ProviderSection(Section):
    """``[provider]``: the provider's own work: shadow sets from public rows, tuples, and the Grad-Transformer.

    Attributes:
        tuples: folder of the tuple store.
        library: file of the task library: the LLM tuned on each source's public rows.
        shadow_rows: public rows in a shadow set.
        shadow_sets: TinyLM shadow sets of each source.
        pair_sets: shadow sets of both models of each source.
        mixtures: TinyLM shadow sets on mixtures of sources, in all.
        mechanisms: how the TinyLM learns on shadow sets: adamw, sgld, dp-sgd; several share the sets.
        tuning_steps: optimizer steps of a shadow set.
        tuning_batch: rows in such a step.
        tuning_rate: its learning rate.
        last_k: LLM updates of this many last steps of a shadow set are kept, 1 to tuning_steps; with more, the
            Grad-Transformer learns from several answers to one TinyLM update, and the tuple store grows.
        stack: shadow sets tuned at once: memory, and what a kill loses.
        backbone: the Grad-Transformer's size: small, base or large (T5's, from scratch), or T5 weights from a folder or
            hub id, such as Flan-T5 (default: a smaller one, as for the embedded pair).
        objective: what the Grad-Transformer minimises: mse, functional or mse-then-functional.
        training_steps: its optimizer steps.
        training_groups: shadow federations in a batch.
        training_rate: its learning rate.
    """

    tuples: Location = Path("tuples")
    library: Location = Path("task-library.safetensors")
    shadow_rows: Annotated[int, Field(ge=8, le=10_000_000)] = 256
    shadow_sets: Count = 8
    pair_sets: Count = 4
    mixtures: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    mechanisms: Annotated[tuple[Mechanism, ...], Field(strict=False, min_length=1)] = ("adamw",)
    tuning_steps: Count = 60
    tuning_batch: Count = 8
    tuning_rate: Rate = 5e-3
    last_k: Count = 1
    stack: Count = 8
    backbone: str | None = None
    objective: Objective = "mse-then-functional"
    training_steps: Count = 1000
    training_groups: Count = 16
    training_rate: Rate = 1.5e-3

    @model_validator(mode="after")
    def _last_steps_are_steps(self) -> Self:
        if self.last_k > self.tuning_steps:
            raise ValueError(f"last_k must be at most tuning_steps ({self.tuning_steps}), not {self.last_k}")
        return self
