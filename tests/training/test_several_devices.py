"""A model whose layers lie on two devices: dispatched by accelerate, trained, generated from and scored as on one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor

from gradtf_fl.adapters import (
    AdaptedModel,
    AdapterSpec,
    adapter_state,
    attach,
    devices_of,
    load_adapter,
    load_model,
    model_folder,
    save_adapter,
)
from gradtf_fl.config import ComputeSection
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import (
    HiddenTask,
    TokenRows,
    answer_scores,
    decode,
    encode_rows,
    exact_match,
    generate_greedily,
    rule_named,
    tokens_to_rows,
)
from gradtf_fl.training import StackedAdapters, check_trainable, rehearse, train_dp
from gradtf_fl.training.dp_sgd import private_optimizer
from gradtf_fl.training.plain import fine_tune
from gradtf_fl.training.preflight import adapter_parameters
from gradtf_fl.training.randomness import Draws
from gradtf_fl.training.row_losses import RowLosses
from tests.several_devices import KIND, SeveralDevices

NAME = "embedded:tiny"
FIRST, SECOND = torch.device(KIND, 0), torch.device(KIND, 1)
KINDS = (AdapterSpec(), AdapterSpec(train_a=False), AdapterSpec(kind="lora-xs"))
PRIVATE = {"sigma": 1.0, "clip": 0.5, "batch": 8, "steps": 3, "rate": 0.01, "seed": 3, "physical_batch": 4}
PROMPTS = ["[_][_][_]37?58=", "[_][_][_]1", "[_][_][_]11?22="]


def one_device() -> AdaptedModel:
    return AdaptedModel.load(NAME, AdapterSpec())


def spread(model: Any, **places: str) -> Any:
    """``model`` with its last layer, norm and head on the second device, by accelerate's own hooks."""
    last = len(model.model.layers) - 1
    parts = {f"model.layers.{number}": str(SECOND if number == last else FIRST) for number in range(last + 1)}
    parts |= {"model.embed_tokens": str(FIRST), "model.rotary_emb": str(FIRST), "model.norm": str(SECOND)}
    parts["lm_head"] = parts["model.embed_tokens"] if model.config.tie_word_embeddings else str(SECOND)
    kept = list(model.parameters())  # accelerate tells tied weights by their address, which must not be used again
    dispatched = dispatch_model(model, parts | places, skip_keys="past_key_values", force_hooks=True)
    del kept
    return dispatched


LORA = AdapterSpec()


def two_devices(spec: AdapterSpec = LORA) -> AdaptedModel:
    model, tokenizer = load_model(NAME)
    return AdaptedModel.of(spread(model), tokenizer, spec)


@pytest.fixture
def devices() -> Iterator[None]:
    with SeveralDevices():
        yield


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    drawn = HiddenTask((rule_named("afk"),)).draw(np.random.default_rng(0), 24, "public")
    return encode_rows(tokens_to_rows(drawn), load_model(NAME)[1])


def largest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)


def test_tensors_of_two_devices_do_not_meet(devices: None) -> None:
    here, there = torch.ones(3, 3, device=FIRST), torch.ones(3, 3).to(SECOND)
    with pytest.raises(RuntimeError, match="tensors on ipu:0, ipu:1"):
        here @ there
    weight = torch.nn.Parameter(here)
    torch.autograd.backward(((weight @ here).to(SECOND) * there).sum())
    assert weight.grad is not None
    assert weight.grad.device == FIRST


@pytest.mark.parametrize("spec", KINDS, ids=["lora", "lora-b", "lora-xs"])
def test_private_training_is_that_of_one_device(spec: AdapterSpec, rows: TokenRows) -> None:
    alone = AdaptedModel.load(NAME, spec).attach()
    wanted = train_dp(alone, rows, **PRIVATE)
    with SeveralDevices():
        model = two_devices(spec).attach()
        assert devices_of(model) == [FIRST, SECOND]
        assert {p.device for p in model.parameters() if p.requires_grad} == {FIRST, SECOND}
        check_trainable(model)
        found = train_dp(model, rows, **PRIVATE)
        assert largest(adapter_state(model), adapter_state(alone)) < 1e-6
    assert found.event == wanted.event


@pytest.mark.parametrize("sampler", ["lora", "opacus"])
def test_row_gradients_are_one_backward_pass_a_row(sampler: Any, rows: TokenRows, devices: None) -> None:
    model = two_devices().attach()
    parameters = adapter_parameters(model)
    with torch.no_grad():
        for p in parameters.values():
            p += 0.1
    losses = RowLosses(model, rows)
    expected = [torch.autograd.grad(losses(row[None]).sum(), list(parameters.values())) for row in torch.arange(4)]
    with private_optimizer(model, parameters, 0.0, 1.0, 4, 0.01, Draws.make(0), sampler) as optimizer:
        optimizer.sampler.backward(losses(torch.arange(4)))
        found = optimizer.row_gradients()
    assert found.device == FIRST
    for row, gradients in zip(found, expected, strict=True):
        flat = torch.cat([gradient.flatten().to(FIRST) for gradient in gradients])
        assert float((row - flat).abs().max()) < 1e-5 * max(1.0, float(flat.abs().max()))


def test_a_rehearsal_and_a_plain_step_run_there(rows: TokenRows, devices: None) -> None:
    model = two_devices().attach()
    before = adapter_state(model)
    assert rehearse(model, rows, 8, ComputeSection(physical_rows=4)) == 4
    assert largest(adapter_state(model), before) == 0
    fine_tune(model, rows, steps=2, batch=8, rate=0.01, seed=0)
    assert largest(adapter_state(model), before) > 0


class Uneven:
    """Ends answers at different lengths: those that are done leave the batch, and the cache of every layer."""

    def add(self, tokens: list[int], token: int) -> bool:
        tokens.append(token)
        return len(tokens) >= 6 or token % 3 == 0


def test_answers_and_scores_are_those_of_one_device(rows: TokenRows) -> None:
    alone = one_device()
    model = alone.attach()
    wanted = [one.tokens for one in generate_greedily(model, alone.tokenizer, PROMPTS, 6)]
    asked = [alone.tokenizer(prompt).input_ids for prompt in PROMPTS]
    uneven = decode(model, asked, Uneven())  # type: ignore[arg-type]
    assert len({len(answer) for answer in uneven}) > 1
    scores = answer_scores(model, rows)
    with SeveralDevices():
        there = two_devices()
        spread_model = there.attach()
        assert [one.tokens for one in generate_greedily(spread_model, there.tokenizer, PROMPTS, 6)] == wanted
        assert decode(spread_model, asked, Uneven()) == uneven  # type: ignore[arg-type]
        assert exact_match(spread_model, rows) == scores.exact_match
        assert answer_scores(spread_model, rows).nats == pytest.approx(scores.nats, rel=1e-5)


@pytest.mark.parametrize(
    "spec",
    [*KINDS, AdapterSpec(targets=("q_proj", "embed_tokens"))],
    ids=lambda s: f"{s.kind}-{s.targets[-1]}-{s.train_a}",
)
def test_stacked_adapters_and_their_gradient_are_those_of_one_device(spec: AdapterSpec, rows: TokenRows) -> None:
    """What the Grad-Transformer's functional objective and its refinement go through."""
    theta_of = lambda stack: (stack.initial.repeat(2, 1, 1) + 0.01).detach().requires_grad_(True)  # noqa: E731
    alone = StackedAdapters.load(NAME, spec)
    theta = theta_of(alone)
    wanted = alone.row_losses(theta, rows)
    (gradient,) = torch.autograd.grad(wanted.sum(), theta)
    with SeveralDevices():
        stack = StackedAdapters(two_devices(spec))
        there = theta_of(stack)
        found = stack.row_losses(there, rows)
        (moved,) = torch.autograd.grad(found.sum(), there)
        assert found.device == there.device == moved.device == FIRST
        assert float((found.to("cpu") - wanted).abs().max()) < 1e-5
        assert float((moved.to("cpu") - gradient).abs().max()) < 1e-5 * float(gradient.abs().max())


def test_a_trained_adapter_reloads_into_plain_peft(rows: TokenRows, tmp_path: Path) -> None:
    from peft import PeftModel

    with SeveralDevices():
        there = two_devices()
        model = there.attach()
        train_dp(model, rows, **PRIVATE)
        save_adapter(tmp_path / "adapter", adapter_state(model), there.space.spec, model_folder(NAME))
        wanted = answer_scores(model, rows).nats
    reloaded = PeftModel.from_pretrained(load_model(NAME)[0], tmp_path / "adapter")
    assert answer_scores(reloaded, rows).nats == pytest.approx(wanted, rel=1e-5)
    with SeveralDevices():
        again = two_devices().attach(load_adapter(tmp_path / "adapter")[0])
        assert answer_scores(again, rows).nats == pytest.approx(wanted, rel=1e-5)


def test_accelerate_hooks_change_no_row_gradient(rows: TokenRows) -> None:
    """Real hooks on every layer of a model on the CPU: what they wrap is what ours wraps."""
    alone, model = one_device().attach(), load_model(NAME)[0]
    hooked = attach(dispatch_model(model, {"": "cpu"}, force_hooks=True), AdapterSpec())
    assert any(hasattr(module, "_hf_hook") for module in hooked.modules())
    check_trainable(hooked, "lora")
    check_trainable(hooked, "opacus")
    for one in (alone, hooked):
        train_dp(one, rows, **PRIVATE)
    assert largest(adapter_state(hooked), adapter_state(alone)) < 1e-7


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_weights_are_refused(place: str, tmp_path: Path) -> None:
    """PEFT puts an adapter where its layer's weights are: on an offloaded layer there is nothing to train."""
    model = load_model(NAME)[0]
    parts = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    last = len(model.model.layers) - 1
    parts |= {f"model.layers.{number}": "disk" if number == last else "cpu" for number in range(last + 1)}
    if place == "cpu":
        from accelerate import cpu_offload

        model = cpu_offload(model, torch.device("cpu"))
    else:
        model = dispatch_model(model, parts, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    with pytest.raises(ConfigError, match=r"weights do not fit on its devices .* e\.g\. model"):
        attach(model, AdapterSpec())
