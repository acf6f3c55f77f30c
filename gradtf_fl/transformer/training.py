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
from torch import Tensor

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.curation.store import Shard, TupleStore, token_rows
from gradtf_fl.errors import ConfigError
from gradtf_fl.models import load_model, model_hash
from gradtf_fl.tasks.rows import TokenRows
from gradtf_fl.training.stacked import StackedAdapters
from gradtf_fl.transformer.checkpoint import GradTransformer, Side
from gradtf_fl.transformer.model import Backbone, GradTransformerModel, Standardisation
from gradtf_fl.update_vectors import BlockLayout

Objective = Literal["mse", "functional", "mse-then-functional"]
Progress = Callable[[int, int, float], None]


AVERAGED = (1, 1, 2, 3, 5)
"""How many updates of one task, from any of its federations, are averaged: single ones most often."""
OWN_FEDERATION = 0.5
"""Share of DP inputs that average members of one federation (the rest: any members with the same task)."""
WEIGHT_CONCENTRATION = 8.0
"""Weights of an average are Dirichlet(8): nearly equal, never twice the same."""


@dataclass(frozen=True)
class TrainConfig:
    """How the Grad-Transformer is trained.

    Attributes:
        steps: optimizer steps (for ``mse-then-functional``: the functional ones; the warm start has as many / 4).
        groups: shadow federations in a batch.
        rows: public rows per federation in the functional objective.
        input_noise: standard deviation of Gaussian noise on inputs, in units of the source's scale.
        plain_share: share of inputs that come from plain (not DP) shadow sets.
        checkpoint_every: steps between resumable snapshots.
    """

    objective: Objective = "functional"
    steps: int = 7000
    groups: int = 24
    rows: int = 8
    rate: float = 7e-4
    warm_up: int = 100
    weight_decay: float = 0.01
    input_noise: float = 0.3
    plain_share: float = 0.25
    seed: int = 0
    checkpoint_every: int = 250
    backbone: Backbone = Backbone()


class ShadowSampler:
    """Draws (averaged TinyLM update, rows) pairs from the shards of a tuple store."""

    def __init__(self, shards: list[Shard], plain_share: float) -> None:
        self.shards = shards
        self.plain_share = plain_share
        self.plain: list[tuple[int, Tensor]] = []  # (shard, its sets of one federation)
        self.pairs: list[tuple[int, Tensor]] = []  # those of the plain ones that have LLM updates
        self.dp: list[tuple[int, Tensor]] = []
        for number, shard in enumerate(shards):
            for g, about in enumerate(shard.about["groups"]):
                entry = (number, (shard.tensors["group"] == g).nonzero().flatten())
                (self.dp if about["epsilon"] else self.plain).append(entry)
                if "llm" in shard.tensors:
                    self.pairs.append(entry)
        self._twins: dict[tuple[bool, str], list[tuple[int, Tensor]]] = {}  # single sets by kind and hidden task
        for private, entries in ((False, self.plain), (True, self.dp)):
            for number, sets in entries:
                twins = self._twins.setdefault((private, self._task(number, sets)), [])
                twins += [(number, sets[i : i + 1]) for i in range(len(sets))]

    def _task(self, number: int, sets: Tensor) -> str:
        shard = self.shards[number]
        about = shard.about["groups"][int(shard.tensors["group"][sets[0]])]
        return json.dumps([about["rules"], about["shown"]])

    def draw(self, rng: np.random.Generator, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """(update [L1, n1], input_ids [rows, T], labels [rows, T]) of one random shadow federation."""
        private = bool(self.dp) and rng.random() >= self.plain_share
        kind = self.dp if private else self.plain
        number, sets = kind[rng.integers(len(kind))]
        if private and rng.random() < OWN_FEDERATION:
            members = [(number, sets[i : i + 1]) for i in range(len(sets))]
            count = int(rng.integers(1, len(members) + 1))  # some may have dropped out
        else:
            members = self._twins[(private, self._task(number, sets))]
            count = min(len(members), int(rng.choice(AVERAGED)))
        snapshot = int(rng.integers(self.shards[number].tensors["tiny"].shape[0]))
        chosen = [members[i] for i in rng.choice(len(members), count, replace=False)]
        parts = torch.cat([self.shards[n].tensors["tiny"][snapshot, which] for n, which in chosen])
        weights = torch.from_numpy(rng.dirichlet([WEIGHT_CONCENTRATION] * len(parts))).float()
        update = torch.tensordot(weights, parts, 1)
        shard = self.shards[number]
        per_set = shard.tensors["input_ids"].shape[1]
        which = sets[torch.from_numpy(rng.integers(len(sets), size=rows))]
        ids, labels = token_rows(shard, which, torch.from_numpy(rng.integers(per_set, size=rows)))
        return update, ids, labels

    def batch(self, rng: np.random.Generator, groups: int, rows: int) -> tuple[Tensor, TokenRows]:
        """(updates [groups, L1, n1], rows [groups * rows, T])."""
        drawn = [self.draw(rng, rows) for _ in range(groups)]
        ids = torch.cat([d[1] for d in drawn])
        return torch.stack([d[0] for d in drawn]), TokenRows(
            ids, torch.ones_like(ids), torch.cat([d[2] for d in drawn])
        )

    def tuples(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """The paper's tuples: (TinyLM updates [count, L1, n1], LLM updates [count, L2, n2]) of paired sets."""
        tiny, llm = [], []
        for number, sets in (self.pairs[i] for i in rng.integers(len(self.pairs), size=count)):
            tensors = self.shards[number].tensors
            tiny.append(tensors["tiny"][-1, sets].mean(0))
            targets = tensors["llm_last"].float() if "llm_last" in tensors else tensors["llm"][None]
            llm.append(targets[int(rng.integers(len(targets))), sets].mean(0))
        return torch.stack(tiny), torch.stack(llm)


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
    sampler = ShadowSampler(shards, config.plain_share)
    if not sampler.pairs:
        raise ConfigError(f"tuple store {tuples}: no LLM updates (they give the output's scale)")
    model = _new_model(config, sampler, source, target)
    llm = StackedAdapters(load_model(target.model)[0], target.spec)
    phases: list[tuple[str, int]] = [(config.objective, config.steps)]
    if config.objective == "mse-then-functional":
        phases = [("mse", config.steps // 4), ("functional", config.steps)]
    total = sum(steps for _, steps in phases)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=config.rate, weight_decay=config.weight_decay, fused=True
    )
    resume, first = Path(f"{out}.training"), 0
    log: list[float] = []
    if resume.exists():
        first, log = _load_resume(resume, config, model, optimizer)
    began = time.monotonic()
    model.train()
    for step in range(first, total):
        rng = np.random.default_rng([config.seed, 11, step])
        done = step / total
        scale = min(1.0, (step + 1) / config.warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = config.rate * scale
        if phases[0][0] == "mse" and step < phases[0][1]:
            updates, targets = sampler.tuples(rng, config.groups)
            loss = model.mse(_noised(updates, model, config, step), targets)
        else:
            updates, rows = sampler.batch(rng, config.groups, config.rows)
            generated = model(_noised(updates, model, config, step))
            loss = llm.row_losses(llm.initial + generated, rows).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        log.append(loss.item())
        if progress is not None:
            progress(step + 1, total, loss.item())
        if (step + 1) % config.checkpoint_every == 0:
            _save_resume(resume, config, model, optimizer, step + 1, log)
    model.eval()
    result = GradTransformer(model, config.backbone, source, target)
    result.save(out)
    record = {"config": asdict(config), "seconds": round(time.monotonic() - began, 1), "loss_last_100": _tail(log)}
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
    inputs = torch.stack([sampler.draw(rng, 1)[0] for _ in range(2048)])
    outputs = torch.cat([sampler.shards[n].tensors["llm"][sets] for n, sets in sampler.pairs])
    torch.manual_seed(config.seed)
    return GradTransformerModel(
        config.backbone,
        Standardisation.fit(inputs, _slots(source.layout)),
        Standardisation.fit(outputs, _slots(target.layout)),
    )


def _noised(updates: Tensor, model: GradTransformerModel, config: TrainConfig, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    return updates + config.input_noise * model.source_scale * torch.randn(updates.shape, generator=generator)


def _save_resume(path: Path, config: TrainConfig, model: Any, optimizer: Any, step: int, log: list[float]) -> None:
    staging = Path(f"{path}.new")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "log": log}
    torch.save(state | {"config": json.dumps(asdict(config))}, staging)
    os.replace(staging, path)


def _load_resume(path: Path, config: TrainConfig, model: Any, optimizer: Any) -> tuple[int, list[float]]:
    state = torch.load(path, weights_only=True)
    if state["config"] != json.dumps(asdict(config)):
        raise ConfigError(f"{path}: left by a training run with other settings; remove it or choose another --out")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), list(state["log"])
