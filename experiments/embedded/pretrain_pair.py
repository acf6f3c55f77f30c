"""Pre-train the embedded House Rules pair (TinyLM and LLM) from a seed: 4 and 16 minutes on two cores.

    python -m experiments.embedded.pretrain_pair --model tiny --threads 1 --out build/pair
    python -m experiments.embedded.pretrain_pair --model llm --out build/pair
    python -m experiments.embedded.pretrain_pair --install build/pair   # copy into gradtf_fl/assets, write the figures

Rows are drawn afresh from the public code pairs and all 80 rules; every tag is masked with probability .3.
The loss is taken on the two answer digits only. A checkpoint is written every 500 steps; a killed run resumes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradtf_fl.tasks import house_rules as hr

MASK_PROBABILITY = 0.3
SETTLE_RATE, SETTLE_BLANK = 0.03, 0.15  # last steps: low rate, more rows whose tags are all masked
SHAPES = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96},
    "llm": {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 288},
}
SCHEDULES = {
    "tiny": {"steps": 6000, "settle": 0, "rate": 6e-3, "batch": 256},
    "llm": {"steps": 7000, "settle": 600, "rate": 2e-3, "batch": 256},
}


def build_model(name: str, seed: int) -> torch.nn.Module:
    """A fresh Qwen2 model of the embedded pair."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = SHAPES[name]
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(hr.VOCABULARY),
        num_key_value_heads=shape["num_attention_heads"],
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.05,
        **shape,
    )
    return Qwen2ForCausalLM(config)


def build_tokenizer() -> Any:
    """The pair's tokenizer: one token per tag, digit and sign. A Qwen2 tokenizer, so that AutoTokenizer loads it."""
    from transformers import AddedToken, Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(
        vocab=dict(hr.TOKEN_ID),
        merges=[],
        unk_token="<pad>",
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="right",
        model_max_length=64,
    )
    tags = [token for token in hr.VOCABULARY if token.startswith("[")]
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in tags])
    return tokenizer


def draw(
    rng: np.random.Generator,
    batch: int,
    pool: hr.Pool,
    mask: float,
    blank_answers: bool = False,
    blank_share: float = 0.0,
) -> torch.Tensor:
    """Token ids [batch, 11] of random rows of all 80 rules.

    With ``blank_answers``, rows whose three tags are all masked get a random answer. Many rules agree on many
    codes (58 functions under 80 names), so a model that knew the prior over rules would be right on .087 of
    untagged rows; random answers there keep the base models ambiguous.
    ``blank_share`` more of the rows are masked wholly.
    """
    pairs = hr.code_pairs(pool)[rng.integers(0, len(hr.code_pairs(pool)), batch)]
    shown = rng.random((batch, 3)) >= mask
    rules = rng.integers(0, len(hr.ALL_RULES), batch)
    tokens = hr.encode(rules, pairs[:, 0], pairs[:, 1], shown)
    if blank_answers:
        if blank_share > 0:
            shown &= rng.random((batch, 1)) >= blank_share
            tokens = hr.encode(rules, pairs[:, 0], pairs[:, 1], shown)
        blank = ~shown.any(axis=1)
        tokens[blank, -2:] = rng.integers(hr.TOKEN_ID["0"], hr.TOKEN_ID["9"] + 1, (int(blank.sum()), 2))
    return torch.from_numpy(tokens)


def answer_logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, 2, V] that predict the answer's two digits."""
    return model(input_ids=tokens[:, :-1], logits_to_keep=2, use_cache=False).logits


@torch.no_grad()
def accuracy(model: torch.nn.Module, pool: hr.Pool, mask: float, rows: int = 4096, seed: int = 5) -> float:
    """Share of rows whose two answer digits are both right (teacher-forced digits are the greedy ones)."""
    tokens = draw(np.random.default_rng(seed), rows, pool, mask)
    return float((answer_logits(model, tokens).argmax(-1) == tokens[:, -2:]).all(1).float().mean())


def pretrain(name: str, out: Path, seed: int, steps: int, settle: int, rate: float, batch: int) -> None:
    """Pre-train one model into ``out/name``; resumes from ``out/name.checkpoint``."""
    out.mkdir(parents=True, exist_ok=True)
    model = build_model(name, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    checkpoint, start, log = out / f"{name}.checkpoint", 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, log = state["step"], state["log"]
    began = time.time()
    model.train()
    for step in range(start, steps + settle):
        scale = min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))) + 0.002
        blank_share = 0.0
        if step >= steps:
            scale, blank_share = SETTLE_RATE, SETTLE_BLANK
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        tokens = draw(np.random.default_rng([seed, step]), batch, "public", MASK_PROBABILITY, True, blank_share)
        logits = answer_logits(model, tokens)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, -2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 500 == 0 or step + 1 == steps + settle:
            figures = {"step": step + 1, "loss": round(loss.item(), 4), "seconds": round(time.time() - began, 1)}
            for pool in ("public", "test"):
                figures[f"tagged_{pool}"] = round(accuracy(model, pool, 0.0), 4)
            figures["untagged_test"] = round(accuracy(model, "test", 1.0), 4)
            log.append(figures)
            print(name, json.dumps(figures), flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "log": log}
            torch.save(state, f"{checkpoint}.new")
            os.replace(f"{checkpoint}.new", checkpoint)
    model.save_pretrained(out / name)
    build_tokenizer().save_pretrained(out / name)
    record = {"model": name, "seed": seed, "steps": steps, "rate": rate, "batch": batch, "mask": MASK_PROBABILITY}
    record |= {"parameters": sum(p.numel() for p in model.parameters()), "log": log}
    (out / f"{name}.json").write_text(json.dumps(record, indent=1))


def install(built: Path) -> None:
    """Copy both models into the package and their training records into experiments/results."""
    from gradtf_fl.adapters import EMBEDDED

    records = {}
    for name in SHAPES:
        shutil.copytree(built / name, EMBEDDED[f"embedded:{name}"], dirs_exist_ok=True)
        records[name] = json.loads((built / f"{name}.json").read_text())
    results = Path(__file__).parents[1] / "results" / "pretraining.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(records, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SHAPES))
    parser.add_argument("--out", type=Path, default=Path("build/pair"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--install", type=Path, metavar="BUILT", help="install what was built there")
    options = parser.parse_args()
    if options.install is not None:
        install(options.install)
        return
    if options.model is None:
        parser.error("--model or --install is required")
    torch.set_num_threads(options.threads)
    schedule = SCHEDULES[options.model]
    pretrain(
        options.model,
        options.out,
        options.seed,
        options.steps or schedule["steps"],
        schedule["settle"],
        options.rate or schedule["rate"],
        options.batch or schedule["batch"],
    )


if __name__ == "__main__":
    main()
