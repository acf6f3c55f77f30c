"""What this project's ways of working cost compared with the plain ones, on one machine in one run (paper, section 6).

Provider: everything from public rows to a checkpoint, by `mse` on tuples with LLM shadows and by `functional` without
them (but for a handful that give the output's scale), until `functional` is as good on seen and on unseen rules. The
other rows compare one piece of work done in two ways, alternately, and take medians.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from experiments.embedded import LLM_RECIPE, TINY_RECIPE, Bench, draw
from experiments.measuring import Cell, Progress, measure, median
from experiments.paper.measures.trial import Scores, Trial, pgr, private_sets, score
from experiments.paper.measures.trial_parameters import Sets, TrialParameters
from experiments.paper.plain_loop import training_steps
from experiments.paper.recomputation import recomputed
from gradtf_fl.adapters import EMBEDDED, AdapterSpec, Place
from gradtf_fl.baselines import Controls
from gradtf_fl.config import Count, Section
from gradtf_fl.curation import curate
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.training import PlainRecipe, StackedAdapters, fine_tune_stacked
from gradtf_fl.transformer import GradTransformerModel, Standardisation, TrainConfig, train_grad_transformer

OURS, PEER, FASTER = "ours, s", "peer, s", "times faster"
BLOCKS = 28


class Rung(Section):
    """One try of `functional`: plain shadow sets for each rule, plain mixtures, and steps."""

    plain_singles: Sets
    plain_mixtures: Sets
    steps: Count


class CostParameters(TrialParameters):
    """Sizes.

    Attributes:
        pair_singles, pair_mixtures, mse_steps: tuples and steps of `mse`.
        scale_pairs: mixtures with an LLM half for `functional`.
        ladder: tries of `functional`, cheapest first; the first that is as good as `mse` counts, else the last.
        sets, set_steps: shadow sets tuned at once or one after the other, and for how many steps.
        block_dim, batch: of the update vectors of 28 blocks that a Grad-Transformer of the shipped size generates and
            trains on.
        repeats: of each way.
    """

    mse_steps: Count = 1500
    scale_pairs: Count = 8
    ladder: list[Rung]
    sets: Count = 16
    set_steps: Count = 10
    block_dim: Count = 1024
    batch: Count = 16
    repeats: Count = 5


@measure(CostParameters)
def cost(parameters: CostParameters, seed: int, progress: Progress) -> list[Cell]:
    """Seconds of ours and of the peer, and how many times faster ours is, for each piece of work."""
    torch.set_num_threads(1)
    cells: list[Cell] = []
    work: list[tuple[str, Callable[[], list[Cell]]]] = [
        ("provider", lambda: _provider(parameters, seed)),
        ("stacked curation", lambda: _stacked(parameters, seed)),
        ("generation", lambda: _generation(parameters, seed)),
        ("training step", lambda: _training_step(parameters, seed)),
    ]
    for done, (name, part) in enumerate(work):
        progress(name, done, len(work))
        cells += part()
    return cells


def _provider(parameters: CostParameters, seed: int) -> list[Cell]:
    pairs = parameters.model_copy(update={"plain_singles": 0, "plain_mixtures": 0})
    by_mse = pairs.trial(seed, objective="mse", steps=parameters.mse_steps)
    theirs, peer = _from_scratch(parameters, by_mse)
    for rung in parameters.ladder:
        sizes = rung.model_dump() | {"pair_singles": 0, "pair_mixtures": parameters.scale_pairs}
        ours, made = _from_scratch(parameters, parameters.model_copy(update=sizes).trial(seed))
        if all(made[f"{group} one generated"] >= peer[f"{group} one generated"] for group in ("seen", "unseen")):
            break
    row = "provider: functional without LLM shadows against mse with them"
    cells = _compared(row, ours, theirs)
    for name, scores in (("ours", made), ("peer", peer)):
        for group in ("seen", "unseen"):
            value = scores[f"{group} one generated"]
            cells += [Cell(row, f"{name}: {group} accuracy", value)]
            cells += [Cell(row, f"{name}: {group} PGR", pgr(scores, group, value))]
    return cells


def _from_scratch(parameters: CostParameters, trial: Trial) -> tuple[float, Scores]:
    """Seconds of curation and training with nothing kept from before, and the scores."""
    private = private_sets(parameters.private(trial.store.seed), trial.store, parameters.site)
    with tempfile.TemporaryDirectory() as folder:
        tuples, checkpoint = Path(folder) / "tuples", Path(folder) / "checkpoint"
        began = time.perf_counter()
        curate(trial.store, tuples, place=Place.find(parameters.site.device))
        made = train_grad_transformer(trial.train, tuples, checkpoint)
        seconds = time.perf_counter() - began
        return seconds, score(Bench(made, Controls.fit_on_store(tuples)), private)


def _stacked(parameters: CostParameters, seed: int) -> list[Cell]:
    rules = list(hr.split_rules()[0][: parameters.sets])
    rows = draw(rules, parameters.rows, "public", seed)
    seeds = [[seed, number] for number in range(len(rules))]
    cells = []
    for device, (name, recipe) in product(_devices(), zip(EMBEDDED, (TINY_RECIPE, LLM_RECIPE), strict=True)):
        stack = StackedAdapters.load(name, AdapterSpec(), Place.find(device))
        short = replace(recipe, steps=parameters.set_steps)

        def at_once(stack: StackedAdapters = stack, short: PlainRecipe = short) -> None:
            fine_tune_stacked(stack, rows, len(rules), short, seeds, [short.steps]).cpu()

        def one_by_one(stack: StackedAdapters = stack, short: PlainRecipe = short) -> None:
            for number, own in enumerate(torch.arange(len(rows)).reshape(len(rules), -1)):
                fine_tune_stacked(stack, rows.take(own), 1, short, seeds[number : number + 1], [short.steps]).cpu()

        row = f"{len(rules)} shadow sets of {name}, {device}: stacked against one after the other"
        cells += _compared(row, *_alternately(parameters.repeats, at_once, one_by_one))
    return cells


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _generation(parameters: CostParameters, seed: int) -> list[Cell]:
    model, updates = _large(parameters, seed)
    model.eval()
    cells = []
    for batch in sorted({1, parameters.batch}):
        ways = [partial(model, updates[:batch])]
        ways += [partial(recomputed, model, updates[:batch], encoder_too) for encoder_too in (False, True)]
        with torch.no_grad():
            cached, decoder, everything = _alternately(parameters.repeats, *ways)
        row = f"generating {BLOCKS} blocks, batch {batch}: with cache against"
        cells += _compared(f"{row} the decoder anew for each block", cached, decoder)
        cells += _compared(f"{row} encoder and decoder anew for each block", cached, everything)
    return cells


def _training_step(parameters: CostParameters, seed: int) -> list[Cell]:
    model, updates = _large(parameters, seed)
    targets = torch.randn(updates.shape, generator=torch.Generator().manual_seed(seed))
    steps = training_steps(model, parameters.trial(seed).train, updates, targets, nullcontext)
    ours, same_optimizer, theirs = _alternately(parameters.repeats, *steps)
    row = f"training step, batch {parameters.batch}: against the plain T5 loop"
    return _compared(f"{row}, as shipped", ours, theirs) + _compared(f"{row}, AdamW both", same_optimizer, theirs)


def _large(parameters: CostParameters, seed: int) -> tuple[GradTransformerModel, Tensor]:
    """A model of 28 blocks on both sides, and updates [batch, 28, block_dim]."""
    torch.manual_seed(seed)
    updates = torch.randn(parameters.batch, BLOCKS, parameters.block_dim)
    scale = Standardisation.identity(*updates.shape[1:])
    return GradTransformerModel(TrainConfig().backbone, scale, scale), updates


def _alternately(repeats: int, *ways: Callable[[], object]) -> list[float]:
    """Median seconds of each way; they take turns, after one unmeasured turn."""
    taken: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        for number, way in enumerate(ways):
            began = time.perf_counter()
            way()
            if turn:
                taken[number].append(time.perf_counter() - began)
    return [median(times) for times in taken]


def _compared(row: str, ours: float, theirs: float) -> list[Cell]:
    return [Cell(row, OURS, ours), Cell(row, PEER, theirs), Cell(row, FASTER, theirs / ours)]
