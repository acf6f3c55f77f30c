"""Training the Grad-Transformer: objectives `mse` (equation (10)) and `functional` (through the frozen LLM's loss).

Distance in parameter space is a poor target: relative error can rise while accuracy rises. The provider owns the LLM
and the public rows, so `functional` generates LLM updates block by block, runs the LLM with them on shadow rows and
descends on its loss. Inputs are what rounds deliver: averages over members of a shadow federation, snapshots along
the whole course of fine-tuning, updates trained under DP-SGD at several epsilons, and a little input noise.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.curation.store import TupleStore
from gradtf_fl.errors import ConfigError
from gradtf_fl.models import load_model, model_hash
from gradtf_fl.training.stacked import StackedAdapters
from gradtf_fl.transformer.checkpoint import GradTransformer, Side
from gradtf_fl.transformer.model import Backbone, GradTransformerModel, Standardisation
from gradtf_fl.transformer.sampling import ShadowSampler
from gradtf_fl.update_vectors import BlockLayout

Objective = Literal["mse", "functional", "mse-then-functional"]
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class TrainConfig:
    """How the Grad-Transformer is trained.

    Attributes:
        steps: optimizer steps (for ``mse-then-functional``: the functional ones; the warm start has as many / 4).
        groups: shadow federations in a batch.
        rows: public rows per federation in the functional objective.
        input_noise: standard deviation of Gaussian noise on inputs, in units of the source's scale.
        shadow_noise: largest strength of noise with the covariance of DP shadow sets, where 1 is a single DP set's.
        plain_share: share of inputs that come from plain (not DP) shadow sets.
        mixture_share: share of inputs whose task is a mixture of rules.
        checkpoint_every: steps between resumable snapshots.
    """

    objective: Objective = "functional"
    steps: int = 7000
    groups: int = 64
    rows: int = 2
    rate: float = 1.5e-3
    warm_up: int = 100
    weight_decay: float = 0.01
    input_noise: float = 0.15
    shadow_noise: float = 1.0
    plain_share: float = 0.25
    mixture_share: float = 0.15
    seed: int = 0
    checkpoint_every: int = 250
    backbone: Backbone = Backbone()


@dataclass
class _Run:
    """What a killed training run continues from; ``log`` holds one loss for each finished step."""

    config: TrainConfig
    sampler: ShadowSampler
    model: GradTransformerModel
    optimizers: list[torch.optim.Optimizer]
    log: list[float]

    def save(self, path: Path) -> None:
        staging = Path(f"{path}.new")
        state = {
            "config": json.dumps(asdict(self.config)),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "difficulty": list(self.sampler.difficulty.values()),
            "log": self.log,
        }
        torch.save(state, staging)
        os.replace(staging, path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if state["config"] != json.dumps(asdict(self.config)):
            raise ConfigError(f"{path}: left by a training run with other settings; remove it or choose another --out")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.sampler.difficulty = dict(zip(self.sampler.difficulty, state["difficulty"], strict=True))
        self.log = list(state["log"])


def _slots(layout: BlockLayout) -> list[tuple[int, int]]:
    return [(slot.start, slot.start + slot.size) for slot in layout.slots]


def train(
    config: TrainConfig, tuples: str | Path, out: str | Path, progress: Progress | None = None
) -> GradTransformer:
    """Train on the tuple store ``tuples`` and write the checkpoint ``out``; resumes from ``out``.training.

    Raises ConfigError or CorruptFile when the store is missing, damaged or made with another model than is at hand.
    """
    store = TupleStore.open(tuples)
    header = store.header
    source, target = (_side(header, role) for role in ("tiny", "llm"))
    for side in (source, target):
        if model_hash(side.model) != side.model_sha256:
            raise ConfigError(f"tuple store {tuples}: curated with another {side.model!r} than the one at hand")
    shards = store.read_all()
    sampler = ShadowSampler(shards, config.plain_share, config.mixture_share)
    if not sampler.pairs:
        raise ConfigError(f"tuple store {tuples}: no LLM updates (they give the output's scale)")
    model = _new_model(config, sampler, source, target)
    llm = StackedAdapters(load_model(target.model)[0], target.spec)
    phases: list[tuple[str, int]] = [(config.objective, config.steps)]
    if config.objective == "mse-then-functional":
        phases = [("mse", config.steps // 4), ("functional", config.steps)]
    total = sum(steps for _, steps in phases)
    optimizers = _optimizers(model, config)
    resume, run = Path(f"{out}.training"), _Run(config, sampler, model, optimizers, [])
    if resume.exists():
        run.load(resume)
    began = time.monotonic()
    model.train()
    for step in range(len(run.log), total):
        rng = np.random.default_rng([config.seed, 11, step])
        done = step / total
        scale = min(1.0, (step + 1) / config.warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = config.rate * scale
        if phases[0][0] == "mse" and step < phases[0][1]:
            updates, targets = sampler.tuples(rng, config.groups)
            loss = model.mse(_noised(updates, model, sampler, config, step), targets)
        else:
            batch = sampler.batch(rng, config.groups, config.rows)
            generated = model(_noised(batch.updates, model, sampler, config, step))
            losses = llm.row_losses(llm.initial + generated, batch.rows).reshape(config.groups, -1).mean(1)
            sampler.learned(batch.tasks, losses.tolist())
            loss = losses.mean()
        model.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        run.log.append(loss.item())
        if progress is not None:
            progress(step + 1, total, loss.item())
        if (step + 1) % config.checkpoint_every == 0:
            run.save(resume)
    model.eval()
    result = GradTransformer(model, config.backbone, source, target)
    result.save(out)
    record = {"config": asdict(config), "seconds": round(time.monotonic() - began, 1), "loss_last_100": _tail(run.log)}
    Path(f"{out}.json").write_text(json.dumps(record, indent=1))
    resume.unlink(missing_ok=True)
    return GradTransformer.load(out)


def _tail(log: list[float]) -> float:
    return round(sum(log[-100:]) / max(1, len(log[-100:])), 4)


def _side(header: dict[str, Any], role: str) -> Side:
    entry = header[role]
    spec, layout = AdapterSpec.from_json(header["spec"]), BlockLayout.from_json(entry["layout"])
    return Side(entry["name"], entry["sha256"], spec, layout)


def _new_model(config: TrainConfig, sampler: ShadowSampler, source: Side, target: Side) -> GradTransformerModel:
    rng = np.random.default_rng([config.seed, 3])
    inputs = sampler.batch(rng, 2048, 1).updates
    outputs = torch.cat([shard.tensors["llm"] for shard in sampler.shards if "llm" in shard.tensors])
    torch.manual_seed(config.seed)
    return GradTransformerModel(
        config.backbone,
        Standardisation.fit(inputs, _slots(source.layout)),
        Standardisation.fit(outputs, _slots(target.layout)),
    )


def _optimizers(model: GradTransformerModel, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon (orthogonalised momentum, Jordan et al. 2024) for the T5's matrices, AdamW for all else.

    At equal steps Muon's loss is a fifth lower than AdamW's, for 45 ms more a step.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if "shared" in name or "embed_tokens" in name:
            continue  # T5's vocabulary, which nothing reads
        hidden = name.startswith("t5.") and parameter.dim() == 2 and "relative_attention_bias" not in name
        (matrices if hidden else others).append(parameter)
    rate, decay = config.rate, config.weight_decay
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, weight_decay=decay, fused=True),
    ]


def _noised(
    updates: Tensor, model: GradTransformerModel, sampler: ShadowSampler, config: TrainConfig, step: int
) -> Tensor:
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    isotropic = config.input_noise * model.source_scale * torch.randn(updates.shape, generator=generator)
    return updates + isotropic + sampler.noise(updates, config.shadow_noise, generator)
