"""A server that dies and starts again; a run that ends for lack of budget."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gradtf_fl.config import PrivacySection
from gradtf_fl.errors import ConfigError, CorruptFile, RoundAborted
from gradtf_fl.flower import RoundEvent, read_records
from gradtf_fl.privacy import read_ledger
from gradtf_fl.secagg import Identity
from gradtf_fl.transformer import GradTransformer
from gradtf_fl.transformer.refinement import LEAST_PROMPTS, Refined, RefinementRecipe, RefiningGenerator
from strategies import checkpoints, run_server
from tests.strategies.federation_kit import Kit, random_rows

MakeKit = Callable[..., Kit]


def stop_at(kind: str, stage: str, round_number: int) -> Callable[[RoundEvent], None]:
    """An observer that interrupts the server there, as Ctrl-C does."""

    def observe(event: RoundEvent) -> None:
        if (event.kind, event.stage, event.round) == (kind, stage, round_number):
            raise KeyboardInterrupt

    return observe


def finished(kit: Kit) -> list[str]:
    return sorted(path.name for path in (kit.plan.out / "rounds").glob("*") if path.name.isdigit())


@pytest.mark.parametrize(("kind", "charges"), [("stage", 2), ("closed", 3)])
def test_an_interrupted_round_is_done_again_under_fresh_keys(make_kit: MakeKit, kind: str, charges: int) -> None:
    """Round 2 is charged twice where its updates were masked already, and once where they were not."""
    kit = make_kit(budget=50.0)
    with pytest.raises(KeyboardInterrupt):
        run_server(kit.grid(), kit.plan, stop_at(kind, "mask", 2), kit.generator)
    assert finished(kit) == ["1"]
    first = load_file(kit.plan.out / "rounds" / "1" / "global_update.safetensors")["global_update"]
    result = run_server(kit.grid(), kit.plan, None, kit.generator)
    assert [(record.round, record.attempt) for record in result.rounds] == [(1, 0), (2, 1)]
    second = load_file(kit.plan.out / "rounds" / "2" / "global_update.safetensors")
    np.testing.assert_allclose(second["global_update"], first + second["mean"], atol=1e-6)
    for folder in kit.folders:
        assert len(read_ledger(folder / "ledger.sqlite").content.events) == charges
    documents = [json.loads((kit.plan.out / "rounds" / r / "round.json").read_text()) for r in ("1", "2")]
    assert documents[0]["run_id"] == documents[1]["run_id"]
    assert documents[0]["nonce"] != documents[1]["nonce"]


class Watching(RefiningGenerator):
    """A refining generator that keeps what each round hands over."""

    def __init__(self, transformer: GradTransformer) -> None:
        prompts = [row.prompt for row in random_rows(9, LEAST_PROMPTS)]
        super().__init__(transformer, prompts, 2, RefinementRecipe(steps=1))
        self.seen: list[tuple[np.ndarray, np.ndarray | None]] = []

    def refined(self, update: np.ndarray, first: np.ndarray | None = None) -> Refined:
        self.seen.append((update, first))
        return super().refined(update, first)


def test_every_round_tells_the_first_rounds_update_also_after_a_restart(make_kit: MakeKit) -> None:
    kit = make_kit(budget=50.0, rounds=3)
    before, after = Watching(kit.generator), Watching(kit.generator)
    with pytest.raises(KeyboardInterrupt):
        run_server(kit.grid(), kit.plan, stop_at("stage", "mask", 3), before)
    run_server(kit.grid(), kit.plan, None, after)
    (one, none), (two, first) = before.seen
    assert none is None
    assert first is not None
    np.testing.assert_array_equal(first, one)
    assert not np.array_equal(one, two)
    ((_, again),) = after.seen
    assert again is not None
    np.testing.assert_array_equal(again, one)


def test_a_damaged_first_round_stops_a_restart(make_kit: MakeKit) -> None:
    kit = make_kit(budget=50.0, rounds=2)
    run_server(kit.grid(), kit.plan, None, kit.generator)
    path = kit.plan.out / "rounds" / "1" / "global_update.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\1\2\3")
    plan = kit.plan.model_copy(update={"rounds": 3})
    with pytest.raises(CorruptFile, match=r"rounds.1.*does not match the hash"):
        run_server(kit.grid(), plan, None, kit.generator)


def test_an_undelivered_adapter_is_delivered_at_the_next_start(make_kit: MakeKit) -> None:
    kit = make_kit(rounds=1)
    with pytest.raises(KeyboardInterrupt):
        run_server(kit.grid(), kit.plan, stop_at("end", "", 1), kit.generator)
    assert finished(kit) == ["1"]
    assert not list(kit.plan.out.glob("organizations/*/rounds/1/llm_adapter"))
    result = run_server(kit.grid(), kit.plan, None, kit.generator)
    assert len(list(kit.plan.out.glob("organizations/*/rounds/1/llm_adapter"))) == 3
    assert [record.round for record in result.rounds] == [1]


def test_a_finished_run_is_left_alone(make_kit: MakeKit) -> None:
    kit = make_kit(rounds=1)
    once = run_server(kit.grid(), kit.plan, None, kit.generator)
    events: list[RoundEvent] = []
    twice = run_server(kit.grid(), kit.plan, events.append, kit.generator)
    assert twice.rounds == once.rounds
    assert events == []


def test_kill_minus_nine(make_kit: MakeKit) -> None:
    """SIGKILL in round 2's unmask: the next start goes on from round 1's checkpoint."""
    kit = make_kit(budget=50.0)
    code = f"""
import os, signal
from clients.client_app import app
from strategies import InProcessGrid, run_server
from gradtf_fl.config import FederationPlan
plan = FederationPlan.from_run_config({kit.plan.to_run_config()!r})
grid = InProcessGrid(app, [{{"organization-dir": f, "simulated": True}} for f in {[str(f) for f in kit.folders]!r}])
def die(event):
    if (event.kind, event.stage, event.round) == ("stage", "unmask", 2):
        os.kill(os.getpid(), signal.SIGKILL)
run_server(grid, plan, die)
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert finished(kit) == ["1"]
    result = run_server(kit.grid(), kit.plan, None, kit.generator)
    assert [(record.round, record.attempt) for record in result.rounds] == [(1, 0), (2, 1)]


def test_another_transformer_cannot_continue_a_run(make_kit: MakeKit) -> None:
    kit = make_kit(rounds=1)
    run_server(kit.grid(), kit.plan, None, kit.generator)
    again = GradTransformer.load(kit.plan.transformer)
    again.sha256 = "0" * 64
    with pytest.raises(ConfigError, match="another transformer"):
        run_server(kit.grid(), kit.plan, None, again)


def test_a_transformer_of_another_pair_is_refused(make_kit: MakeKit) -> None:
    kit = make_kit(rounds=1)
    for swapped in ({"tiny": kit.plan.llm}, {"llm": kit.plan.tiny}):
        with pytest.raises(ConfigError, match="made for another"):
            run_server(kit.grid(), kit.plan.model_copy(update=swapped), None, kit.generator)


def test_damaged_checkpoints_are_named(make_kit: MakeKit) -> None:
    kit = make_kit()
    run_server(kit.grid(), kit.plan, None, kit.generator)
    update = kit.plan.out / "rounds" / "2" / "global_update.safetensors"
    good = update.read_bytes()
    update.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CorruptFile, match="does not match the hash"):
        run_server(kit.grid(), kit.plan, None, kit.generator)
    update.write_bytes(good)
    (kit.plan.out / "rounds" / "1").rename(kit.plan.out / "away")
    with pytest.raises(CorruptFile, match="not one run"):
        run_server(kit.grid(), kit.plan, None, kit.generator)
    (kit.plan.out / "federation.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"federation\.json"):
        read_records(kit.plan.out)


def test_two_servers_cannot_share_a_folder(make_kit: MakeKit) -> None:
    kit = make_kit()
    with (
        checkpoints.locked(kit.plan.out),
        pytest.raises(ConfigError, match="another server"),
        checkpoints.locked(kit.plan.out),
    ):
        pass


def test_a_half_written_round_is_no_round(tmp_path: Path) -> None:
    def write_half() -> None:
        with checkpoints.new_round(tmp_path, 1) as folder:
            (folder / "round.json").write_text("{}")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert list((tmp_path / "rounds").iterdir()) == []
    assert checkpoints.last_checkpoint(tmp_path) is None


def test_the_budget_ends_the_run_and_finished_rounds_stay(make_kit: MakeKit) -> None:
    """Five organizations, epsilon 2 planned for ten rounds, a lifetime budget of 1."""
    kit = make_kit(organizations=5, rounds=10, steps=1, epsilon=2.0, budget=1.0)
    with pytest.raises(RoundAborted, match="5 of 5 organizations refuse it, for their policy, budget or rows"):
        run_server(kit.grid(), kit.plan, None, kit.generator)
    records = read_records(kit.plan.out)
    assert [record.state for record in records[:-1]] == ["completed"] * (len(records) - 1)
    assert records[-1].state == "aborted"
    assert records[-1].refused == {"policy": 5}
    assert 1 <= len(records) - 1 < 10
    assert finished(kit) == sorted(str(record.round) for record in records[:-1])
    for folder in kit.folders:
        content = read_ledger(folder / "ledger.sqlite").content
        assert len(content.events) == len(records) - 1  # the refused round is not charged


def test_one_refusal_for_budget_leaves_the_others_their_round(make_kit: MakeKit) -> None:
    kit = make_kit(organizations=4, rounds=1)
    kit.change(0, privacy=PrivacySection(budget=0.1, declared=64))
    (record,) = run_server(kit.grid(), kit.plan, None, kit.generator).rounds
    assert (record.state, record.joined, record.refused) == ("completed", 3, {"policy": 1})
    poor = Identity.load(kit.folders[0] / "identity.key").public.hex()
    assert poor not in record.included
