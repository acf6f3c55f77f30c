"""A tuned answer ends: its end is trained, and greedy decoding stops by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradtf_fl.adapters import AdaptedModel, AdapterSpec, load_model
from gradtf_fl.tasks import Row, Turn, encode_rows, generate_greedily
from gradtf_fl.tasks.decoding import StopRule, decode
from gradtf_fl.tasks.encoding import end_token
from gradtf_fl.training import fine_tune
from tests.benchmark_data import MODELS, needs_models

SPEC = AdapterSpec(targets=("v_proj", "o_proj", "up_proj", "down_proj"), rank=8, alpha=16.0, seed=0)
ROW = Row("The cat and the dog went to the", " park")
INSTRUCT = "{% for m in messages %}{{ m.role + ': ' + m.content + '<s>' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
CHAT = Row.of_turns([Turn("user", "Where to?"), Turn("assistant", "to the park")])


def end_probability(model: Any, tokenizer: Any, row: Row) -> float:
    """P(end | prompt and the right answer)."""
    with torch.no_grad():
        logits = model(encode_rows([row], tokenizer).input_ids).logits[0, -1]
    return float(logits.softmax(-1)[end_token(tokenizer)])


@needs_models
@pytest.mark.parametrize(("row", "template"), [(ROW, None), (CHAT, INSTRUCT)], ids=["plain", "chat"])
@pytest.mark.parametrize("end", [True, False])
def test_the_end_of_an_answer_is_learned(row: Row, template: str | None, end: bool) -> None:
    base, tokenizer = load_model(str(MODELS / "stories260K"))
    tokenizer.eos_token = "<s>"  # ends a story in this model's own training; its </s> was never seen
    tokenizer.chat_template = template
    model = AdaptedModel.of(base, tokenizer, SPEC).attach()
    before = end_probability(model, tokenizer, row)
    assert before < 0.1
    rows = encode_rows([row], tokenizer, end=end)
    fine_tune(model, rows, steps=80, batch=1, rate=1e-2, seed=0)
    after = end_probability(model.eval(), tokenizer, row)
    stop = StopRule(model, tokenizer, 24, lambda text: False)
    prompt = rows.input_ids[0, : int((rows.labels[0] == -100).sum())].tolist()
    (written,) = decode(model, [prompt], stop)
    if end:
        assert after > 0.9
        assert stop.text(written).strip() == row.answer.strip()
    else:
        assert after < 0.1
        assert len(written) == 24
    if template is None and end:
        assert generate_greedily(model, tokenizer, [row.prompt], 24)[0].text.strip() == row.answer.strip()
