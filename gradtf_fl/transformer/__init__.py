"""The Grad-Transformer: checkpoint and generation here; model and training are imported when they are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.transformer.agreement import AgreementRecipe, compare, tune_on_agreement
    from gradtf_fl.transformer.backbone import SIZES, Backbone
    from gradtf_fl.transformer.checkpoint import GradTransformer, embedded_checkpoint
    from gradtf_fl.transformer.conversion import convert
    from gradtf_fl.transformer.known_tasks import KnownTasks, TaskLibrary, embedded_tasks
    from gradtf_fl.transformer.model import GradTransformerModel, Standardisation
    from gradtf_fl.transformer.partition import PLANS, PartitionPlan
    from gradtf_fl.transformer.processes import Processes
    from gradtf_fl.transformer.refinement import (
        Answered,
        Refined,
        RefinementRecipe,
        RefiningGenerator,
        certainty,
        refine,
        refinement_loss,
    )
    from gradtf_fl.transformer.sampling import ShadowSampler
    from gradtf_fl.transformer.train_config import Objective, TrainConfig
    from gradtf_fl.transformer.training import new_optimizers, take_step, train_grad_transformer
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "PLANS",
    "SIZES",
    "AgreementRecipe",
    "Answered",
    "Backbone",
    "GradTransformer",
    "GradTransformerModel",
    "KnownTasks",
    "Objective",
    "PartitionPlan",
    "Processes",
    "Refined",
    "RefinementRecipe",
    "RefiningGenerator",
    "ShadowSampler",
    "Standardisation",
    "TaskLibrary",
    "TrainConfig",
    "certainty",
    "compare",
    "convert",
    "embedded_checkpoint",
    "embedded_tasks",
    "new_optimizers",
    "refine",
    "refinement_loss",
    "take_step",
    "train_grad_transformer",
    "tune_on_agreement",
]
