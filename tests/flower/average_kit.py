"""A small Flower app whose members' updates are known, averaged securely in this process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from gradtf_fl.config import MemberPolicy, to_toml
from gradtf_fl.flower import new_member, secagg_mod
from gradtf_fl.flower.arrays import decoded, encoded
from gradtf_fl.round_messages import SECTION, STAGE, Stage
from strategies import InProcessGrid

CLIP = 10.0
Model = dict[str, NDArray[Any]]


def first_model() -> Model:
    """Weights, a bias, a scalar, and a counter that is no float."""
    rng = np.random.default_rng(0)
    return {
        "weight": rng.normal(size=(4, 3)).astype(np.float32),
        "bias": rng.normal(size=3),
        "scale": np.float32(1.5).reshape(()),
        "steps": np.array([7], np.int64),
    }


def trained(model: Mapping[str, NDArray[Any]], node: int, config: Mapping[str, Any]) -> Model:
    """What member ``node`` makes of a model: one step of least squares on rows of its own."""
    rng = np.random.default_rng(1000 + node)
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(8, 3))
    error = x @ model["weight"] * model["scale"] + model["bias"] - y
    rate = float(config.get("rate", 0.1))
    after = {name: array.copy() for name, array in model.items()}
    after["weight"] = (model["weight"] - rate * x.T @ error / 8).astype(np.float32)
    after["bias"] = model["bias"] - rate * error.mean(axis=0)
    after["scale"] = np.asarray(model["scale"] - np.float32(0.01 * node), np.float32)
    after["steps"] = model["steps"] + 1 + node
    return after


@dataclass
class Kit:
    """Members on disk and the app that they run.

    Attributes:
        folders: of the members. keys: their public keys (hex).
        calls: node -> trainings of its app so far.
        silent: (node, stage) -> does not answer it. fails: nodes whose app raises.
        killed: nodes that answer each message in a process of its own, which is killed "after" its answer, or "while"
            its app trains.
        accuracies: node -> what its evaluation tells in place of an accuracy.
    """

    folders: list[Path]
    keys: list[str]
    calls: dict[int, int] = field(default_factory=dict)
    silent: set[tuple[int, Stage]] = field(default_factory=set)
    fails: set[int] = field(default_factory=set)
    killed: dict[int, Literal["after", "while"]] = field(default_factory=dict)
    accuracies: dict[int, float | list[float]] = field(default_factory=dict)
    train: Callable[[Model, int, Mapping[str, Any]], Model] = trained

    def change(self, number: int, **values: object) -> None:
        """Rewrite parts of a member's policy."""
        path = self.folders[number] / "policy.toml"
        path.write_text(to_toml(MemberPolicy.model_validate({"roster": self.keys, **values})))

    def log(self, number: int) -> str:
        """What a member noted at home."""
        path = self.folders[number] / "client.log"
        return path.read_text() if path.exists() else ""

    def metrics(self, node: int) -> dict[str, float]:
        """What the app tells of every training and evaluation."""
        return {"num-examples": 10.0 * (node + 1), "one": 1.0, "secret": 7431.0}

    def app(self, secure: bool = True) -> ClientApp:
        """The app, with the mod or as it would be without."""
        policy = self.folders[0].parent / "{partition-id}" / "policy.toml"
        app = ClientApp(mods=[self._silence, secagg_mod(policy)] if secure else [])

        @app.train()  # type: ignore[untyped-decorator]
        def train(message: Message, context: Context) -> Message:
            node = int(context.node_config["partition-id"])
            self.calls[node] = self.calls.get(node, 0) + 1
            if self.killed.get(node) == "while":
                os.kill(os.getpid(), signal.SIGKILL)
            if node in self.fails:
                raise RuntimeError("row 12: patient-7431")
            arrays = self.train(decoded(message.content["arrays"]), node, message.content["config"])
            figures = MetricRecord({**self.metrics(node), "loss": 1.0 + node})
            return Message(RecordDict({"arrays": encoded(arrays), "metrics": figures}), reply_to=message)

        @app.evaluate()  # type: ignore[untyped-decorator]
        def evaluate(message: Message, context: Context) -> Message:
            node = int(context.node_config["partition-id"])
            figures = MetricRecord({**self.metrics(node), "accuracy": self.accuracies.get(node, 0.5 + 0.1 * node)})
            content = RecordDict({"patient-7431": figures, "arrays": message.content["arrays"]})
            return Message(content, reply_to=message)

        @app.query()  # type: ignore[untyped-decorator]
        def query(message: Message, context: Context) -> Message:
            return Message(RecordDict({"metrics": MetricRecord({"secret": 7431.0})}), reply_to=message)

        return app

    def grid(self, secure: bool = True) -> InProcessGrid:
        """The in-process grid over the members."""
        return InProcessGrid(self.app(secure), [{"partition-id": number} for number in range(len(self.folders))])

    def _silence(self, message: Message, context: Context, app: Callable[[Message, Context], Message]) -> Message:
        record = message.content.get(SECTION, {})
        if (int(context.node_config["partition-id"]), record.get(STAGE)) in self.silent:
            raise RuntimeError("gone")
        if int(context.node_config["partition-id"]) in self.killed:
            return in_killed_process(lambda: app(message, context))
        return app(message, context)


def in_killed_process(answer: Callable[[], Message]) -> Message:
    """What ``answer`` gives in a child of this process, which sends it and is killed.

    Raises:
        RuntimeError: it was killed before it had an answer.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            theirs.send_bytes(pickle.dumps(answer()))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    theirs.close()
    try:
        reply: Message = pickle.loads(ours.recv_bytes())
    except EOFError:
        raise RuntimeError("killed") from None
    finally:
        ours.close()
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
    return reply


def make_kit(folder: Path, members: int = 3, **policy: object) -> Kit:
    """New members that pin each other."""
    folders = [folder / str(number) for number in range(members)]
    kit = Kit(folders, [new_member(one) for one in folders])
    for number in range(members):
        kit.change(number, **policy)
    return kit


def initial() -> ArrayRecord:
    """The model as Flower has it."""
    return encoded(first_model())
