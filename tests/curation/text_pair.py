"""An untrained pair with different widths, depths and tokenizers (letters, and words), and two small tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradtf_fl.config import TaskSection
from gradtf_fl.curation import TaskCuration
from gradtf_fl.training.stacked import DpRecipe, PlainRecipe

WORDS = ("cat", "dog", "sat", "ran", "on", "the", "mat", "hill")
CONTEXT = 48


@dataclass(frozen=True)
class TextFiles:
    """Folders of both models and of the data."""

    tiny: Path
    llm: Path
    data: Path

    def sources(self, *names: str) -> tuple[str, ...]:
        """Where tasks of these names are."""
        return tuple(str(self.data / name) for name in names)

    def curation(self, **changes: Any) -> TaskCuration:
        """The smallest store of every kind of shard."""
        few = PlainRecipe(steps=4, batch=4, rate=1e-2)
        settings: dict[str, Any] = {
            "tiny": str(self.tiny),
            "llm": str(self.llm),
            "sources": self.sources("animals", "numbers"),
            "task": TaskSection(format="text", window=12),
            "rows": 8,
            "shadow_sets": 3,
            "pair_sets": 2,
            "mixtures": 2,
            "mechanisms": ("adamw", "sgld", "dp-sgd"),
            "stack": 2,
            "plain": few,
            "llm_recipe": few,
            "dp": DpRecipe(rounds=1, steps=2, batch=4),
            "snapshots": (2, 4),
        }
        return TaskCuration(**settings | changes)


def write_files(folder: Path) -> TextFiles:
    """Two models and two tasks: a text file ``animals``, and rows ``numbers`` with a field "text"."""
    _write_model(folder / "models" / "tiny", _letters(), width=8, layers=2)
    _write_model(folder / "models" / "llm", _words(), width=16, layers=3)
    data, rng = folder / "data", np.random.default_rng(0)
    (data / "numbers").mkdir(parents=True)
    stories = ["<|endoftext|>".join(" ".join(rng.choice(WORDS, 12)) for _ in range(40))]
    (data / "animals.txt").write_text(stories[0])
    lines = [json.dumps({"text": " ".join(map(str, rng.integers(0, 99, 12)))}) for _ in range(40)]
    (data / "numbers" / "train.jsonl").write_text("\n".join(lines))
    return TextFiles(folder / "models" / "tiny", folder / "models" / "llm", data)


def _letters() -> dict[str, int]:
    symbols = ["<s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789", " ", "\n"]
    return {symbol: number for number, symbol in enumerate(symbols)}


def _words() -> dict[str, int]:
    symbols = ["<s>", "<unk>", *WORDS, *map(str, range(99))]
    return {symbol: number for number, symbol in enumerate(symbols)}


def _write_model(folder: Path, vocabulary: dict[str, int], width: int, layers: int) -> None:
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(width)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    letters = "a" in vocabulary
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Split(Regex("."), "isolated") if letters else pre_tokenizers.WhitespaceSplit()
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", unk_token="<unk>")
    fast.save_pretrained(folder)
