"""The two texts of a round that say what an organization computes: one form each, and every range kept."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.round_messages import MalformedFields, TrainingPlan
from gradtf_fl.secagg import RoundConfig

SPECS = (
    AdapterSpec(),
    AdapterSpec(rank=8, alpha=16, targets=("q_proj", "self_attn.o_proj"), train_a=False, seed=3),
    AdapterSpec(kind="lora-xs"),
    AdapterSpec(kind="full"),
)
PLAN = TrainingPlan(8.0, 1e-5, 3, 50, 64, 0.5, 0.01, SPECS[0].canonical(), "a" * 64, "b" * 64)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{spec.rank}")
def test_a_spec_reads_back_from_its_one_text(spec: AdapterSpec) -> None:
    assert AdapterSpec.from_canonical(spec.canonical()) == spec
    plan = replace(PLAN, spec=spec.canonical())
    assert TrainingPlan.from_canonical(plan.canonical()) == plan


def test_an_alpha_has_one_text() -> None:
    assert AdapterSpec(alpha=8).canonical() == AdapterSpec(alpha=8.0).canonical()


@pytest.mark.parametrize("name", list(asdict(PLAN)))
def test_c_binds_every_field_of_the_plan(name: str) -> None:
    value = getattr(PLAN, name)
    other: Any = value[:-1] + "c" if isinstance(value, str) else value + 1
    configs = [
        RoundConfig(
            run_id="run",
            round=1,
            attempt=0,
            nonce=bytes(32),
            model_hash=bytes(32),
            dim=4,
            bits=24,
            clip=1.0,
            roster_hash=bytes(32),
            degree=2,
            threshold=3,
            quorum=3,
            dp=plan.canonical(),
        )
        for plan in (PLAN, replace(PLAN, **{name: other}))
    ]
    assert configs[0].commitment != configs[1].commitment


TEXTS = (PLAN.canonical(), SPECS[0].canonical())
PARTS = st.sampled_from(["", "0", "1e400", "NaN", '"', "[", "{", "\\ud800", " ", "9" * 5000, "null", ":", "\x00", "é"])


@given(text=st.sampled_from(TEXTS), at=st.integers(0, 300), length=st.integers(0, 9), part=PARTS)
def test_no_other_text_is_read_and_no_other_error_comes(text: str, at: int, length: int, part: str) -> None:
    changed = text[:at] + part + text[at + length :]
    said = ""
    try:
        assert TrainingPlan.from_canonical(changed).canonical() == changed
    except MalformedFields as error:
        said = str(error)
    try:
        assert AdapterSpec.from_canonical(changed).canonical() == changed
    except ValueError as error:
        said += str(error)
    assert len(said) < 400  # nothing of what a stranger wrote


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_no_value_of_another_type_passes(value: Any) -> None:
    for name, honest in asdict(PLAN).items():
        text = json.dumps(asdict(PLAN) | {name: value}, sort_keys=True, separators=(",", ":"))
        try:
            plan = TrainingPlan.from_canonical(text)
        except MalformedFields:
            continue
        assert type(getattr(plan, name)) is type(honest)
