"""A dry run at the paper's scale: Qwen2.5-3B -> 7B update vectors, a Grad-Transformer of Flan-T5-Large's size.

The two models' shapes come from their published configurations, on the meta device: no weights are read. Update
vectors are random; the Grad-Transformer, its optimizers, its training step and its generation are the product's own.
On a CUDA device it is measured in float32 and bf16, each beside the plain T5 loop's step, and with room for it a step
by the functional objective too, through a 7B model of random weights in bf16. On a CPU one step and one generation
show that they fit the memory.

    python -m experiments.paper.paper_scale --device cpu --out experiments/results/paper_scale.json
    python -m experiments.paper.paper_scale --device cuda --out experiments/results/paper_scale_gpu.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from experiments.measuring import Clock, machine, revision
from experiments.paper.plain_loop import training_steps
from experiments.paper.recomputation import recomputed
from gradtf_fl.adapters import AdaptedModel, AdapterSpec, Place, UpdateSpace
from gradtf_fl.files import write_whole
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import StackedAdapters
from gradtf_fl.transformer import (
    SIZES,
    Backbone,
    GradTransformer,
    GradTransformerModel,
    Standardisation,
    TrainConfig,
    new_optimizers,
    take_step,
)

GIB = 2**30
PACKAGES = ("torch", "transformers", "numpy")
ROOM_FOR_LLM = 60 * GIB
"""Memory of a CUDA device on which the functional step is taken: Grad-Transformer 9, LLM 14, the rest activations."""


@dataclass(frozen=True)
class Shape:
    """What a Qwen2 model's update vector depends on (published config.json), and what its weights do."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int

    def build(self, device: torch.device, dtype: torch.dtype) -> Any:
        """A model of random weights; on the meta device, of none."""
        from transformers import AutoModelForCausalLM, Qwen2Config

        fields = {key: value for key, value in vars(self).items() if key != "name"}
        with device:
            return AutoModelForCausalLM.from_config(Qwen2Config(**fields), dtype=dtype)

    def side(self, spec: AdapterSpec) -> UpdateSpace:
        """The space of this model's update vectors."""
        return AdaptedModel.of(self.build(torch.device("meta"), torch.float32), None, spec, self.name).space


QWEN_3B = Shape("Qwen2.5-3B", 2048, 11008, 36, 16, 2, 151936)
QWEN_7B = Shape("Qwen2.5-7B", 3584, 18944, 28, 28, 4, 152064)


@dataclass(frozen=True)
class ScalePlan:
    """What is measured.

    Attributes:
        batch: tuples in a training step.
        steps, warm_up: timed training steps and generations, and those before them.
        limit_bytes: memory that one step and one generation have to fit.
        tokens: length of the functional step's rows, one for each of ``batch`` updates.
        loop_batches: for each of these, a step is timed beside the plain T5 loop's.
    """

    source: Shape = QWEN_3B
    target: Shape = QWEN_7B
    backbone: Backbone = SIZES["large"]
    batch: int = 2
    steps: int = 1
    warm_up: int = 0
    limit_bytes: int = 22 * GIB
    tokens: int = 128
    loop_batches: tuple[int, ...] = ()
    seed: int = 0
    spec: AdapterSpec = field(default_factory=AdapterSpec)


def dry_run(plan: ScalePlan, places: Iterable[Place], say: Callable[[str], None]) -> dict[str, Any]:
    """The document: shapes, parameters, bytes, and a run for each place."""
    source, target = plan.source.side(plan.spec), plan.target.side(plan.spec)
    document: dict[str, Any] = {
        "seed": plan.seed,
        "source": _described(source),
        "target": _described(target),
        "adapter": plan.spec.to_json(),
        "backbone": plan.backbone.to_json(),
        "limit_gib": plan.limit_bytes / GIB,
        "runs": [],
    }
    say(f"{source.model} {document['source']['update']} -> {target.model} {document['target']['update']}")
    for place in places:
        run = _run(plan, source, target, place, say)
        document["parameters"], document["bytes"] = run.pop("parameters"), run.pop("bytes")
        document["runs"].append(run)
    return document


def _described(side: UpdateSpace) -> dict[str, Any]:
    return {"model": side.model, "update": [side.layout.blocks, side.layout.block_dim]}


def _run(
    plan: ScalePlan, source: UpdateSpace, target: UpdateSpace, place: Place, say: Callable[[str], None]
) -> dict[str, Any]:
    clock = Clock(place.device)
    generator = torch.Generator().manual_seed(plan.seed)
    updates, targets = (
        0.01 * torch.randn(max(plan.batch, 2), side.layout.blocks, side.layout.block_dim, generator=generator)
        for side in (source, target)
    )

    def build() -> GradTransformerModel:
        torch.manual_seed(plan.seed)
        fitted = [
            Standardisation.for_layout(values, side.layout) for values, side in ((updates, source), (targets, target))
        ]
        return GradTransformerModel(plan.backbone, *fitted).to(place.device).train()

    model, build_s = clock.timed(build)
    parameters, bare = count(model), clock.peak()
    say(f"{place.device} {place.precision}: {parameters['all']:,} parameters, built in {build_s:.1f} s")
    optimizers = new_optimizers(model, TrainConfig(seed=plan.seed))
    inputs, wanted = (values[: plan.batch].to(place.device) for values in (updates, targets))
    losses: list[float] = []

    def step() -> None:
        with place.autocast():
            loss = model.mse(inputs, wanted)
        take_step(model, optimizers, loss)
        losses.append(loss.item())

    step_s = clock.repeated(step, plan.steps, plan.warm_up)
    after_step = clock.peak()
    say(f"  training step {step_s:.3g} s, loss {losses[0]:.4f}, peak {after_step / GIB:.2f} GiB")
    states = sum(t.numel() * t.element_size() for o in optimizers for s in o.state.values() for t in tensors_of(s))
    run: dict[str, Any] = {
        "device": device_name(place.device),
        "precision": place.precision,
        "threads": torch.get_num_threads(),
        "batch": plan.batch,
        "build_s": build_s,
        "step_s": step_s,
        "steps_per_s": 1 / step_s,
        "loss_first_last": [losses[0], losses[-1]],
        "peak_gib": {"built": bare / GIB, "step": after_step / GIB},
    }
    model.zero_grad()
    run |= _generation(plan, GradTransformer(model.eval(), plan.backbone, source, target), updates, place, clock)
    run["peak_gib"]["generation"] = clock.peak() / GIB
    run["fits"] = clock.peak() <= plan.limit_bytes
    say(f"  generation {run['generation_s']:.3g} s, decoder anew {run['decoder_anew_s']:.3g} s, fits: {run['fits']}")
    if place.precision == "bf16" and has_room(place.device):
        run["functional"] = _functional(plan, model, optimizers, inputs, place, clock)
        say(f"  functional step {run['functional']['step_s']:.3g} s")
    if place.precision == "float32":
        rest = max(0, after_step - 8 * parameters["all"] - states)
        run["optimizers"] = what_fits(model, states, rest, plan.limit_bytes)
        for entry in run["optimizers"]:
            say(f"  {entry['optimizer']}: a step in {entry['step_gib']:.1f} GiB, fits: {entry['fits']}")
    model.train()  # last: its weights of three kinds are the most that memory holds
    run["beside_plain_loop"] = [_beside_loop(plan, batch, model, place, clock) for batch in plan.loop_batches]
    for entry in run["beside_plain_loop"]:
        say(f"  batch {entry['batch']}: plain T5 loop {entry['plain_s']:.3g} s, {entry['times']:.2f} times ours")
    run["parameters"] = parameters
    run["bytes"] = {
        "weights": 4 * parameters["all"],
        "gradients": 4 * parameters["all"],
        "optimizer_states": states,
        "checkpoint_float16": 2 * parameters["all"],
    }
    return run


def _generation(
    plan: ScalePlan, made: GradTransformer, updates: torch.Tensor, place: Place, clock: Clock
) -> dict[str, float | bool]:
    """Seconds of one generation as shipped, and without the decoder's cache."""
    one, values = updates[:1].to(place.device), updates[0].numpy()
    with torch.no_grad(), place.autocast():
        cached = clock.repeated(lambda: made.generate(values), plan.steps, plan.warm_up)
        decoder = clock.repeated(lambda: recomputed(made.model, one, False), plan.steps, plan.warm_up)
        whole = clock.repeated(lambda: recomputed(made.model, one, True), plan.steps, plan.warm_up)
    return {"generation_s": cached, "decoder_anew_s": decoder, "all_anew_s": whole}


def _functional(
    plan: ScalePlan,
    model: GradTransformerModel,
    optimizers: list[Any],
    inputs: torch.Tensor,
    place: Place,
    clock: Clock,
) -> dict[str, float]:
    """A step through a frozen LLM of random weights: `train`'s own forward, on ``batch`` rows."""
    llm = StackedAdapters(AdaptedModel.of(plan.target.build(place.device, torch.bfloat16), None, plan.spec))
    ids = torch.randint(plan.target.vocab_size, (plan.batch, plan.tokens), device=place.device)
    rows = TokenRows(ids, torch.ones_like(ids), ids)

    def step() -> None:
        with place.autocast():
            losses = llm.row_losses(llm.initial + model(inputs), rows)
        take_step(model, optimizers, losses.mean())

    seconds = clock.repeated(step, plan.steps, plan.warm_up)
    return {"step_s": seconds, "steps_per_s": 1 / seconds, "tokens": plan.tokens, "peak_gib": clock.peak() / GIB}


def _beside_loop(
    plan: ScalePlan, batch: int, model: GradTransformerModel, place: Place, clock: Clock
) -> dict[str, float]:
    """Seconds of a step by `mse` as shipped, with AdamW, and of the plain T5 loop; how many times ours the last is."""
    generator = torch.Generator().manual_seed(plan.seed)
    updates, targets = (
        (0.01 * torch.randn(batch, *scale.shape, generator=generator)).to(place.device)
        for scale in (model.source_scale, model.target_scale)
    )
    ways = training_steps(model, TrainConfig(seed=plan.seed), updates, targets, place.autocast)
    shipped, adamw, plain = (clock.repeated(way, plan.steps, plan.warm_up) for way in ways)
    times = {"times": plain / shipped, "times_adamw": plain / adamw}
    return {"batch": batch, "shipped_s": shipped, "adamw_s": adamw, "plain_s": plain, **times}


def count(model: GradTransformerModel) -> dict[str, int]:
    """Parameters, all of them trained: in all, the T5's, and the rest (embeddings and output of blocks)."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if "shared" not in name}
    t5 = sum(size for name, size in sizes.items() if name.startswith("t5."))
    return {"all": sum(sizes.values()), "t5": t5, "blocks": sum(sizes.values()) - t5}


def tensors_of(state: dict[str, Any]) -> list[torch.Tensor]:
    return [value for value in state.values() if torch.is_tensor(value)]


def what_fits(model: GradTransformerModel, states: int, rest: int, limit: int) -> list[dict[str, Any]]:
    """Memory of a training step by optimizer: float32 weights and gradients, its states, and what was measured beside
    them (activations, libraries). The first is measured, the others are computed from their states' sizes."""
    shapes = [p.shape for name, p in model.named_parameters() if "shared" not in name]
    trained = sum(shape.numel() for shape in shapes)
    factored = 4 * sum(sum(shape) if len(shape) == 2 else shape.numel() for shape in shapes)
    by_name = {
        "Muon and AdamW, float32 (shipped)": states,
        "AdamW, float32": 8 * trained,
        "AdamW, bf16 states": 4 * trained,
        "Adafactor without momentum": factored,
    }
    return [
        {"optimizer": name, "states_gib": size / GIB, "step_gib": total / GIB, "fits": total <= limit}
        for name, size in by_name.items()
        for total in (8 * trained + size + rest,)
    ]


def has_room(device: torch.device) -> bool:
    """Whether the functional step fits beside the rest."""
    return device.type == "cuda" and torch.cuda.get_device_properties(0).total_memory > ROOM_FOR_LLM


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--batch", type=int, default=ScalePlan.batch)
    parser.add_argument("--seed", type=int, default=ScalePlan.seed)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true", help="print the document instead of a line for each stage")
    options = parser.parse_args()
    places = [Place.find(options.device, "float32")]
    plan = ScalePlan(batch=options.batch, seed=options.seed)
    if places[0].device.type == "cuda":
        places.append(Place.find(options.device, "bf16"))
        plan = replace(plan, steps=10, warm_up=3, loop_batches=tuple(sorted({options.batch, 32})))
    began, described = time.monotonic(), machine(PACKAGES)
    document = dry_run(plan, places, lambda line: None if options.json else print(line, flush=True))
    document |= {"revision": revision(), "machine": described, "seconds": round(time.monotonic() - began, 1)}
    if options.json:
        print(json.dumps(document, indent=1))
    if options.out:
        write_whole(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
