"""What the main paths cost on a real model: SmolLM2-135M-Instruct, 30 layers, a vocabulary of 49,152.

    python -m experiments.bench.real_model            # every part, each in a process of its own
    python -m experiments.bench.real_model steps stop # these parts; the others' figures stay in the file

| part | question |
|---|---|
| steps | what a private step costs, by us and by others, and a plain PEFT step of the same 16 rows of 64 tokens |
| steps-large | the same with rank 8 on all attention projections |
| memory | the most that a process holds in such a step, each way in a process of its own |
| check | whether ``gradtf org check`` is right about a step on conversations, before the first one |
| bf16 | what base weights in bf16 save, and what they do to the rows' gradients |
| stop | whether a tuned model ends its answer by itself |
| curation | whether curation loads the model once a worker, and what a shadow set and a loop over plain PEFT cost |
| scoring | what exact match holds, compared with the logits of all rows at once |

One thread. The ways take one step each in turn, in random order; figures are medians. Ratios are of CPU time where
other programs could disturb the clock. The model is made by ``make real-model``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from experiments.bench.dp import SIGMA, DpBench, random_rows, step_times
from experiments.bench.dp_peers import CLIP, OURS, PLAIN, RATE, WAYS, trainable
from experiments.measuring import MODEL_FOLDER, default_out, machine, median, revision, smollm2_folder
from gradtf_fl.adapters import AdaptedModel, AdapterSpec, Place
from gradtf_fl.files import write_whole
from gradtf_fl.tasks import Row, Turn, encode_rows, exact_match, generate_greedily

T = TypeVar("T")
PACKAGES = ("torch", "transformers", "peft", "opacus")
BATCH, TOKENS = 16, 64
SMALL = AdapterSpec(targets=("auto",))
LARGE = AdapterSpec(rank=8, alpha=16.0, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
SPECS = {"rank 2 on q, v": SMALL, "rank 8 on q, k, v, o": LARGE}
PEERS = ("Opacus hooks", "torch.func vmap")
STEPS = DpBench(batches=(BATCH,), threads=(1,), tokens=TOKENS, rounds=5, least=2, seconds=115.0, warm_up=1)
CPU = torch.device("cpu")


def ward(number: int) -> Row:
    """A conversation of the kind that organizations hold: an order to be written as a form wants it."""
    ward_number, bed = 10 + number % 37, 10 + 7 * number % 83
    return Row.of_turns(
        [Turn("user", f"Ward {ward_number}, bed {bed}?"), Turn("assistant", f"ward {ward_number} bed {bed}")]
    )


def loaded(spec: AdapterSpec, precision: str = "float32") -> AdaptedModel:
    return AdaptedModel.load(str(MODEL_FOLDER), spec, Place.find("cpu", precision))


def alone(work: Callable[..., T], *arguments: Any) -> T:
    """What ``work`` gives in a new process of one thread."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin) as pool:
        return pool.submit(work, *arguments).result()


def _begin() -> None:
    torch.set_num_threads(1)


# ---- steps and memory


def steps(spec: AdapterSpec) -> dict[str, Any]:
    """Seconds of a step by way, and ratios to the plain step in CPU time."""
    model = loaded(spec).attach()
    rows = random_rows(model.config.vocab_size, TOKENS, TOKENS // 2)
    times = step_times(model, rows, BATCH, STEPS, (PLAIN, OURS, *PEERS))
    cpu = {way: median(taken.cpu) for way, taken in times.items()}
    return {
        way: {
            "seconds": round(median(taken.elapsed), 3),
            "cpu_seconds": round(cpu[way], 3),
            "over_plain": round(cpu[way] / cpu[PLAIN], 3),
            "runs": len(taken.cpu),
        }
        for way, taken in times.items()
    }


def memory() -> dict[str, Any]:
    """Peak megabytes of a process that takes a step, by way; rows of half prompt, and rows without prompt."""
    found = {}
    for name, spec in SPECS.items():
        for prompt, peers in ((TOKENS // 2, PEERS), (1, ())):
            peaks = {way: alone(step_peak, way, spec, prompt) for way in (PLAIN, OURS, *peers)}
            plain = peaks[PLAIN]
            found[f"{name}, loss on {TOKENS - prompt} tokens"] = {
                way: {
                    "peak_mb": round(peak / 1e6),
                    "beyond_model_mb": round((peak - held) / 1e6),
                    "over_plain": round(peak / plain[0], 3),
                    "beyond_model_over_plain": round((peak - held) / (plain[0] - plain[1]), 3),
                }
                for way, (peak, held) in peaks.items()
            }
    return found


def step_peak(way: str, spec: AdapterSpec, prompt: int) -> tuple[int, int]:
    """Most bytes that this process held in a step, and what it held before it."""
    from gradtf_fl.training import begin_peak, held_bytes, peak_held_bytes

    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    model = loaded(spec).attach().train()
    rows = random_rows(model.config.vocab_size, TOKENS, prompt)
    with ExitStack() as stack:
        made = WAYS[way](model, rows, BATCH, SIGMA, stack)
        touched = sum(float(p.detach().sum()) for p in model.parameters())  # weights are mapped until they are read
        assert touched == touched
        held = held_bytes(CPU)
        begin_peak(CPU)
        made.step(torch.arange(BATCH))
        return peak_held_bytes(CPU), held


# ---- check

CHECK_ROWS, CHECK_STEPS = 512, 2


def check() -> dict[str, Any]:
    """What the check states, and what `train_dp` then really takes, in processes of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "rows.jsonl"
        documents = [{"messages": [turn._asdict() for turn in ward(number).turns]} for number in range(CHECK_ROWS)]
        data.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
        stated = alone(stated_cost, Path(scratch) / "organization", data)
        real = alone(real_cost, data)
    seconds, gigabytes = (float(text) for text in _COST.findall(stated["training step"])[0])
    return {
        "stated": stated,
        "real": {"seconds": round(real[0], 2), "peak_gb": round(real[1] / 1e9, 2)},
        "stated_over_real": {
            "seconds": round(seconds / real[0], 2),
            "peak": round(gigabytes * 1e9 / real[1], 2),
        },
    }


_COST = re.compile(r"([0-9.e+]+) s for .* peak memory ([0-9.e+]+) GB")


def stated_cost(folder: Path, data: Path) -> dict[str, str]:
    """Findings of ``gradtf org check`` by name."""
    from clients import check_organization, make_organization

    make_organization(folder, "ward", data, None, 8.0, 1e-5, str(MODEL_FOLDER), str(MODEL_FOLDER))
    found: dict[str, str] = {}
    for finding in check_organization(folder, offline=True):
        found.setdefault(finding.what, finding.found)
    return {what: found[what].replace(str(data), "rows.jsonl") for what in ("training rows", "training step")}


def real_cost(data: Path) -> tuple[float, int]:
    """Seconds of a step (the median) and peak bytes of a private training as an organization's node does it."""
    from gradtf_fl.config import RowFormat
    from gradtf_fl.tasks import read_tokens
    from gradtf_fl.training import peak_held_bytes, train_dp

    tiny = AdaptedModel.load(str(MODEL_FOLDER), SMALL, Place.find("cpu", "float32"), kept=True)
    rows = read_tokens(data, tiny.tokenizer, RowFormat(), tiny.model.config).tokens
    ends = [time.perf_counter()]
    train_dp(
        tiny.attach(),
        rows,
        sigma=SIGMA,
        clip=CLIP,
        batch=64,
        steps=CHECK_STEPS + 1,  # the first one's clock also counts the checks before it
        rate=RATE,
        seed=0,
        progress=lambda done, total: ends.append(time.perf_counter()),
    )
    return median([after - before for before, after in pairwise(ends[1:])]), peak_held_bytes(CPU)


# ---- bf16


def bf16() -> dict[str, Any]:
    """Bytes of the base weights, and how far the rows' gradients are from those of float32 weights."""
    found: dict[str, tuple[int, Tensor, Tensor]] = {name: alone(gradients, name) for name in ("float32", "bf16")}
    (full_bytes, full, full_peft), (half_bytes, half, half_peft) = found["float32"], found["bf16"]
    return {
        "weights_mb": {"float32": round(full_bytes / 1e6), "bf16": round(half_bytes / 1e6)},
        "weights_ratio": round(half_bytes / full_bytes, 3),
        "distance_of_row_gradients": {
            "ours, float32 from PEFT's": _distance(full, full_peft),
            "ours, bf16 from float32": _distance(half, full),
            "PEFT's, bf16 from float32": _distance(half_peft, full_peft),
            "ours, bf16 from PEFT's": _distance(half, half_peft),
        },
    }


def gradients(precision: str) -> tuple[int, Tensor, Tensor]:
    """Bytes of the base weights; gradients [4, size] of four rows by us, and by PEFT one row after the other."""
    from gradtf_fl.training import Draws, RowLosses, private_optimizer, row_mean_loss

    model = loaded(LARGE, precision).attach()
    parameters = trainable(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in parameters.values():  # off its start, where half of the gradients are zero
            p += 0.02 * torch.randn(p.shape, generator=generator)
    rows = random_rows(model.config.vocab_size, TOKENS, TOKENS // 2)
    with private_optimizer(model, parameters, 1.0, 1.0, 4, RATE, Draws.make(0)) as optimizer:
        optimizer.sampler.backward(RowLosses(model, rows)(torch.arange(4)))
        ours = optimizer.row_gradients().clone()
    theirs = []
    for row in range(4):
        model.zero_grad(set_to_none=True)
        logits = model(input_ids=rows.input_ids[row : row + 1], use_cache=False).logits
        torch.autograd.backward(row_mean_loss(logits, rows.labels[row : row + 1]).sum())
        theirs.append(torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None]))
    base = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    return base, ours, torch.stack(theirs)


def _distance(some: Tensor, others: Tensor) -> float:
    """Median over rows of |a - b| / |b|."""
    return float(f"{float(((some - others).norm(dim=1) / others.norm(dim=1)).median()):.2g}")


# ---- stop

STOP_STEPS, STOP_RATE, SEEN, WRITTEN = 10, 1e-2, 8, 24


def stop() -> dict[str, Any]:
    """Ten noiseless steps of `train_dp` on eight conversations, their end trained or not."""
    return {"end trained": alone(stopping, True), "end not trained": alone(stopping, False)}


def stopping(end: bool) -> dict[str, Any]:
    """P(end | right answer) before and after, for a row of the training and one that is not in it; what is written."""
    from gradtf_fl.training import train_dp

    adapted = loaded(SMALL)
    tokenizer, model = adapted.tokenizer, adapted.attach().eval()
    rows = [Row.of_turns([Turn("user", "Ward 12, bed 34?"), Turn("assistant", "ward 12 bed 34")])]
    rows += [ward(number) for number in range(SEEN - 1)]
    asked = {"of the training": rows[0], "new": ward(40)}
    before = {name: end_probability(model, tokenizer, row) for name, row in asked.items()}
    encoded = encode_rows(rows, tokenizer, end=end)
    train_dp(model, encoded, sigma=0.0, clip=1.0, batch=SEEN, steps=STOP_STEPS, rate=STOP_RATE, seed=0)
    after = {name: end_probability(model.eval(), tokenizer, row) for name, row in asked.items()}
    prompts = [chat_prompt(tokenizer, row) for row in asked.values()]
    written = generate_greedily(model, tokenizer, prompts, WRITTEN)
    return {
        name: {
            "end_before": float(f"{before[name]:.2g}"),
            "end_after": float(f"{after[name]:.2g}"),
            "written": made.text,
            "right": row.turns[-1].content,
            "stops": len(made.tokens) < WRITTEN,
        }
        for (name, row), made in zip(asked.items(), written, strict=True)
    }


def end_probability(model: Any, tokenizer: Any, row: Row) -> float:
    """P(end | conversation up to the right answer)."""
    ids = encode_rows([row], tokenizer, end=True).input_ids
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, -2].softmax(-1)[ids[0, -1]])


def chat_prompt(tokenizer: Any, row: Row) -> str:
    """The conversation up to where the model begins to write."""
    turns = [turn._asdict() for turn in row.turns[:-1]]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


# ---- curation

SETS, SET_ROWS, SET_BATCH, SET_STEPS, SET_ROUNDS = 4, 16, 8, 1, 3


def curation() -> dict[str, Any]:
    """How often a worker loads its models, and CPU seconds of a shadow set compared with a loop over plain PEFT."""
    return {"loads": alone(loads), "shadow_set": alone(shadow_set_times)}


def loads() -> dict[str, int]:
    """Weights read by a worker that makes all shards of a curation, by model."""
    from transformers import AutoModelForCausalLM

    from gradtf_fl.config import TaskSection
    from gradtf_fl.curation import TaskCuration, curate
    from gradtf_fl.training import PlainRecipe

    read: dict[str, int] = {"embedded TinyLM": 0, "SmolLM2": 0, "shards": 0}
    real = AutoModelForCausalLM.from_pretrained

    def counted(folder: str, *arguments: Any, **options: Any) -> Any:
        read["SmolLM2" if Path(folder) == MODEL_FOLDER.resolve() else "embedded TinyLM"] += 1
        return real(folder, *arguments, **options)

    AutoModelForCausalLM.from_pretrained = counted
    brief = PlainRecipe(steps=1, batch=2)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "sums.jsonl"
        rows = [{"prompt": f"[_][_][_]{a}?{b}=", "answer": f"{a + b}"} for a in range(10, 30) for b in range(10, 30)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        plan = TaskCuration(
            "embedded:tiny",
            str(MODEL_FOLDER),
            (str(data),),
            TaskSection(format="prompt-answer", end=False),
            rows=8,
            shadow_sets=2,
            pair_sets=4,
            stack=1,
            plain=brief,
            llm_recipe=brief,
            snapshots=(1,),
        )
        read["shards"] = len(curate(plan, Path(scratch) / "tuples").names)
    return read


def shadow_set_times() -> dict[str, Any]:
    """CPU seconds a shadow set, stacked and by `fine_tune`'s loop over PEFT, in turn on the same rows and steps."""
    from gradtf_fl.training import PlainRecipe, StackedAdapters, fine_tune, fine_tune_stacked, stack_rows

    recipe = PlainRecipe(SET_STEPS, SET_BATCH, 1e-3)
    stacked = StackedAdapters(loaded(SMALL))
    peft = loaded(SMALL).attach()
    rows = random_rows(peft.config.vocab_size, TOKENS, TOKENS // 2)
    sets = [rows.take(torch.arange(start, start + SET_ROWS)) for start in range(0, SETS * SET_ROWS, SET_ROWS)]

    def stack_of(count: int) -> None:
        seeds = [[number] for number in range(count)]
        fine_tune_stacked(stacked, stack_rows(sets[:count]), count, recipe, seeds, [SET_STEPS])

    def loop() -> None:
        fine_tune(peft, sets[0], steps=SET_STEPS, batch=SET_BATCH, rate=recipe.rate, seed=0)

    works: dict[str, tuple[Callable[[], None], int]] = {
        "loop over PEFT": (loop, 1),
        "stack of 1": (lambda: stack_of(1), 1),
        f"stack of {SETS}": (lambda: stack_of(SETS), SETS),
    }
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(SET_ROUNDS + 1):
        for name, (work, count) in works.items():
            began = time.process_time()
            work()
            if turn:
                taken[name].append((time.process_time() - began) / count)
    found = {name: median(values) for name, values in taken.items()}
    return {
        name: {"cpu_seconds": round(value, 3), "over_loop": round(value / found["loop over PEFT"], 3)}
        for name, value in found.items()
    }


# ---- scoring

SCORED, SCORED_TOKENS, ANSWER = 64, 128, 16


def scoring() -> dict[str, Any]:
    """Megabytes of new tensors that exact match of 64 rows of 128 tokens holds, and of all their logits at once."""
    return {"rows": SCORED, "tokens": SCORED_TOKENS, **alone(scoring_peaks)}


def scoring_peaks() -> dict[str, int]:
    from gradtf_fl.training import peak_bytes

    model = loaded(SMALL).model
    rows = random_rows(model.config.vocab_size, SCORED_TOKENS, SCORED_TOKENS - ANSWER).take(torch.arange(SCORED))

    def at_once() -> None:
        with torch.no_grad():
            logits = model(input_ids=rows.input_ids, use_cache=False).logits
            right = (logits[:, :-1].argmax(-1) == rows.labels[:, 1:]) | (rows.labels[:, 1:] == -100)
            right.all(1).sum().item()

    ours, all_logits = peak_bytes(lambda: exact_match(model, rows)), peak_bytes(at_once)
    return {"exact_match_mb": round(ours / 1e6), "all_logits_mb": round(all_logits / 1e6)}


# ---- the file and the page

PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "steps": partial(steps, SMALL),
    "steps-large": partial(steps, LARGE),
    "memory": memory,
    "check": check,
    "bf16": bf16,
    "stop": stop,
    "curation": curation,
    "scoring": scoring,
}


@dataclass(frozen=True)
class _Line:
    """One line of what is printed: a path through the document, and the value there."""

    path: tuple[str, ...]
    value: Any


def lines(document: Any, path: tuple[str, ...] = ()) -> list[_Line]:
    if isinstance(document, dict):
        return [line for key, value in document.items() for line in lines(value, (*path, key))]
    return [_Line(path, document)]


def main() -> None:
    """Measure the parts that are named, print them and keep them in ``real_model.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=default_out() / "real_model.json")
    given = parser.parse_args()
    unknown = [name for name in given.parts if name not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    torch.set_num_threads(1)
    names = given.parts or list(PARTS)
    if len(names) > 1:
        for name in names:
            command = [sys.executable, "-m", "experiments.bench.real_model", name, "--out", str(given.out)]
            subprocess.run(command, check=True)
        return
    smollm2_folder()
    kept = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    (name,) = names
    kept[name] = {"revision": revision(), "machine": machine(PACKAGES), "found": PARTS[name]()}
    document = {part: kept[part] for part in PARTS if part in kept}
    write_whole(given.out, json.dumps(document, indent=1) + "\n")
    for line in lines(kept[name]["found"], (name,)):
        print(f"{' / '.join(line.path)}: {line.value}")


if __name__ == "__main__":
    main()
