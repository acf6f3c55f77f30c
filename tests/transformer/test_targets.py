"""From any TinyLM to any LLM: other families, depths, widths, target modules and kinds of adapters, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradtf_fl.adapters import AdaptedModel, AdapterSpec, UpdateSpace, initial_state, save_adapter
from gradtf_fl.adapters.models import load_model
from gradtf_fl.adapters.update_vectors import apply_update
from gradtf_fl.tasks.rows import TokenRows
from gradtf_fl.training.stacked import StackedAdapters
from gradtf_fl.transformer import GradTransformer
from gradtf_fl.transformer.model import Backbone, GradTransformerModel, Standardisation
from gradtf_fl.transformer.partition import PLANS, PartitionPlan
from tests.benchmark_data import MODELS, needs_models

SMALL = Backbone(width=32, feed_forward=48, heads=2, head_dim=16)
QV = ("q_proj", "v_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
CASES = {
    "q,v": (AdapterSpec(), AdapterSpec(), PLANS["block"]),
    "q,v apart": (AdapterSpec(), AdapterSpec(targets=(*QV, "o_proj")), PLANS["per-projection"]),
    "mlp and embedding": (
        AdapterSpec(targets=(*QV, *MLP, "embed_tokens")),
        AdapterSpec(rank=3, targets=(*QV, *MLP, "embed_tokens")),
        PartitionPlan(source_chunk=100, target_chunk=150),
    ),
    "embedding on one side": (AdapterSpec(targets=(*QV, "embed_tokens")), AdapterSpec(), PLANS["block"]),
    "b only": (AdapterSpec(train_a=False), AdapterSpec(train_a=False), PLANS["reversed"]),
    "lora to lora-xs": (AdapterSpec(), AdapterSpec(rank=4, kind="lora-xs"), PLANS["block"]),
    "full to full": (AdapterSpec(kind="full"), AdapterSpec(kind="full"), PartitionPlan(target_chunk=500)),
}


def random_llama() -> Any:
    """Three layers of width 48 with fewer key-value heads than heads, no training."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    shape = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(**shape, vocab_size=37, intermediate_size=80, max_position_embeddings=32, pad_token_id=0)
    ).eval()


def some_rows(vocabulary: int) -> TokenRows:
    ids = torch.randint(1, vocabulary, (4, 10), generator=torch.Generator().manual_seed(1))
    return TokenRows(ids, torch.ones_like(ids), torch.where(torch.arange(10) < 5, -100, ids))


def transformer(tiny: Any, llm: Any, specs: tuple[AdapterSpec, AdapterSpec], plan: PartitionPlan) -> GradTransformer:
    """Untrained, from ``tiny``'s stack to ``llm``'s; standardised as if updates were about .02 large."""
    sides = [
        UpdateSpace(name, "00", spec, stack.layout)
        for name, spec, stack in zip(("tiny", "llm"), specs, (tiny, llm), strict=True)
    ]
    shapes = [torch.ones(side.layout.blocks, side.layout.block_dim) for side in sides]
    torch.manual_seed(0)
    standards = [Standardisation(0 * ones, 0.02 * ones) for ones in shapes]
    model = GradTransformerModel(SMALL, *standards, plan.between(*(side.layout for side in sides)))
    return GradTransformer(model.eval(), SMALL, *sides)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_qwen2_tiny_update_becomes_a_llama_adapter(name: str, tmp_path: Path) -> None:
    source, target, plan = CASES[name]
    check_pair(random_llama, (source, target), plan, tmp_path)


@needs_models
@pytest.mark.parametrize("name", ["q,v", "mlp and embedding", "lora to lora-xs"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_qwen2_tiny_update_becomes_an_adapter_of_a_real_llama(name: str, tmp_path: Path) -> None:
    source, target, plan = CASES[name]
    check_pair(lambda: load_model(str(MODELS / "babyllama-tok361-1.0M"))[0], (source, target), plan, tmp_path)


def check_pair(new_llm: Any, specs: tuple[AdapterSpec, AdapterSpec], plan: PartitionPlan, folder: Path) -> None:
    """A checkpoint generates an adapter that plain PEFT reads, and the LLM's loss reaches the Grad-Transformer."""
    from peft import PeftModel

    base = new_llm()
    rows = some_rows(base.config.vocab_size)
    tiny, llm = StackedAdapters.load("embedded:tiny", specs[0]), StackedAdapters(AdaptedModel.of(base, None, specs[1]))
    assert (tiny.layout.layers, tiny.layout.block_dim) != (llm.layout.layers, llm.layout.block_dim)
    made = transformer(tiny, llm, specs, plan)
    made.save(folder / "gt")
    loaded = GradTransformer.load(folder / "gt")
    update = (np.random.default_rng(0).normal(size=tiny.initial.shape) * 0.02 * tiny.mask.numpy()).astype(np.float32)
    generated = loaded.generate(update)
    state = apply_update(loaded.target.layout, initial_state(new_llm(), specs[1]), generated)
    save_adapter(folder / "adapter", state, specs[1], "base")
    plain = PeftModel.from_pretrained(new_llm(), folder / "adapter").eval()
    llm.set(llm.initial[None] + torch.from_numpy(generated))
    wanted = llm.model(input_ids=rows.input_ids).logits
    torch.testing.assert_close(plain(input_ids=rows.input_ids).logits, wanted, atol=1e-5, rtol=1e-5)
    model = made.model.train()
    parameters = [p for n, p in model.named_parameters() if "shared" not in n and "embed_tokens" not in n]
    optimizer, losses = torch.optim.Adam(parameters, lr=3e-3), []
    for _ in range(8):  # the functional objective
        loss = llm.row_losses(llm.initial + model(torch.from_numpy(update)[None]), rows).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
    assert losses[-1] < losses[0]
