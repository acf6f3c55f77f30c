"""Every architecture: saved, loaded by plain PEFT, stacked, generated with and merged, always the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.adapters.export import export_merged
from gradtf_fl import adapters
from gradtf_fl.adapters import AdaptedModel, AdapterSpec
from gradtf_fl.adapters.update_vectors import BlockLayout, apply_update
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training.stacked import PlainRecipe, StackedAdapters, fine_tune_stacked
from tests.strategies.federation_kit import build_tokenizer

from .architectures import CONFIGS, DEFAULTS, EXPERTS, MIXTURES, VOCABULARY, small_model

MORE = {
    "gpt2": ("c_attn", "mlp.c_proj"),
    "opt": ("q_proj", "fc1", "fc2"),
    "qwen2_moe": ("v_proj", "shared_expert.up_proj", "shared_expert.down_proj"),
}
CASES = {
    **{name: (name, AdapterSpec(targets=("auto",))) for name in CONFIGS},
    **{f"{name}-b-only": (name, AdapterSpec(targets=("auto",), train_a=False)) for name in ("gpt2", "phi3", "mixtral")},
    **{f"{name}-lora-xs": (name, AdapterSpec(rank=3, targets=("auto",), kind="lora-xs")) for name in CONFIGS},
    **{f"{name}-full": (name, AdapterSpec(targets=("auto",), kind="full")) for name in ("gpt2", "gpt_neox")},
    **{f"{name}-more": (name, AdapterSpec(targets=targets)) for name, targets in MORE.items()},
    **{f"{name}-experts": (name, AdapterSpec(targets=(*DEFAULTS[name], *EXPERTS))) for name in MIXTURES},
    "mixtral-experts-alone": ("mixtral", AdapterSpec(targets=("experts.down_proj",), train_a=False)),
}
IDS = torch.randint(1, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to", "ignore:Model has `tie_word_embeddings=True`"
)


def logits(model: Any, rows: slice = slice(None)) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS[rows], use_cache=False).logits
    return found


def moved_state(adapted: AdaptedModel, seed: int = 0) -> dict[str, torch.Tensor]:
    """The adapter after a random update that changes logits."""
    layout = adapted.space.layout
    values = 0.3 * np.random.default_rng(seed).normal(size=(layout.blocks, layout.block_dim))
    return apply_update(layout, adapted.initial, (values * layout.parameter_mask()).astype(np.float32))


@pytest.mark.parametrize("name", CASES)
def test_one_adapter_has_the_same_logits_everywhere(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    architecture, asked = CASES[name]
    adapted = AdaptedModel.of(small_model(architecture), None, asked)
    spec, layout = adapted.space.spec, adapted.space.layout
    state = moved_state(adapted)
    assert BlockLayout.from_json(layout.to_json()).digest == layout.digest
    vector = layout.to_vector(state)
    trained = layout.to_state(vector)
    assert all(torch.equal(trained[part], state[part]) for part in trained)

    attached = adapted.attach(state).eval()
    wanted = logits(attached)
    assert (wanted - logits(small_model(architecture))).abs().max() > 0.02 * wanted.abs().max()
    tolerance = {"atol": 3e-5 * float(wanted.abs().max()), "rtol": 0.0}  # a mixture routes at rounding's mercy
    assert adapters.state_hash(adapters.adapter_state(attached)) == adapters.state_hash(
        state if spec.kind != "full" else adapters.adapter_state(attached)
    )

    adapters.save_adapter(tmp_path / "adapter", state, spec, "base")
    plain = PeftModel.from_pretrained(small_model(architecture), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(plain), wanted, **tolerance)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    answers = [model.generate(input_ids=IDS[:, :5], **options) for model in (attached, plain)]
    assert torch.equal(*answers)
    assert answers[0].shape[1] > 5
    read, read_spec, _ = adapters.load_adapter(tmp_path / "adapter")
    assert (read_spec, adapters.state_hash(read)) == (spec, adapters.state_hash(state))
    assert adapters.unpack_adapter(adapters.pack_adapter(state, spec, "base", "")).spec == spec

    stack = StackedAdapters(AdaptedModel.of(small_model(architecture), None, spec))
    other = moved_state(adapted, seed=1)
    stack.set(torch.from_numpy(np.stack([vector, layout.to_vector(other), vector])))
    stacked = logits(stack.model)
    torch.testing.assert_close(stacked[[0, 2]], wanted[[0, 2]], **tolerance)
    second = adapted_logits(architecture, spec, other)
    torch.testing.assert_close(stacked[1:2], second[1:2], **tolerance)
    assert (second[1] - wanted[1]).abs().max() > 10 * tolerance["atol"]


def adapted_logits(architecture: str, spec: AdapterSpec, state: dict[str, torch.Tensor]) -> torch.Tensor:
    return logits(AdaptedModel.of(small_model(architecture), None, spec).attach(state).eval())


@pytest.mark.parametrize("name", ["gpt2", "opt-more", "gpt_neox-lora-xs", "mixtral-experts", "qwen2_moe-experts"])
def test_adapters_that_are_tuned_side_by_side_are_those_tuned_alone(name: str) -> None:
    architecture, spec = CASES[name]
    recipe = PlainRecipe(steps=3, batch=4, rate=1e-2)
    ids = torch.randint(1, VOCABULARY, (16, 7), generator=torch.Generator().manual_seed(2))
    rows = TokenRows(ids, torch.ones_like(ids), torch.where(torch.arange(7) < 3, -100, ids))

    def tuned(part: TokenRows, seeds: list[list[int]]) -> torch.Tensor:
        stack = StackedAdapters(AdaptedModel.of(small_model(architecture), None, spec))
        return fine_tune_stacked(stack, part, len(seeds), recipe, seeds, [3])[0]

    together = tuned(rows, [[1], [2]])
    alone = torch.cat([tuned(rows.take(slice(0, 8)), [[1]]), tuned(rows.take(slice(8, 16)), [[2]])])
    assert together.abs().max() > 1e-3
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)


MERGED = {
    **{name: CASES[name] for name in (*CONFIGS, "gpt2-lora-xs", "gpt2-more", "opt-more", "qwen2_moe-more")},
    **{f"{name}-experts": CASES[f"{name}-experts"] for name in MIXTURES},
}


@pytest.mark.parametrize("name", MERGED)
def test_merged_into_the_weights_it_answers_alike(name: str, tmp_path: Path) -> None:
    architecture, spec = MERGED[name]
    export(architecture, spec, {}, tmp_path)


@pytest.mark.parametrize(
    ("architecture", "target"),
    [
        ("llama", "embed_tokens"),
        ("llama", "lm_head"),
        ("gpt2", "wte"),
        ("gpt2", "lm_head"),
        ("opt", "lm_head"),
        ("gpt_neox", "embed_in"),
    ],
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_an_adapter_on_one_of_two_tied_embeddings_is_merged_into_that_one(
    architecture: str, target: str, tied: bool, tmp_path: Path
) -> None:
    spec = AdapterSpec(targets=(*DEFAULTS[architecture], target))
    export(architecture, spec, {"tie_word_embeddings": tied}, tmp_path)


def export(architecture: str, spec: AdapterSpec, options: dict[str, Any], folder: Path) -> None:
    """Merge a random adapter of ``spec``, in a folder, into its model, in another one."""
    model = small_model(architecture, **options)
    model.save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    adapted = AdaptedModel.of(small_model(architecture, **options), None, spec)
    adapters.save_adapter(folder / "adapter", moved_state(adapted), adapted.space.spec, str(folder / "base"))
    made = export_merged(folder / "adapter", str(folder / "base"), folder / "merged", "float32")
    assert made.adapter_effect > 0.02 * made.largest_logit
    assert made.max_error < 1e-4 * max(1.0, made.largest_logit)
