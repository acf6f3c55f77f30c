"""What leaves an organization, and what makes it refuse."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from clients import local_training
from clients.client_app import app
from clients.handlers import handle
from clients.node import worker
from clients.node_store import NodeStore
from clients.organization import assemble, load_organization, organization_of
from gradtf_fl.adapters import AdapterSpec, update_space
from gradtf_fl.config import DataSection, Sampler
from gradtf_fl.config.compute import ComputeSection
from gradtf_fl.errors import ConfigError
from gradtf_fl.flower import OpenRound, Refused, RoundKey, answered, messages_for
from gradtf_fl.privacy import read_ledger
from gradtf_fl.round_messages import (
    DELIVER_TYPE,
    MESSAGE_TYPES,
    REFUSAL,
    SECTION,
    AdapterDelivery,
    BeginRound,
    Fields,
    StagePayload,
    TrainingPlan,
)
from gradtf_fl.secagg import Identity
from gradtf_fl.tasks import Row, write_rows
from gradtf_fl.training import physical_batch
from gradtf_fl.training.dp_sgd import train_dp
from strategies import InProcessGrid, Provider, SecureFederation, provider
from strategies.provider import update_bytes
from strategies.server_app import pinned_roster
from tests.cli.conftest import gradtf
from tests.strategies.federation_kit import Kit, write_transformer

MakeKit = Callable[..., Kit]
MARKER = "patient-7431-has-the-flu"


class Bench:
    """One organization asked by hand."""

    def __init__(self, kit: Kit) -> None:
        self.kit, self.grid = kit, kit.grid()
        self.federation = SecureFederation(kit.plan, Provider(kit.plan, kit.generator), pinned_roster(kit.plan))
        self.federation._resume()
        self.node = next(iter(self.grid.get_node_ids()))

    def begin(self, round_number: int = 1, **changes: Any) -> BeginRound:
        """A ``train.begin`` message; ``changes`` go into the round's configuration, those of ``dp`` into its plan."""
        configs = self.federation.sums.next_attempt(round_number, self.federation._start())
        if isinstance(changes.get("dp"), dict):
            plan = TrainingPlan.from_canonical(configs[0].dp)
            changes["dp"] = replace(plan, **changes["dp"]).canonical()
        configs = [replace(config, **changes) for config in configs]
        (message,) = self.federation._begin_messages(self.grid, [self.node], configs)
        return BeginRound.from_fields(dict(message.content[SECTION]))

    def ask(self, message_type: str, fields: Fields) -> Message:
        (reply,) = self.grid.send_and_receive(
            messages_for({self.node: fields}, message_type, "1", 600.0), timeout=600.0
        )
        return reply

    def code(self, message_type: str, fields: Fields) -> object:
        """The refusal code of the answer (None when it is an answer)."""
        return dict(self.ask(message_type, fields).content[SECTION]).get(REFUSAL)


BEGIN = MESSAGE_TYPES["advertise"]


@pytest.fixture
def bench(make_kit: MakeKit) -> Bench:
    return Bench(make_kit(budget=50.0))


def everything_in(reply: Message) -> str:
    """All that travels: metadata, error and content."""
    return f"{reply.metadata!r} {reply!r} {dict(reply.content) if reply.has_content() else ''}"


def test_no_text_of_an_exception_leaves(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"row 12: {MARKER}")

    monkeypatch.setattr(local_training, "train_dp", fail)
    with caplog.at_level(logging.ERROR, "gradtf.client"):
        reply = bench.ask(BEGIN, bench.begin().to_fields())
    assert dict(reply.content[SECTION]) == {REFUSAL: "internal"}
    assert MARKER not in everything_in(reply)
    log = (bench.kit.folders[0] / "client.log").read_text()
    assert f"RuntimeError: row 12: {MARKER}" in log
    assert "Traceback" in log
    assert MARKER in caplog.text  # whoever runs the simulation sees it
    assert (bench.kit.folders[0] / "client.log").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("sampler", ["lora", "opacus"])
def test_an_organization_trains_with_the_sampler_of_its_own_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, sampler: Sampler
) -> None:
    used = []

    def spy(*rows: Any, **options: Any) -> Any:
        used.append(options["sampler"])
        return train_dp(*rows, **options)

    monkeypatch.setattr(local_training, "train_dp", spy)
    bench.kit.change(0, compute=ComputeSection(sampler=sampler))
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    assert used == [sampler]


def test_an_organization_trains_as_its_compute_table_says(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def spy(model: Any, rows: Any, **options: Any) -> Any:
        base = model.get_input_embeddings().weight.dtype
        seen.append((base, options["physical_batch"], options["gradient_checkpointing"]))
        return train_dp(model, rows, **options)

    monkeypatch.setattr(local_training, "train_dp", spy)
    bench.kit.change(0, compute=ComputeSection(precision="bf16", physical_rows=5, gradient_checkpointing=True))
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    assert seen == [(torch.bfloat16, 5, True)]


@pytest.mark.parametrize("what", ["memory", "device"])
def test_what_the_machine_cannot_do_is_refused_and_not_paid_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "memory":
        update_space._shared.cache_clear()  # a simulation's organizations share a model, which is rehearsed once
        monkeypatch.setattr(physical_batch, "available_bytes", lambda _: 0)
    else:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        bench.kit.change(0, compute=ComputeSection(device="cuda"))
    assert bench.code(BEGIN, bench.begin().to_fields()) == {"memory": "policy", "device": "internal"}[what]
    ledger = bench.kit.folders[0] / "ledger.sqlite"
    assert not ledger.exists() or read_ledger(ledger).content.events == ()
    log = (bench.kit.folders[0] / "client.log").read_text()
    assert {"memory": "out of memory", "device": "[compute] device 'cuda'"}[what] in log


UNTRAINABLE = {
    "full on q_proj, v_proj": AdapterSpec(kind="full"),
    "lora on q_proj, embed_tokens": AdapterSpec(targets=("q_proj", "embed_tokens")),
}


@pytest.mark.parametrize("name", UNTRAINABLE)
def test_an_adapter_that_nobody_can_train_privately_starts_no_round_and_costs_nothing(
    name: str, make_kit: MakeKit, pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = make_kit(budget=50.0)
    other = replace(kit, generator=write_transformer(tmp_path / "other.safetensors", pair, UNTRAINABLE[name]))
    with pytest.raises(ConfigError, match=rf"can't train its TinyLM adapter \({name}\) under DP-SGD: "):
        Provider(other.plan, other.generator)
    monkeypatch.setattr(provider, "_refuse_untrainable", lambda *_: None)  # a server that asks all the same
    bench = Bench(other)
    assert bench.code(BEGIN, bench.begin().to_fields()) == "policy"
    log = (kit.folders[0] / "client.log").read_text()
    assert "the round's adapter cannot be trained privately" in log
    assert not (kit.folders[0] / "ledger.sqlite").exists()


def test_a_private_path_does_not_leave(bench: Bench) -> None:
    bench.kit.change(0, data=DataSection(train=Path(f"{MARKER}.jsonl")))
    reply = bench.ask(BEGIN, bench.begin().to_fields())
    assert dict(reply.content[SECTION]) == {REFUSAL: "policy"}
    assert MARKER not in everything_in(reply)


def test_a_bad_row_does_not_leave_and_is_not_charged(bench: Bench) -> None:
    train = bench.kit.folders[0] / "train.jsonl"
    train.write_text(train.read_text() + json.dumps({"prompt": MARKER}) + "\n")
    reply = bench.ask(BEGIN, bench.begin().to_fields())
    assert dict(reply.content[SECTION]) == {REFUSAL: "policy"}
    assert MARKER not in everything_in(reply)
    assert read_ledger(bench.kit.folders[0] / "ledger.sqlite").content.events == ()


@pytest.mark.parametrize("row", [{"prompt": "Which ward?", "answer": "Twelve"}, {"prompt": "", "answer": "7"}])
def test_a_row_that_teaches_nothing_is_refused_and_not_charged(bench: Bench, row: dict[str, str]) -> None:
    train = bench.kit.folders[0] / "train.jsonl"
    train.write_text(train.read_text() + json.dumps(row) + "\n")
    assert bench.code(BEGIN, bench.begin().to_fields()) == "policy"
    assert read_ledger(bench.kit.folders[0] / "ledger.sqlite").content.events == ()
    log = (bench.kit.folders[0] / "client.log").read_text()
    assert "1 of 65 rows have no token that is scored, for example row 65" in log


def test_a_file_with_mark_carriage_returns_and_blank_lines_is_trained_on(bench: Bench) -> None:
    """A line of U+00A0 was counted and not read: every round was refused as "the training file changed"."""
    train = bench.kit.folders[0] / "train.jsonl"
    text = train.read_text().replace("\n", "\r\n") + "\u00a0\r\n\u2028\n"
    train.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    (event,) = read_ledger(bench.kit.folders[0] / "ledger.sqlite").content.events
    assert event.q == bench.kit.plan.batch / 64


def test_a_roster_without_the_organization_is_a_matter_of_its_policy(bench: Bench) -> None:
    config = bench.kit.config(0)
    others = tuple(Identity.generate().public.hex() for _ in config.secagg.roster)
    bench.kit.change(0, secagg=config.secagg.model_copy(update={"roster": others}))
    assert bench.code(BEGIN, bench.begin().to_fields()) == "policy"
    assert "pins is without itself" in (bench.kit.folders[0] / "client.log").read_text()


def test_a_broken_configuration_does_not_leave(bench: Bench) -> None:
    (bench.kit.folders[0] / "organization.toml").write_text(f"name = '{MARKER}\n")
    reply = bench.ask(BEGIN, bench.begin().to_fields())
    assert dict(reply.content[SECTION]) == {REFUSAL: "internal"}
    assert MARKER not in everything_in(reply)


def test_junk_is_a_protocol_error(bench: Bench) -> None:
    assert bench.code(BEGIN, {"configs": b"junk"}) == "protocol"
    assert bench.code(BEGIN, replace(bench.begin(), configs=b"junk").to_fields()) == "protocol"
    assert bench.code(MESSAGE_TYPES["share"], {"round": "one"}) == "protocol"


def test_a_round_is_answered_once(bench: Bench) -> None:
    begin = bench.begin().to_fields()
    assert bench.code(BEGIN, begin) is None
    assert bench.code(BEGIN, begin) == "stale"
    assert len(read_ledger(bench.kit.folders[0] / "ledger.sqlite").content.events) == 1
    assert bench.code(BEGIN, bench.begin().to_fields()) is None  # the next attempt takes what was never masked
    assert len(read_ledger(bench.kit.folders[0] / "ledger.sqlite").content.events) == 1


def test_a_stage_of_another_round_is_stale(bench: Bench) -> None:
    assert bench.code(MESSAGE_TYPES["share"], StagePayload(1, 0, b"").to_fields()) == "stale"
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    assert bench.code(MESSAGE_TYPES["share"], StagePayload(1, 1, b"").to_fields()) == "stale"


def test_a_bad_stage_message_ends_the_round_for_good(bench: Bench) -> None:
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    assert bench.code(MESSAGE_TYPES["share"], StagePayload(1, 0, b"junk").to_fields()) == "protocol"
    assert bench.code(MESSAGE_TYPES["share"], StagePayload(1, 0, b"junk").to_fields()) == "stale"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"threshold": 2, "quorum": 2}, "policy"),
        ({"clip": 100.0}, "policy"),
        ({"roster_hash": bytes(32)}, "policy"),
        ({"model_hash": bytes(32)}, "model_hash"),
        ({"dim": 5}, "model_hash"),
        ({"dp": "{}"}, "protocol"),
        ({"dp": {"rounds": 10**4, "steps": 10**6}}, "protocol"),
        ({"dp": {"batch": 65}}, "policy"),
        ({"round": 3}, "policy"),
    ],
)
def test_the_organization_decides(bench: Bench, changes: dict[str, object], code: str) -> None:
    assert bench.code(BEGIN, bench.begin(**changes).to_fields()) == code
    ledger = bench.kit.folders[0] / "ledger.sqlite"
    assert not ledger.exists() or read_ledger(ledger).content.events == ()


def test_a_plan_beyond_the_budget_is_refused_before_the_rows_are_parsed(make_kit: MakeKit) -> None:
    bench = Bench(make_kit(budget=0.5))
    train = bench.kit.folders[0] / "train.jsonl"
    train.write_text("not json\n" * 64)
    assert bench.code(BEGIN, bench.begin().to_fields()) == "policy"
    assert "past the budget of 0.5" in (bench.kit.folders[0] / "client.log").read_text()
    assert read_ledger(bench.kit.folders[0] / "ledger.sqlite").content.events == ()


def test_a_weaker_delta_is_refused(make_kit: MakeKit) -> None:
    bench = Bench(make_kit(delta=1e-3))
    assert bench.code(BEGIN, bench.begin().to_fields()) == "policy"


def test_another_initial_adapter_is_refused(bench: Bench) -> None:
    assert bench.code(BEGIN, bench.begin(dp={"initial_sha256": "0" * 64}).to_fields()) == "model_hash"
    begin = bench.begin()
    assert bench.code(BEGIN, replace(begin, update=begin.update[:-4]).to_fields()) == "model_hash"


def delivery(bench: Bench) -> AdapterDelivery:
    """A good delivery of round 1."""
    federation, update = bench.federation, bench.federation._update
    adapter = federation.provider.generate("run", 1, update)
    tiny = federation.provider.tiny
    return AdapterDelivery(
        "run", 1, adapter.packed, adapter.signature, tiny.spec.canonical(), tiny.initial_hash, update_bytes(update)
    )


def test_only_the_pinned_provider_can_deliver(bench: Bench) -> None:
    good = delivery(bench)
    stranger = Identity.generate()
    bad = [
        replace(good, signature=stranger.sign(good.signed_bytes)),
        replace(good, signature=b""),
        replace(good, round=2),
        replace(good, run_id="another run"),
        replace(good, adapter=good.adapter[:-1] + b"\x01"),
        replace(good, update=np.ones_like(bench.federation._update).tobytes()),
    ]
    for forged in bad:
        assert bench.code(DELIVER_TYPE, forged.to_fields()) == "adapter"
    assert not (bench.kit.folders[0] / "rounds").exists()
    assert bench.code(DELIVER_TYPE, good.to_fields()) is None
    assert (bench.kit.folders[0] / "rounds" / "1" / "llm_adapter" / "adapter_config.json").exists()


def test_a_wrong_adapter_that_rides_along_stops_the_round(bench: Bench) -> None:
    good, begin = delivery(bench), bench.begin(2)
    good = replace(good, run_id=bench.federation.sums.state.run_id)
    good = replace(good, signature=bench.federation.provider.key.sign(good.signed_bytes))
    riding = {"adapter_round": 1, "adapter": good.adapter, "signature": good.signature}
    forged = replace(begin, **{**riding, "signature": Identity.generate().sign(good.signed_bytes)})
    assert bench.code(BEGIN, forged.to_fields()) == "adapter"
    assert not (bench.kit.folders[0] / "rounds").exists()
    assert not (bench.kit.folders[0] / "ledger.sqlite").exists()  # nothing was charged, nothing trained
    assert bench.code(BEGIN, replace(begin, **riding).to_fields()) is None
    assert (bench.kit.folders[0] / "rounds" / "1" / "llm_adapter" / "adapter_config.json").exists()
    assert len(read_ledger(bench.kit.folders[0] / "ledger.sqlite").content.events) == 1


def test_an_adapter_of_another_model_is_refused(bench: Bench) -> None:
    bench.kit.change(0, models=bench.kit.config(0).models.model_copy(update={"llm": bench.kit.plan.tiny}))
    assert bench.code(DELIVER_TYPE, delivery(bench).to_fields()) == "adapter"


def test_an_adapter_of_another_llm_of_the_same_shapes_is_refused(bench: Bench, tmp_path: Path) -> None:
    """Its tokenizer reads 3 for 7: all shapes fit, and every figure would be wrong."""
    good, folder = delivery(bench), bench.kit.folders[0]
    other = Path(shutil.copytree(bench.kit.plan.llm, tmp_path / "llm"))
    bench.kit.change(0, models=bench.kit.config(0).models.model_copy(update={"llm": str(other)}))
    tokenizer = other / "tokenizer.json"
    whole = tokenizer.read_text()
    document = json.loads(whole)
    words = document["model"]["vocab"]
    words["3"], words["7"] = words["7"], words["3"]
    tokenizer.write_text(json.dumps(document))
    assert bench.code(DELIVER_TYPE, good.to_fields()) == "adapter"
    assert "the adapter was made for another LLM" in (folder / "client.log").read_text()
    assert not (folder / "rounds").exists()
    tokenizer.write_text(whole)
    assert bench.code(DELIVER_TYPE, good.to_fields()) is None


@pytest.mark.parametrize("what", ["tokenizer", "missing"])
def test_another_llm_is_found_before_the_first_charge(bench: Bench, tmp_path: Path, what: str) -> None:
    folder, other = bench.kit.folders[0], tmp_path / "llm"
    if what == "tokenizer":
        shutil.copytree(bench.kit.plan.llm, other)
        tokenizer = other / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text().replace('"3"', '"x"').replace('"7"', '"3"').replace('"x"', '"7"'))
    models = bench.kit.config(0).models
    bench.kit.change(0, models=models.model_copy(update={"llm": str(other)}))
    assert bench.code(BEGIN, bench.begin().to_fields()) == "model_hash"
    assert not (folder / "ledger.sqlite").exists()
    said = {"tokenizer": "is another one than the provider's", "missing": "no such folder"}[what]
    assert said in (folder / "client.log").read_text()
    bench.kit.change(0, models=models)
    assert bench.code(BEGIN, bench.begin().to_fields()) is None


def evaluation_of(bench: Bench, rows: list[Row]) -> dict[str, Any]:
    write_rows(bench.kit.folders[0] / "test.jsonl", rows)
    assert bench.code(DELIVER_TYPE, delivery(bench).to_fields()) is None
    line: dict[str, Any] = json.loads((bench.kit.folders[0] / "evaluations.jsonl").read_text())
    return line


def test_free_text_is_scored_by_loss_and_by_words(bench: Bench) -> None:
    line = evaluation_of(bench, [Row(f"[_]{number}?34=", f"{number} 23 45") for number in range(10, 90)])
    assert (line["rows"], line["rouge1_rows"]) == (80, 32)
    assert 0 < line["llm_loss"] < 5
    assert 0 < line["tiny_loss"] < 5
    assert 0 <= line["llm_rouge1"] <= 1
    assert 0 <= line["tiny_rouge1"] <= 1


def test_short_answers_are_not_generated(bench: Bench) -> None:
    line = evaluation_of(bench, [Row("[_]12?34=", "46"), Row("[_]12?34=", "1 2 3"), Row("[_]12?35=", "47")])
    assert (line["llm_rouge1"], line["tiny_rouge1"], line["rouge1_rows"]) == (None, None, 0)
    assert line["llm_loss"] > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r'{"prompt": "[_]12?34=", "answer": "\ud83d"}', "line 1: holds half a character"),
        ('{"prompt": "Which ward?", "answer": "Twelve"}', "1 of 1 rows have no token that is scored"),
        ("", "no rows"),
    ],
)
def test_a_bad_test_row_never_stands_between_us_and_a_round(bench: Bench, text: str, said: str) -> None:
    folder = bench.kit.folders[0]
    (folder / "test.jsonl").write_text(text)
    bench.kit.change(0, share_metrics=True)
    reply = bench.ask(DELIVER_TYPE, delivery(bench).to_fields())
    assert dict(reply.content[SECTION]) == {"status": "stored"}
    assert (folder / "rounds" / "1" / "llm_adapter").is_dir()
    assert not (folder / "evaluations.jsonl").exists()
    log = (folder / "client.log").read_text()
    assert "round 1 is not scored: data " in log
    assert said in log


def test_metrics_leave_only_when_shared(bench: Bench) -> None:
    assert dict(bench.ask(DELIVER_TYPE, delivery(bench).to_fields()).content[SECTION]) == {"status": "stored"}
    bench.kit.change(0, share_metrics=True)
    again = replace(delivery(bench), run_id="next")
    signed = replace(again, round=2)
    signed = replace(signed, signature=bench.federation.provider.key.sign(signed.signed_bytes))
    fields = dict(bench.ask(DELIVER_TYPE, signed.to_fields()).content[SECTION])
    assert set(fields) == {"status", "tiny_global", "llm_generated"}
    rounds = bench.kit.folders[0] / "rounds"
    cards = [(rounds / str(number) / "llm_adapter" / "README.md").read_text() for number in (1, 2)]
    shown = [card.partition("## Results")[2].partition("## Hash")[0] for card in cards]
    assert "Not known" in shown[0]
    assert f"| Exact match, LLM with this adapter | {fields['llm_generated']:.4g} |" in shown[1]


def test_a_run_config_cannot_choose_a_real_organization(make_kit: MakeKit) -> None:
    kit = make_kit()
    run_config = {"organizations-dir": str(kit.plan.organizations_dir)}
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), run_config)
    assert organization_of(context).folder == kit.folders[0]
    kit.change(0, simulation=None)
    with pytest.raises(ConfigError, match=r"\[simulation\]"):
        organization_of(context)
    assert organization_of(Context(1, 1, {"organization-dir": str(kit.folders[0])}, RecordDict(), run_config))


def test_a_strangers_words_stay_one_short_line_in_the_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A message type of 30 MB went into client.log whole, escape sequences and line ends with it."""
    hostile = "train.\x1b[2J\n2026-01-01T00:00:00+00:00 train.begin accepted \u202e" + "x" * 30_000_000
    folder = bench.kit.folders[0]
    organization = load_organization(folder, simulated=True)
    with caplog.at_level(logging.WARNING, "gradtf.client"):
        answer = answered(lambda: handle(organization, hostile, {}), hostile, lambda: folder)
    assert answer == {REFUSAL: "protocol"}
    log = (folder / "client.log").read_text()
    assert len(log) < 10_000
    assert all(line.isprintable() for text in (log, caplog.text) for line in text.splitlines())
    assert not [line for line in log.splitlines() if "accepted" in line[:60] and line.startswith("2026-01-01")]


def test_only_a_simulation_serves_a_folder_with_a_seed(make_kit: MakeKit) -> None:
    """Noise and masks of a seed that the server knows hide nothing from it."""
    kit = make_kit()
    folder = kit.folders[0]
    deployed = Context(1, 1, {"organization-dir": str(folder)}, RecordDict(), {})
    for load in (lambda: load_organization(folder), lambda: organization_of(deployed)):
        with pytest.raises(ConfigError, match=r"organization\.toml: simulation: .* only `gradtf simulate`"):
            load()
    organization = assemble(folder, kit.config(0), Identity.load(folder / "identity.key"))
    with pytest.raises(ConfigError, match="simulation"):
        handle(organization, BEGIN, {})
    key = RoundKey("run", 1, 0)
    assert organization.training_seed(key) is None
    assert organization.randomness(key) is os.urandom
    assert organization.store().durable
    assert worker.answer(folder, BEGIN, {}) == {"fields": {REFUSAL: "internal"}}
    run = gradtf("org", "run", folder)
    assert run.exit_code == 2
    assert "[simulation]" not in run.output
    assert "simulation" in run.output
    assert not (folder / "flower").exists()


def test_what_others_may_write_is_not_believed(make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = make_kit()
    kit.change(0, simulation=None)
    folder = kit.folders[0]
    load_organization(folder)
    (folder / "organization.toml").chmod(0o644)
    folder.chmod(0o777)
    with pytest.raises(ConfigError) as found:
        load_organization(folder)
    assert [problem.partition(": ")[0] for problem in found.value.problems] == [
        str(folder),
        str(folder / "organization.toml"),
    ]
    folder.chmod(0o700)
    (folder / "organization.toml").chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # all of it is another user's
    with pytest.raises(ConfigError, match="organization\\.toml: owned by user"):
        load_organization(folder)


def test_only_a_simulation_does_not_wait_for_the_disk(make_kit: MakeKit) -> None:
    kit = make_kit()
    context = Context(1, 1, {"organization-dir": str(kit.folders[0]), "simulated": True}, RecordDict(), {})
    assert not organization_of(context).store().durable
    kit.change(0, simulation=None)
    store = organization_of(context).store()
    with store._transaction() as database:
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_the_store_forgets_keys_and_refuses_older_rounds(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "state.sqlite")
    key = RoundKey("run", 1, 0)
    store.claim(key, "plan", b"training")
    vector = np.frombuffer(b"private-vector..", np.float32)
    store.open(OpenRound(key, b"secret-protocol-state", vector, 1.0), b"training")
    with store.stage(1, 0) as opened:
        opened.finished = True
    data = (tmp_path / "state.sqlite").read_bytes()
    assert b"secret-protocol-state" not in data
    assert b"private-vector" not in data
    for older in (key, RoundKey("run", 0, 9)):
        with pytest.raises(Refused, match="not above"):
            store.claim(older, "plan", b"training")
    store.claim(RoundKey("run", 1, 1), "plan", b"training")
    assert store.last_round("run") == (1, 0)  # nobody has answered it yet
    store.give_up(RoundKey("run", 1, 1))
    assert store.last_round("run") == (1, 1)
    assert store.last_round("other") == (0, -1)


def test_a_late_training_does_not_reopen_its_round(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "state.sqlite")
    store.claim(RoundKey("run", 1, 0), "plan", b"training")
    store.claim(RoundKey("run", 1, 1), "plan", b"training")
    with pytest.raises(Refused, match="another round"):
        store.open(OpenRound(RoundKey("run", 1, 0), b"", None, 1.0), b"training")


def test_the_stages_import_nothing_heavy() -> None:
    """Each Flower message starts a new process: torch alone would cost seconds in each of five stages."""
    code = (
        "import sys, clients.client_app\n"
        "heavy = {'torch', 'transformers', 'peft', 'opacus', 'datasets', 'scipy', 'gradtf_fl.training'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_stage_in_a_process_of_its_own_imports_nothing_heavy(bench: Bench) -> None:
    """Not only the import: a whole ``train.share`` stays light."""
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    code = f"""
import sys
from clients.organization import Organization, organization_of
from clients.stages import answer
from gradtf_fl.flower.refusals import code_of
from gradtf_fl.round_messages import StagePayload
from flwr.app import Context, RecordDict
node = {{"organization-dir": {str(bench.kit.folders[0])!r}, "simulated": True}}
org = organization_of(Context(1, 1, node, RecordDict(), {{}}))
try:
    answer(org, "share", StagePayload(1, 0, b"junk"))
except Exception as error:
    assert code_of(error) == "protocol", error
sys.exit(", ".join(sorted({{"torch", "transformers", "peft", "opacus", "scipy"}} & set(sys.modules))) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_app_has_a_handler_for_each_message_type() -> None:
    grid = InProcessGrid(app, [{}])
    for message_type in (*MESSAGE_TYPES.values(), DELIVER_TYPE):
        (reply,) = grid.send_and_receive(
            messages_for({node: {} for node in grid.get_node_ids()}, message_type, "1", 60.0), timeout=60.0
        )
        assert dict(reply.content[SECTION])[REFUSAL] in ("internal", "protocol")
