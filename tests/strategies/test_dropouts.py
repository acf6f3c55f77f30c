"""Organizations that vanish: every stage, every pattern of four organizations (threshold 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gradtf_fl.config import DropPoint
from gradtf_fl.errors import RoundAborted
from gradtf_fl.flower import RoundRecord, read_records
from gradtf_fl.round_messages import STAGES, Stage
from strategies import run_server
from tests.strategies.federation_kit import Kit
from tests.strategies.test_federation import plain_mean

MakeKit = Callable[..., Kit]
Pattern = tuple[Stage | None, ...]

FOUR, THRESHOLD = 4, 3
PATTERNS: list[Pattern] = list(combinations_with_replacement((None, *STAGES), FOUR))
FEW: list[Pattern] = [
    *[(None, None, None, stage) for stage in STAGES],
    *[(None, None, stage, stage) for stage in STAGES],
    (None, None, "mask", "unmask"),
]


def survivors(pattern: Pattern) -> dict[str, int]:
    """Organizations left after each stage that the round reaches."""
    left: dict[str, int] = {}
    for number, stage in enumerate(STAGES):
        left[stage] = sum(gone is None or STAGES.index(gone) > number for gone in pattern)
        if left[stage] < THRESHOLD:
            break
    return left


def drops(pattern: Pattern) -> Mapping[int, tuple[DropPoint, ...]]:
    return {number: (DropPoint(stage=stage),) for number, stage in enumerate(pattern) if stage}


def check(kit: Kit, pattern: Pattern) -> None:
    """Run one round: it completes with the right sum, or aborts at the right stage with nothing on disk."""
    left = survivors(pattern)
    fallen = [stage for stage, count in left.items() if count < THRESHOLD]
    if fallen:
        with pytest.raises(RoundAborted) as caught:
            run_server(kit.grid(), kit.plan, None, kit.generator)
        assert caught.value.stage == fallen[0]
        assert caught.value.counts == left
        assert not list((kit.plan.out / "rounds").glob("*"))
        assert not list(kit.plan.out.glob("organizations/*/rounds/*/llm_adapter"))
    else:
        run_server(kit.grid(), kit.plan, None, kit.generator)
    (record,) = read_records(kit.plan.out)
    assert record.state == ("aborted" if fallen else "completed")
    assert record.aborted_at == (fallen[0] if fallen else "")
    assert record.joined == left["advertise"]
    assert record.masked == left.get("mask", 0)
    assert record.dropped == lost(left)
    if not fallen:
        check_sum(kit, record)


def lost(left: Mapping[str, int]) -> dict[str, int]:
    """Organizations lost at each stage, where any were."""
    counts = [FOUR, *left.values()]
    gone = {stage: counts[number] - count for number, (stage, count) in enumerate(left.items())}
    return {stage: count for stage, count in gone.items() if count}


def check_sum(kit: Kit, record: RoundRecord) -> None:
    folder: Path = kit.plan.out / "rounds" / "1"
    mean = load_file(folder / "global_update.safetensors")["mean"].reshape(-1)
    assert len(record.included) == record.masked
    assert np.abs(mean - plain_mean(kit, 1, record.included)).max() < 2**-18 * kit.plan.update_clip


@pytest.mark.parametrize("pattern", FEW, ids=str)
def test_dropouts(make_kit: MakeKit, pattern: Pattern) -> None:
    check(make_kit(organizations=FOUR, rounds=1, steps=1, drop=drops(pattern)), pattern)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p not in FEW], ids=str)
def test_every_dropout_pattern(make_kit: MakeKit, pattern: Pattern) -> None:
    """All 126 multisets; which organization vanishes where does not matter to the protocol."""
    check(make_kit(organizations=FOUR, rounds=1, steps=1, drop=drops(pattern)), pattern)


def test_a_dropout_of_one_round_is_back_in_the_next(make_kit: MakeKit) -> None:
    kit = make_kit(organizations=FOUR, drop={0: (DropPoint(stage="mask", round=1),)})
    result = run_server(kit.grid(), kit.plan, None, kit.generator)
    assert [record.masked for record in result.rounds] == [3, 4]
    for record in result.rounds:
        mean = load_file(kit.plan.out / "rounds" / str(record.round) / "global_update.safetensors")["mean"]
        plain = plain_mean(kit, record.round, record.included)
        assert np.abs(mean.reshape(-1) - plain).max() < 2**-18 * kit.plan.update_clip


def test_finished_rounds_survive_an_abort(make_kit: MakeKit) -> None:
    vanish = (DropPoint(stage="share", round=2),)
    kit = make_kit(organizations=FOUR, drop={0: vanish, 1: vanish})
    with pytest.raises(RoundAborted) as caught:
        run_server(kit.grid(), kit.plan, None, kit.generator)
    assert caught.value.exit_code == 4
    assert [(record.round, record.state) for record in read_records(kit.plan.out)] == [
        (1, "completed"),
        (2, "aborted"),
    ]
    assert [path.name for path in (kit.plan.out / "rounds").iterdir()] == ["1"]
