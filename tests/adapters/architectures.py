"""One small untrained model of every decoder architecture that adapters are promised to work on."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 40
_SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_SHAPE, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
_WINDOW = {**_LLAMA, "head_dim": 8, "sliding_window": 4}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_OPT = {**_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64, "dropout": 0.0}
_MOE = {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2}
_QWEN_MOE = {**_MOE, "moe_intermediate_size": 16, "norm_topk_prob": True}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 4},
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 8},
    "gemma2": {**_WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_WINDOW, "query_pre_attn_scalar": 8},
    "phi3": {**_LLAMA, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "gpt_neox": {**_SHAPE, "intermediate_size": 48, "max_position_embeddings": 64},
    "gpt2": {**_GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "opt": {**_OPT, "attention_dropout": 0.0},
    "qwen2_moe": {**_QWEN_MOE, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**_QWEN_MOE, "head_dim": 8},
    "mixtral": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**_MOE, "norm_topk_prob": False},
}
DEFAULTS = {
    **dict.fromkeys(CONFIGS, ("q_proj", "v_proj")),
    "phi3": ("qkv_proj",),
    "gpt_neox": ("query_key_value",),
    "gpt2": ("c_attn",),
}
"""What "auto" stands for."""
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
MIXTURES = ("qwen2_moe", "qwen3_moe", "mixtral", "olmoe")


def small_model(architecture: str, **options: Any) -> Any:
    """An untrained model, the same for every call, in eval mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    config = AutoConfig.for_model(architecture, **{**CONFIGS[architecture], **options})
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():  # routers of some start at zero, and initial weights are small
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model
