"""Figures for TensorBoard, MLflow and Weights & Biases; what is missing or hangs, and when it is told."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from gradtf_fl.config import FederationPlan, validate
from gradtf_fl.errors import ConfigError
from gradtf_fl.flower import RoundRecord
from strategies import run_server, server_app
from strategies.engines.flower_app import write_app
from strategies.server.observation import Observer
from strategies.server.tracking import Background, open_tracker, scalars_of
from tests.strategies.federation_kit import Kit

MakeKit = Callable[..., Kit]
MISSING = 'not installed: pip install "gradtf-fl[tracking]"'
RECORD = RoundRecord(
    round=2,
    attempt=0,
    state="completed",
    joined=4,
    masked=3,
    unmasked=3,
    dropped={"mask": 1},
    refused={"policy": 1},
    bytes_up_per_client=2000,
    bytes_down_per_client=3000,
    refinement={"taken": True, "agreement": 0.75, "without": 0.5},
    included=("a" * 64,),
    seconds={"train": 1.5},
)
SCALARS = {
    "completed": 1.0,
    "organizations/joined": 4.0,
    "organizations/masked": 3.0,
    "organizations/unmasked": 3.0,
    "organizations/dropped": 1.0,
    "organizations/refused": 1.0,
    "bytes/up_per_organization": 2000.0,
    "bytes/down_per_organization": 3000.0,
    "refused/policy": 1.0,
    "seconds/train": 1.5,
    "exchange_seconds/mask": 0.25,
    "refinement/taken": 1.0,
    "refinement/agreement": 0.75,
    "refinement/without": 0.5,
}


def test_a_records_figures() -> None:
    assert scalars_of(RECORD, {"mask": 0.25}) == SCALARS


def test_no_tracking_is_no_tracker() -> None:
    assert open_tracker("") is None


@pytest.mark.parametrize("text", ["tensorboard", "tensorboard:", "mlflow:", "wandb:", "comet:runs", "runs", ":runs"])
def test_a_plan_names_a_tracker_and_a_place(text: str) -> None:
    with pytest.raises(ConfigError, match="tensorboard:DIR, mlflow:URI_OR_DIR or wandb:DIR"):
        FederationPlan.from_run_config({"tracking": text})


def test_a_password_does_not_get_into_a_plan() -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        validate(FederationPlan, {"tracking": "mlflow:https://anna:geheim@mlflow.test/"}, str)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("tensorboard:runs", None),
        ("mlflow:runs", None),
        ("wandb:runs", None),
        ("mlflow:http://127.0.0.1:5000", "mlflow:http://127.0.0.1:5000"),
    ],
)
def test_an_apps_place_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, kept: str | None
) -> None:
    """Flower's processes work elsewhere."""
    monkeypatch.chdir(tmp_path)
    app = write_app(tmp_path / "app", FederationPlan(tracking=given))
    config = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert config["tracking"] == (kept or f"{given.partition(':')[0]}:{tmp_path / 'runs'}")


@pytest.mark.parametrize(
    ("kind", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb")]
)
def test_a_missing_extra_is_told_before_anything_is_sent(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch, kind: str, package: str
) -> None:
    for name in [n for n in sys.modules if n == package or n.startswith((f"{package}.", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    kit = make_kit(rounds=1)
    plan = kit.plan.model_copy(update={"tracking": f"{kind}:{kit.plan.out / 'runs'}"})
    grid = kit.grid()

    def sent(messages: Iterable[Message]) -> Iterable[str]:
        raise AssertionError("a message was sent")

    monkeypatch.setattr(grid, "push_messages", sent)
    with pytest.raises(ConfigError, match=r"gradtf-fl\[tracking\]") as caught:
        server_app.main(grid, Context(1, 1, {}, RecordDict(), dict(plan.to_run_config())))
    assert caught.value.exit_code == 2
    assert not (kit.plan.out / "federation.json").exists()


class Kept:
    """A tracker that keeps what it gets, slowly."""

    def __init__(self, seconds: float = 0.0, problem: Exception | None = None) -> None:
        self.seen: list[tuple[int, Mapping[str, float]]] = []
        self.closed = False
        self._seconds, self._problem = seconds, problem

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        time.sleep(self._seconds)
        if self._problem is not None:
            raise self._problem
        self.seen.append((step, values))

    def close(self) -> None:
        self.closed = True


def test_each_round_is_tracked(make_kit: MakeKit) -> None:
    kit, tracker = make_kit(), Kept()
    with Observer(kit.plan, Background(tracker)) as observer:
        records = run_server(kit.grid(), kit.plan, observer, kit.generator).rounds
    assert [step for step, _ in tracker.seen] == [1, 2]
    assert tracker.closed
    for record, (_, values) in zip(records, tracker.seen, strict=True):
        assert values["organizations/joined"] == 3
        assert values["bytes/up_per_organization"] == record.bytes_up_per_client
        assert values["seconds/generate"] == record.seconds["generate"]
        assert {f"exchange_seconds/{s}" for s in ("advertise", "mask", "unmask")} <= set(values)


def test_a_slow_tracker_delays_no_round_and_gets_everything() -> None:
    slow = Kept(0.2)
    background, began = Background(slow), time.monotonic()
    for step in range(5):
        background.scalars(step, {})
    assert time.monotonic() - began < 0.1
    background.close()
    assert [step for step, _ in slow.seen] == list(range(5))
    assert slow.closed


def test_a_hanging_tracker_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.server.tracking.CLOSE_SECONDS", 0.1)
    monkeypatch.setattr("strategies.server.tracking.WAITING_ROUNDS", 2)
    entered, release = threading.Event(), threading.Event()

    class Hanging(Kept):
        def scalars(self, step: int, values: Mapping[str, float]) -> None:
            entered.set()
            release.wait(30)

    background = Background(Hanging())
    background.scalars(1, {})
    assert entered.wait(10)
    background.scalars(2, {})
    with pytest.raises(TimeoutError, match=r"0\.1 s"):
        background.close()
    with pytest.raises(queue.Full):
        background.scalars(3, {})
    with pytest.raises(queue.Full):
        background.close()
    release.set()


def test_a_failing_tracker_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    background = Background(Kept(problem=RuntimeError("no server")))
    for step in range(5):
        background.scalars(step, {})
    background.close()
    assert [record.message for record in caplog.records if "no server" in record.message] == [
        "the run continues, but its tracker is behind: RuntimeError: no server"
    ]


def test_tensorboard_for_real(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason=f"tensorboard is {MISSING}")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker(f"tensorboard:{tmp_path}", "run-1")
    assert tracker is not None
    tracker.scalars(1, SCALARS)
    tracker.scalars(2, SCALARS)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "run-1"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(SCALARS)
    read = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in SCALARS}
    assert read == {name: [(1, value), (2, value)] for name, value in SCALARS.items()}


@pytest.mark.parametrize("uri", [False, True])
def test_mlflow_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: bool) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason=f"mlflow-skinny is {MISSING}")
    monkeypatch.chdir(tmp_path)
    database = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    (tmp_path / "runs").mkdir()
    for run in ("first", "second"):
        tracker = open_tracker(f"mlflow:{database if uri else tmp_path / 'runs'}", run)
        assert tracker is not None
        tracker.scalars(1, SCALARS)
        tracker.scalars(2, SCALARS)
        tracker.close()
    client = mlflow.MlflowClient(tracking_uri=database)
    runs = client.search_runs([client.get_experiment_by_name("gradtf").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["first", "second"]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.metrics == SCALARS
        history = client.get_metric_history(run.info.run_id, "organizations/joined")
        assert [(metric.step, metric.value) for metric in history] == [(1, 4.0), (2, 4.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_an_mlflow_server_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason=f"mlflow-skinny is {MISSING}")
    with pytest.raises(ConfigError, match="tracking mlflow: cannot be opened"):
        open_tracker("mlflow:http://127.0.0.1:9")


def test_weights_and_biases_for_real(tmp_path: Path) -> None:
    """In a process of its own, which leaves no service behind; no address but loopback is asked."""
    pytest.importorskip("wandb", reason=f"wandb is {MISSING}")
    code = f"""
import socket
plain = socket.socket.connect
def connect(self, address):
    assert isinstance(address, str) or address[0] in ("127.0.0.1", "::1"), address
    return plain(self, address)
socket.socket.connect = connect
from strategies.server.tracking import open_tracker
tracker = open_tracker("wandb:{tmp_path}", "run-1")
for step in (1, 2):
    tracker.scalars(step, {SCALARS!r})
tracker.close()
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert wandb_history(log) == [(1, SCALARS), (2, SCALARS)]
    kept = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == {".wandb", ".log"}  # no list of this machine's packages, its name, its program


def wandb_history(log: Path) -> list[tuple[int, dict[str, float]]]:
    """Figures by step in the file of an offline run."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for data in leveldb_records(log.read_bytes()[WANDB_HEADER:]):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if items:
            values = {name: value for name, value in items.items() if not name.startswith("_")}
            found.append((int(items["_step"]), values))
    return found


WANDB_HEADER, BLOCK, HEAD = 7, 32768, 7
FULL, FIRST, LAST = 1, 2, 4


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Records of a log in LevelDB's format: blocks of chunks, each with a checksum, its length and its kind."""
    place, held = 0, b""
    while place + HEAD <= len(data):
        left = BLOCK - (place + WANDB_HEADER) % BLOCK
        if left < HEAD:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part = data[place + HEAD : place + HEAD + length]
        held = part if kind in (FULL, FIRST) else held + part
        if kind in (FULL, LAST):
            yield held
        place += HEAD + length
