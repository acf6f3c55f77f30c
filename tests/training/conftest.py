"""Tiny untrained causal LMs of two families, random rows of different lengths, and House Rules rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from experiments.embedded.pretrain_pair import build_model
from gradtf_fl.adapters import AdapterSpec, attach
from gradtf_fl.tasks import TokenRows, house_rules

VOCABULARY = 40
QV = ("q_proj", "v_proj")
ALL_LINEAR = (*QV, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


def base_model(family: str = "llama", **options: Any) -> Any:
    """Two layers of width 32 with fewer key-value heads than heads."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    configuration, model = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[family]
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return model(
        configuration(
            **shape, vocab_size=VOCABULARY, intermediate_size=48, max_position_embeddings=64, pad_token_id=0, **options
        )
    )


def lora_model(base: Any = None, targets: tuple[str, ...] = QV, train_a: bool = True, **options: Any) -> PeftModel:
    """LoRA of rank 3 with every matrix off zero, so that no gradient vanishes."""
    config = LoraConfig(r=3, lora_alpha=5, target_modules=list(targets), task_type="CAUSAL_LM", **options)
    model = get_peft_model(base_model() if base is None else base, config)
    generator = torch.Generator().manual_seed(5)
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.requires_grad_(train_a or "lora_A" not in name)
            with torch.no_grad():
                p += 0.2 * torch.randn(p.shape, generator=generator)
    return model


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="session")
def random_rows() -> TokenRows:
    """Twelve rows of 5 to 9 tokens, right-padded, loss on what follows the second or third token."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (12, 9), generator=generator)
    lengths = 5 + torch.arange(12) % 5
    mask = (torch.arange(9) < lengths[:, None]).long()
    prompt = torch.arange(9) < (2 + torch.arange(12) % 2)[:, None]
    return TokenRows(ids * mask, mask, torch.where(prompt | (mask == 0), -100, ids))


def adapter_model(seed: int = 0, train_a: bool = True) -> torch.nn.Module:
    return attach(build_model("tiny", seed), AdapterSpec(train_a=train_a))


@pytest.fixture
def model() -> torch.nn.Module:
    return adapter_model()


@pytest.fixture(scope="session")
def rows() -> TokenRows:
    """128 rows of 11 tokens, loss on the last two."""
    pairs = house_rules.code_pairs("private")[:128]
    tokens = house_rules.encode(np.full(128, 7), pairs[:, 0], pairs[:, 1], np.zeros((128, 3), bool))
    ids = torch.from_numpy(tokens)
    labels = ids.clone()
    labels[:, : house_rules.PROMPT_TOKENS] = -100
    return TokenRows(ids, torch.ones_like(ids), labels)


@pytest.fixture(scope="session")
def ragged_rows(rows: TokenRows) -> TokenRows:
    """The first eight rows, right-padded by 0..3 tokens, prompts and answers of different lengths."""
    ids, mask, labels = (
        rows.input_ids[:8].clone(),
        rows.attention_mask[:8].clone(),
        rows.input_ids[:8].clone(),
    )
    for i in range(8):
        labels[i, : 5 + i % 4] = -100
        end = 11 - i % 4
        ids[i, end:], mask[i, end:], labels[i, end:] = 0, 0, -100
    return TokenRows(ids, mask, labels)
