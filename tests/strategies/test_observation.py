"""A run's status and events, from real federations; and what cannot make a round fail."""

from __future__ import annotations

import errno
import json
import logging
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from gradtf_fl.config import DropPoint, PrivacySection
from gradtf_fl.deployment.json_logs import WITHHELD, read_lines
from gradtf_fl.deployment.run_status import RunStatus
from gradtf_fl.errors import ConfigError, CorruptFile, RoundAborted, RoundRejected
from gradtf_fl.flower import RoundEvent, locked_run, read_records
from gradtf_fl.round_messages import STAGES
from gradtf_fl.secagg import Identity
from strategies import run_server, server_app
from strategies.server.observation import Observer, state_of, tell_all
from tests.strategies.federation_kit import Kit

MakeKit = Callable[..., Kit]


def key(kit: Kit, number: int) -> str:
    return Identity.load(kit.folders[number] / "identity.key").public.hex()


def observed(kit: Kit, *others: Callable[[RoundEvent], None], tracker: Any = None) -> RunStatus:
    """Run with an observer; the status it leaves, also when the run fails."""
    try:
        with Observer(kit.plan, tracker) as observer:
            run_server(kit.grid(), kit.plan, tell_all(observer, *others), kit.generator)
    except (RoundAborted, KeyboardInterrupt):
        pass
    status = RunStatus.read(kit.plan.out)
    assert status is not None
    return status


def events(kit: Kit, name: str) -> list[dict[str, Any]]:
    return read_lines(kit.plan.out / "events.jsonl", name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pair: tuple[str, str], generator: Any) -> tuple[Kit, RunStatus]:
    """Four organizations, two rounds; number 1 is gone at round 2's mask, number 2 at its unmask."""
    from tests.strategies.federation_kit import build

    gone: Mapping[int, tuple[DropPoint, ...]] = {1: (DropPoint(stage="mask", round=2),)}
    kit = build(tmp_path_factory.mktemp("observed") / "out", pair, generator, organizations=4, drop=dict(gone))
    return kit, observed(kit)


def test_the_status_of_a_finished_run(finished: tuple[Kit, RunStatus]) -> None:
    kit, status = finished
    assert (status.state, status.error, status.stage) == ("completed", "", "")
    assert (status.round, status.plan.rounds, status.plan.organizations) == (2, 2, 4)
    assert (status.delivered, status.stored, status.asked, status.dropped) == (2, 4, 4, 1)
    assert [(e.stage, e.answered, e.expected) for e in status.exchanges] == [
        ("advertise", 4, 4),
        ("share", 4, 4),
        ("accept", 4, 4),
        ("mask", 3, 4),
        ("consistency", 3, 3),
        ("unmask", 3, 3),
    ]
    assert all(0 <= e.seconds < 60 for e in status.exchanges)
    assert status.started < status.stage_started <= status.updated
    by_key = {node.key: node for node in status.nodes}
    assert set(by_key) == {key(kit, number) for number in range(4)}
    assert (by_key[key(kit, 0)].stage, by_key[key(kit, 0)].outcome) == ("unmask", "answered")
    assert (by_key[key(kit, 1)].stage, by_key[key(kit, 1)].outcome) == ("mask", "unusable")
    assert stat.S_IMODE((kit.plan.out / "status.json").stat().st_mode) == 0o600
    assert not list(kit.plan.out.glob(".status*"))


def test_every_exchange_is_an_event(finished: tuple[Kit, RunStatus]) -> None:
    kit, _ = finished
    lines = events(kit, "exchange")
    assert [(line["round"], line["stage"]) for line in lines] == [(r, s) for r in (1, 2) for s in STAGES]
    assert all(line["seconds"] >= 0 and line["expected"] >= line["answered"] for line in lines)
    (lost,) = events(kit, "lost")
    assert (lost["round"], lost["stage"], lost["organization"], lost["outcome"]) == (2, "mask", key(kit, 1), "unusable")
    assert [(line["stored"], line["asked"]) for line in events(kit, "delivered")] == [(4, 4), (4, 4)]
    assert [line["state"] for line in events(kit, "end")] == ["completed", "completed"]
    assert [line["state"] for line in events(kit, "finished")] == ["completed"]


def test_bytes_are_told_for_each_organization(finished: tuple[Kit, RunStatus]) -> None:
    kit, _ = finished
    lines = events(kit, "organization")
    assert len(lines) == 8
    record = read_records(kit.plan.out)[0]
    first = [line for line in lines if line["round"] == 1]
    assert {line["organization"] for line in first} == {key(kit, number) for number in range(4)}
    assert round(sum(line["bytes_up"] for line in first) / 4) == record.bytes_up_per_client
    assert round(sum(line["bytes_down"] for line in first) / 4) == record.bytes_down_per_client
    gone = next(line for line in lines if line["round"] == 2 and line["organization"] == key(kit, 1))
    assert gone["included"] is False
    assert gone["bytes_up"] < first[0]["bytes_up"] / 2  # no masked vector


def test_nothing_is_withheld_from_the_log(finished: tuple[Kit, RunStatus]) -> None:
    kit, _ = finished
    text = (kit.plan.out / "events.jsonl").read_text()
    assert WITHHELD not in text
    assert all("time" in json.loads(line) for line in text.splitlines())


def test_the_status_moves_with_the_round(make_kit: MakeKit) -> None:
    """Looked at from outside at each opening of a stage."""
    kit = make_kit(rounds=1)
    seen: list[tuple[str, str, int]] = []

    def look(event: RoundEvent) -> None:
        status = RunStatus.read(kit.plan.out)
        assert status is not None
        if event.kind in ("round", "stage", "closed", "end"):
            seen.append((event.kind, status.stage, status.expected))
        if event.kind == "stage":
            assert {node.outcome for node in status.nodes} == {"waiting"}

    observed(kit, look)
    wanted = [("round", "connect", 3)]
    for stage in STAGES[:-1]:
        wanted += [("stage", stage, 3), ("closed", stage, 3)]
    assert seen == [*wanted, ("stage", "unmask", 3), ("closed", "generate", 0), ("end", "deliver", 3)]


def test_an_adapter_that_rides_along_does_not_turn_the_status_back(make_kit: MakeKit) -> None:
    """Round 1's adapter is told as delivered in the middle of round 2."""
    kit = make_kit()
    seen: list[tuple[int, int, str]] = []

    def look(event: RoundEvent) -> None:
        status = RunStatus.read(kit.plan.out)
        assert status is not None
        if event.kind == "delivered":
            seen.append((status.delivered, status.round, status.stage))

    observed(kit, look)
    assert seen == [(1, 2, "generate"), (2, 2, "")]


def test_a_refusal_is_told_with_its_code_and_whose_it_is(make_kit: MakeKit) -> None:
    """Organization 0 has budget for round 1 only: its node is known from there."""
    kit = make_kit(organizations=4, rounds=2, epsilon=2.0)
    kit.change(0, privacy=PrivacySection(budget=1.6, declared=64))
    status = observed(kit)
    assert status.refused == {"policy": 1}
    (lost,) = events(kit, "lost")
    assert (lost["stage"], lost["organization"], lost["outcome"]) == ("advertise", key(kit, 0), "policy")
    poor = next(node for node in status.nodes if node.key == key(kit, 0))
    assert (poor.refusal, poor.refused_in, poor.outcome) == ("policy", 2, "policy")
    assert events(kit, "end")[-1]["refused_policy"] == 1


def test_who_refuses_from_the_start_is_a_node_without_a_key(make_kit: MakeKit) -> None:
    kit = make_kit(organizations=4, rounds=1)
    kit.change(0, privacy=PrivacySection(budget=0.1, declared=64))
    status = observed(kit)
    (unknown,) = [node for node in status.nodes if not node.key]
    assert (unknown.refusal, unknown.stage) == ("policy", "advertise")
    assert [line["organization"] for line in events(kit, "lost")] == [None]


def test_an_aborted_run_says_so(make_kit: MakeKit) -> None:
    kit = make_kit(rounds=1, drop={0: (DropPoint(stage="mask"),), 1: (DropPoint(stage="mask"),)})
    status = observed(kit)
    assert (status.state, status.error, status.stage) == ("aborted", "RoundAborted", "mask")
    assert events(kit, "end")[-1]["aborted_at"] == "mask"
    assert [(line["state"], line["error"]) for line in events(kit, "finished")] == [("aborted", "RoundAborted")]


def test_a_stopped_run_goes_on_and_remembers_whose_node_is_whose(make_kit: MakeKit) -> None:
    kit = make_kit(budget=50.0)

    def stop(event: RoundEvent) -> None:
        if (event.kind, event.stage, event.round) == ("stage", "advertise", 2):
            raise KeyboardInterrupt

    stopped = observed(kit, stop)
    assert (stopped.state, stopped.round, stopped.stage) == ("stopped", 2, "advertise")
    keys: list[str] = []

    def look(event: RoundEvent) -> None:
        if event.kind == "round":
            status = RunStatus.read(kit.plan.out)
            assert status is not None
            keys.extend(node.key for node in status.nodes)

    status = observed(kit, look)
    assert (status.state, status.attempt) == ("completed", 1)
    assert sorted(keys) == sorted(key(kit, number) for number in range(3))


def test_a_full_disk_fails_no_round(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kit = make_kit(rounds=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunStatus, "write", full)
    monkeypatch.setattr("gradtf_fl.deployment.json_logs.os.write", full)
    with caplog.at_level(logging.WARNING, "gradtf.server"), Observer(kit.plan) as observer:
        result = run_server(kit.grid(), kit.plan, observer, kit.generator)
    assert [record.state for record in result.rounds] == ["completed"]
    complaints = [record.message for record in caplog.records if "the run continues" in record.message]
    assert len(complaints) == 1  # once, not for each event
    assert "No space left" in complaints[0]


def test_a_broken_tracker_fails_no_round(make_kit: MakeKit) -> None:
    class Broken:
        def scalars(self, step: int, values: Mapping[str, float]) -> None:
            raise RuntimeError("no server")

        def close(self) -> None:
            raise RuntimeError("no server")

    assert observed(make_kit(rounds=1), tracker=Broken()).state == "completed"


def test_a_second_server_leaves_the_firsts_status_alone(make_kit: MakeKit) -> None:
    kit = make_kit(rounds=1)
    with locked_run(kit.plan.out), pytest.raises(ConfigError, match="another server"), Observer(kit.plan) as o:
        run_server(kit.grid(), kit.plan, o, kit.generator)
    assert RunStatus.read(kit.plan.out) is None
    assert not (kit.plan.out / "events.jsonl").exists()


def test_the_server_app_of_a_deployment_is_observed(make_kit: MakeKit) -> None:
    kit = make_kit(rounds=1, tracking="")
    context = Context(1, 1, {}, RecordDict(), dict(kit.plan.to_run_config()))
    server_app.main(kit.grid(), context)
    status = RunStatus.read(kit.plan.out)
    assert status is not None
    assert (status.state, status.round) == ("completed", 1)
    assert len(events(kit, "exchange")) == 6


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "completed"),
        (RoundAborted("mask", {}), "aborted"),
        (RoundRejected("too long"), "rejected"),
        (CorruptFile("damaged"), "failed"),
        (RuntimeError(), "failed"),
        (SystemExit(), "stopped"),
    ],
)
def test_how_a_run_ends(error: BaseException | None, state: str) -> None:
    assert state_of(error) == state


@pytest.mark.parametrize("text", ["", "{", "[]", '{"plan": {}}'])
def test_a_damaged_status_is_named_and_written_anew(make_kit: MakeKit, text: str) -> None:
    kit = make_kit(rounds=1)
    (kit.plan.out / "status.json").write_text(text)
    with pytest.raises(CorruptFile, match=r"status\.json"):
        RunStatus.read(kit.plan.out)
    observer = Observer(kit.plan)
    observer(RoundEvent("round", 1, 1))
    status = RunStatus.read(Path(kit.plan.out))
    assert status is not None
    assert status.stage == "connect"
