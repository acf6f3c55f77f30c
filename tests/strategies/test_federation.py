"""A whole federation over the in-process grid: what is on disk afterwards, on both sides."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from clients.client_app import app as client_app
from gradtf_fl.adapters import AdaptedModel, update_space
from gradtf_fl.errors import ConfigError, RoundAborted
from gradtf_fl.flower import RoundEvent, read_records
from gradtf_fl.privacy import read_ledger
from gradtf_fl.secagg import Identity
from gradtf_fl.tasks import write_rows
from strategies import (
    FederationResult,
    InProcessGrid,
    Provider,
    SecureFederation,
    run_server,
    write_roster,
)
from strategies.engines.ray_engine import failure_of
from strategies.server_app import pinned_roster
from tests.strategies.federation_kit import ROWS, Kit, random_rows

MakeKit = Callable[..., Kit]
Finished = tuple[Kit, FederationResult, list[RoundEvent]]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    pair: tuple[str, str],
    generator: object,
) -> Finished:
    """Three organizations, two rounds."""
    from tests.strategies.federation_kit import build

    kit = build(tmp_path_factory.mktemp("federation") / "out", pair, generator)  # type: ignore[arg-type]
    events: list[RoundEvent] = []
    return kit, run_server(kit.grid(), kit.plan, events.append, kit.generator), events


def plain_mean(kit: Kit, round_number: int, included: tuple[str, ...]) -> np.ndarray:
    """Mean of the clipped updates of the organizations whose keys are in ``included``."""
    updates = [
        load_file(folder / "rounds" / str(round_number) / "own_update.safetensors")["update"]
        for folder in kit.folders
        if Identity.load(folder / "identity.key").public.hex() in included
    ]
    assert len(updates) == len(included)
    return np.mean(np.asarray(updates, np.float64), axis=0)


def test_the_server_loads_no_llm_where_nothing_asks_it(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its space and initial adapter come from its config: an LLM of 14 billion parameters would take 56 GB."""
    kit, _, _ = finished
    loaded: list[str] = []
    real = update_space.load_model
    monkeypatch.setattr(update_space, "load_model", lambda name, place=None: loaded.append(name) or real(name, place))
    provider = Provider(kit.plan, kit.generator)
    assert loaded == [kit.plan.tiny]
    whole = AdaptedModel.load(kit.plan.llm, provider.llm.spec)
    assert provider.llm == whole.space
    assert all(torch.equal(provider.llm_initial[name], value) for name, value in whole.initial.items())


def test_the_decoded_mean_is_the_plain_mean(finished: Finished) -> None:
    kit, result, _ = finished
    for record in result.rounds:
        stored = load_file(kit.plan.out / "rounds" / str(record.round) / "global_update.safetensors")
        error = np.abs(stored["mean"].reshape(-1) - plain_mean(kit, record.round, record.included)).max()
        assert error < 2**-18 * kit.plan.update_clip
        assert np.abs(stored["mean"]).max() > 1e-3  # something was trained


def test_the_global_update_is_the_sum_of_the_means(finished: Finished) -> None:
    kit, result, _ = finished
    rounds = [load_file(kit.plan.out / "rounds" / str(r) / "global_update.safetensors") for r in (1, 2)]
    np.testing.assert_allclose(rounds[1]["global_update"], rounds[0]["mean"] + rounds[1]["mean"], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(result.global_update, rounds[1]["global_update"])


def test_records_are_complete(finished: Finished) -> None:
    kit, result, _ = finished
    assert [record.round for record in result.rounds] == [1, 2]
    for record in result.rounds:
        assert (record.state, record.joined, record.masked, record.unmasked) == ("completed", 3, 3, 3)
        assert record.dropped == {}
        assert set(record.seconds) == {"train", "aggregate", "generate"}
        assert record.bytes_up_per_client > 3 * kit.generator.source.layout.size  # 24 bits a parameter
        assert record.bytes_down_per_client > 4 * kit.generator.source.layout.size  # U in float32
        assert len(record.llm_adapter_sha256) == 64
    assert read_records(kit.plan.out) == result.rounds


def test_every_organization_has_every_adapter(finished: Finished) -> None:
    kit, result, _ = finished
    for record in result.rounds:
        ours = (kit.plan.out / "rounds" / str(record.round) / "llm_adapter" / "adapter_model.safetensors").read_bytes()
        for folder in kit.folders:
            theirs = folder / "rounds" / str(record.round) / "llm_adapter"
            assert (theirs / "adapter_model.safetensors").read_bytes() == ours
            config = json.loads((theirs / "adapter_config.json").read_text())
            assert config["base_model_name_or_path"] == kit.plan.llm


def test_plain_peft_loads_a_delivered_adapter(finished: Finished) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kit, _, _ = finished
    folder = kit.folders[0] / "rounds" / "2" / "llm_adapter"
    base = AutoModelForCausalLM.from_pretrained(kit.plan.llm)
    text = AutoTokenizer.from_pretrained(kit.plan.llm)("[_][_][_]37?58=", return_tensors="pt")
    before = base(input_ids=text["input_ids"]).logits
    after = PeftModel.from_pretrained(base, folder)(input_ids=text["input_ids"]).logits
    assert (after - before).abs().max() > 1e-4


def test_the_ledgers_hold_what_was_trained(finished: Finished) -> None:
    kit, _, _ = finished
    for folder in kit.folders:
        reading = read_ledger(folder / "ledger.sqlite")
        assert reading.problems == ()
        events = reading.content.events
        assert [(event.q, event.steps) for event in events] == [(0.25, 2), (0.25, 2)]
        assert events[0].sigma == events[1].sigma > 0.3


def test_evaluations_stay_at_home(finished: Finished) -> None:
    kit, result, _ = finished
    lines = [json.loads(line) for line in (kit.folders[1] / "evaluations.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    assert [line["llm_adapter_sha256"] for line in lines] == [r.llm_adapter_sha256 for r in result.rounds]
    assert all(0 <= line["tiny_global"] <= 1 and 0 <= line["llm_generated"] <= 1 for line in lines)


def test_private_files_are_private(finished: Finished) -> None:
    kit, _, _ = finished
    for folder in kit.folders:
        for name in ("identity.key", "state.sqlite", "ledger.sqlite", "evaluations.jsonl"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name


def test_progress_tells_each_stage_and_each_answer(finished: Finished) -> None:
    _, _, events = finished
    first = [(event.kind, event.stage) for event in events if event.round == 1]
    wanted = [("round", "")]
    for stage in ("advertise", "share", "accept", "mask", "consistency", "unmask"):
        wanted += [("stage", stage), *[("reply", stage)] * 3, ("closed", stage)]
    assert first == [*wanted, ("generated", ""), ("end", ""), ("delivered", "")]
    order = [(event.kind, event.round) for event in events if event.kind in ("end", "delivered")]
    assert order == [("end", 1), ("delivered", 1), ("end", 2), ("delivered", 2)]


def test_a_round_that_too_few_came_to_is_told_and_goes_on_when_they_return(make_kit: MakeKit) -> None:
    kit = make_kit(rounds=1, join_s=0.01)
    federation = SecureFederation(kit.plan, Provider(kit.plan, kit.generator), pinned_roster(kit.plan))
    two = InProcessGrid(
        client_app, [{"organization-dir": str(folder), "simulated": True} for folder in kit.folders[:2]]
    )
    with pytest.raises(RoundAborted, match="2 organizations are connected"):
        federation.run(two)
    (record,) = read_records(kit.plan.out)
    assert (record.state, record.aborted_at, record.attempt, record.joined) == ("aborted", "connect", 0, 2)
    assert str(failure_of(record)) == "round aborted at connect: too few organizations are connected ({'connected': 2})"
    run_server(kit.grid(), kit.plan, None, kit.generator)
    assert [(r.state, r.attempt) for r in read_records(kit.plan.out)] == [("aborted", 0), ("completed", 1)]


def test_the_same_seeds_give_the_same_adapter(make_kit: MakeKit) -> None:
    """Same seeds and identities: training, nonces and rounding are replayed bit by bit."""
    hashes = []
    for name in ("first", "second"):
        kit = make_kit(name, rounds=1)
        hashes.append(run_server(kit.grid(), kit.plan, None, kit.generator).rounds[0].llm_adapter_sha256)
    assert hashes[0] == hashes[1]


def test_the_rule_examples_weighs_by_rows(make_kit: MakeKit) -> None:
    """Organization 0 declares three times the rows: its update counts three times."""
    kit = make_kit(rounds=1, weight_rule="examples", bits=32)
    write_rows(kit.folders[0] / "train.jsonl", random_rows(9, 3 * ROWS))
    kit.change(0, privacy=kit.config(0).privacy.model_copy(update={"declared": 3 * ROWS}))
    (record,) = run_server(kit.grid(), kit.plan, None, kit.generator).rounds
    assert record.masked == 3
    updates = [load_file(folder / "rounds" / "1" / "own_update.safetensors")["update"] for folder in kit.folders]
    mean = load_file(kit.plan.out / "rounds" / "1" / "global_update.safetensors")["mean"].reshape(-1)
    np.testing.assert_allclose(mean, (3 * updates[0] + updates[1] + updates[2]) / 5, atol=1e-5)


def test_a_deployed_server_needs_its_roster(make_kit: MakeKit) -> None:
    kit = make_kit(rounds=1)
    plan = kit.plan.model_copy(update={"organizations_dir": None})
    with pytest.raises(ConfigError, match=r"roster\.txt"):
        run_server(kit.grid(), plan, None, kit.generator)


def test_as_deployed_no_two_runs_are_equal(make_kit: MakeKit) -> None:
    hashes = []
    for name in ("first", "second"):
        kit = make_kit(name, rounds=1)
        for number in range(3):
            kit.change(number, simulation=None)
        plan = kit.plan.model_copy(update={"organizations_dir": None})
        write_roster(plan.out, [bytes.fromhex(key) for key in kit.config(0).secagg.roster])
        hashes.append(run_server(kit.grid(), plan, None, kit.generator).rounds[0].llm_adapter_sha256)
    assert hashes[0] != hashes[1]


def test_round_json_proves_its_files(finished: Finished) -> None:
    kit, result, _ = finished
    folder: Path = kit.plan.out / "rounds" / "2"
    document = json.loads((folder / "round.json").read_text())
    digest = hashlib.sha256((folder / "global_update.safetensors").read_bytes()).hexdigest()
    assert document["global_update_sha256"] == digest
    assert document["record"]["llm_adapter_sha256"] == result.rounds[1].llm_adapter_sha256
