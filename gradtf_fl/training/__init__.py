"""Fine-tuning: plain, stacked and differentially private."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.training.audit_plan import AuditPlan
    from gradtf_fl.training.dp_checkpoint import AnotherRun, DpCheckpoint
    from gradtf_fl.training.dp_sgd import DpOutcome, noisy_step, private_optimizer, train_dp
    from gradtf_fl.training.empirical_audit import AuditResult, Play, ScoreResult, run_audit
    from gradtf_fl.training.loss import row_mean_loss, target_mean_loss
    from gradtf_fl.training.memory import begin_peak, held_bytes, peak_bytes, peak_held_bytes
    from gradtf_fl.training.plain import fine_tune
    from gradtf_fl.training.preflight import check_rows
    from gradtf_fl.training.randomness import Draws
    from gradtf_fl.training.rehearsal import measure_step, rehearse
    from gradtf_fl.training.row_losses import RowLosses
    from gradtf_fl.training.stacked import (
        DpRecipe,
        PlainRecipe,
        StackedAdapters,
        StepsDone,
        batch_indices,
        descend,
        dp_fine_tune_stacked,
        fine_tune_stacked,
        stack_rows,
    )
    from gradtf_fl.training.stacked_layers import StackedLinear
    from gradtf_fl.training.trainable import check_trainable
    from gradtf_fl.training.wide_audit import WideGame, play_wide, wide_size
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "AnotherRun",
    "AuditPlan",
    "AuditResult",
    "DpCheckpoint",
    "DpOutcome",
    "DpRecipe",
    "Draws",
    "PlainRecipe",
    "Play",
    "RowLosses",
    "ScoreResult",
    "StackedAdapters",
    "StackedLinear",
    "StepsDone",
    "WideGame",
    "batch_indices",
    "begin_peak",
    "check_rows",
    "check_trainable",
    "descend",
    "dp_fine_tune_stacked",
    "fine_tune",
    "fine_tune_stacked",
    "held_bytes",
    "measure_step",
    "noisy_step",
    "peak_bytes",
    "peak_held_bytes",
    "play_wide",
    "private_optimizer",
    "rehearse",
    "row_mean_loss",
    "run_audit",
    "stack_rows",
    "target_mean_loss",
    "train_dp",
    "wide_size",
]
