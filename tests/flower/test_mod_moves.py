"""A lying server against a member that `secagg_mod` guards: every member's suite, and what an app's messages allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from gradtf_fl.config import SumSettings
from gradtf_fl.flower.app_task import AppTask, Sent, run_config_digest
from gradtf_fl.flower.arrays import dimension, encoded
from gradtf_fl.flower.secure_sums import RoundStart, SecureSums
from gradtf_fl.round_messages import CONFIGS, REFUSAL, SECTION, STAGE, PieceRequest, StagePayload
from gradtf_fl.secagg import Roster, RoundConfig, encode_configs
from strategies import InProcessGrid
from tests.flower.average_kit import CLIP, first_model, make_kit
from tests.flower.round_moves import RoundMoves

MARKER = "patient-7431"
MEMBERS = 5


class HostileAverage:
    """A server that lies to member 0."""

    def __init__(self, folder: Path) -> None:
        self.kit = make_kit(folder, MEMBERS)
        self.grid = self.kit.grid()
        roster = Roster(tuple(bytes.fromhex(key) for key in self.kit.keys))
        self.sums = SecureSums(SumSettings(organizations=MEMBERS, clip=CLIP), roster)
        self.sums.state = replace(self.sums.state, run_id="run")

    def content(self, start: int = 0) -> RecordDict:
        """What an honest server sends: the ``start``-th model and settings."""
        model = first_model()
        model["weight"] = model["weight"] + np.float32(start)
        return RecordDict({"arrays": encoded(model), "config": ConfigRecord({"rate": 0.1, "flags": [True]})})

    def task(self, **changes: Any) -> AppTask:
        """What an honest round asks."""
        honest = AppTask("train", "arrays", Sent.of(self.content()).records, "num-examples", 0, ())
        return replace(honest, **changes)

    def config(self, round_number: int = 1, start: int = 0, **changes: Any) -> RoundConfig:
        sent = Sent.of(self.content(start))
        begins = RoundStart(sent.model_hash, dimension(sent.model), self.task().canonical())
        (config,) = self.sums.next_attempt(round_number, begins)
        return replace(config, **changes)

    def ask(self, content: RecordDict, message_type: str = "train") -> Message:
        (reply,) = self.grid.send_and_receive([Message(content, 100, message_type)])
        return reply

    def code(self, content: RecordDict, message_type: str = "train") -> str | None:
        """Refusal code of the reply; None for an answer."""
        reply = self.ask(content, message_type)
        assert reply.has_content()  # an exception's text would have travelled
        record = reply.content.get(SECTION, {})
        return record.get(REFUSAL)

    def begin(self, config: RoundConfig, content: RecordDict | None = None) -> RecordDict:
        """A begin with this content."""
        ours = ConfigRecord({STAGE: "advertise", CONFIGS: encode_configs([config])})
        return RecordDict({**(content or self.content()), SECTION: ours})

    def begin_code(self, configs: object, start: int = 0) -> str | None:
        ours = ConfigRecord({STAGE: "advertise", CONFIGS: configs})  # type: ignore[dict-item]
        return self.code(RecordDict({**self.content(start), SECTION: ours}))

    def stage_code(self, stage: str, payload: bytes = b"") -> str | None:
        sent = PieceRequest(1, 0, payload, 0) if stage == "mask" else StagePayload(1, 0, payload)
        fields: Mapping[str, Any] = {STAGE: stage, **sent.to_fields()}
        return self.code(RecordDict({SECTION: ConfigRecord(dict(fields))}))

    def log(self) -> str:
        return self.kit.log(0)

    def trained(self) -> int:
        return self.kit.calls.get(0, 0)

    def change(self, **policy: Any) -> None:
        self.kit.change(0, **policy)


@pytest.fixture
def hostile(tmp_path: Path) -> HostileAverage:
    return HostileAverage(tmp_path)


class TestAppRounds(RoundMoves):
    """A member of any Flower app."""

    @pytest.fixture
    def hostile(self, tmp_path: Path) -> HostileAverage:
        return HostileAverage(tmp_path)


def other_settings(content: RecordDict) -> None:
    content["config"] = ConfigRecord({"rate": 0.2, "flags": [True]})


def a_text_for_a_truth(content: RecordDict) -> None:
    content["config"] = ConfigRecord({"rate": 0.1, "flags": ["True"]})


def one_more_record(content: RecordDict) -> None:
    content["more"] = ConfigRecord({})


def figures_for_settings(content: RecordDict) -> None:
    content["config"] = MetricRecord({"rate": 0.1})


def renamed(content: RecordDict) -> None:
    content["model"] = content["arrays"]
    del content["arrays"]


def another_order(content: RecordDict) -> None:
    content["arrays"] = ArrayRecord(dict(reversed(list(content.array_records["arrays"].items()))))


def another_type(content: RecordDict) -> None:
    model = first_model()
    content["arrays"] = encoded({**model, "weight": model["weight"].astype(np.float64)})


def another_shape(content: RecordDict) -> None:
    model = first_model()
    content["arrays"] = encoded({**model, "weight": model["weight"].reshape(3, 4)})


def another_counter(content: RecordDict) -> None:
    content["arrays"] = encoded({**first_model(), "steps": np.array([8], np.int64)})


def two_models(content: RecordDict) -> None:
    content["second"] = content["arrays"]


def no_model(content: RecordDict) -> None:
    del content["arrays"]


def another_label(content: RecordDict) -> None:
    content["arrays"]["weight"].shape = (3, 4)


SENT = {
    another_label: "protocol",
    other_settings: "protocol",
    a_text_for_a_truth: "protocol",
    one_more_record: "protocol",
    figures_for_settings: "protocol",
    renamed: "protocol",
    another_order: "model_hash",
    another_type: "model_hash",
    another_shape: "model_hash",
    another_counter: "model_hash",
    two_models: "protocol",
    no_model: "protocol",
}


@pytest.mark.parametrize("change", SENT, ids=lambda change: change.__name__)
def test_what_is_sent_to_one_member_alone_is_refused(hostile: HostileAverage, change: Any) -> None:
    """C binds what the others got."""
    content = hostile.content()
    change(content)
    assert hostile.code(hostile.begin(hostile.config(), content)) == SENT[change]
    assert hostile.trained() == 0
    assert hostile.code(hostile.begin(hostile.config())) is None


def test_another_function_of_the_app_is_not_called(hostile: HostileAverage) -> None:
    config = hostile.config(dp=hostile.task(message_type="train.other").canonical())
    assert hostile.code(hostile.begin(config)) == "protocol"
    assert hostile.trained() == 0


def test_what_one_member_alone_reads_in_the_run_config_is_refused(hostile: HostileAverage) -> None:
    """Else a server lets all but one train at a rate of 0, and the sum is that one's update."""
    hostile.grid = InProcessGrid(hostile.kit.app(), [{"partition-id": 0}], {"rate": 0.0})
    assert hostile.code(hostile.begin(hostile.config())) == "protocol"
    assert "SecureAverage(run_config=context.run_config)" in hostile.log()
    assert hostile.trained() == 0
    task = hostile.task(run_config=run_config_digest({"rate": 0.0}))
    assert hostile.code(hostile.begin(hostile.config(dp=task.canonical()))) is None


@pytest.mark.parametrize(
    "dp",
    [
        '{"format":"gradtf/flower/v2"}',
        "[]",
        "7",
        "null",
        AppTask("train", "arrays", "", "num-examples", -1).canonical(),
        AppTask("train", "arrays", "", "num-examples", True).canonical(),
        AppTask("train", "arrays", "", "x" * 129).canonical(),
        AppTask("train", "arrays", "", "num-examples", 0, ("m",) * 65).canonical(),
        AppTask("train", "arrays", "", "num-examples").canonical().replace(",", ", "),
        AppTask("train", "arrays", "", "num-examples").canonical().replace('"arrays":', '"sum":'),
    ],
)
def test_a_task_that_no_honest_server_writes_is_refused(hostile: HostileAverage, dp: str) -> None:
    assert hostile.code(hostile.begin(hostile.config(dp=dp))) == "protocol"
    assert hostile.trained() == 0


@pytest.mark.parametrize(("rule", "examples"), [("examples", 0), ("uniform", 5)])
def test_weights_that_no_rule_has_are_refused(hostile: HostileAverage, rule: str, examples: int) -> None:
    hostile.change(weight_rules=("uniform", "examples"))
    config = hostile.config(weight_rule=rule, dp=hostile.task(max_examples=examples).canonical())
    assert hostile.code(hostile.begin(config)) == "protocol"
    assert hostile.trained() == 0


def test_the_server_does_not_choose_what_an_update_is_weighed_by(hostile: HostileAverage) -> None:
    """Else it takes a metric that is large at one member alone, and the sum is that one's update."""
    hostile.change(weight_rules=("examples",))
    task = hostile.task(weighted_by="secret", max_examples=10)
    begin = hostile.begin(hostile.config(weight_rule="examples", dp=task.canonical()))
    assert hostile.code(begin) == "policy"
    assert "weighed by the metric 'secret', not 'num-examples'" in hostile.log()
    assert hostile.trained() == 0
    hostile.change(weight_rules=("examples",), weighted_by="secret")
    begin = hostile.begin(hostile.config(weight_rule="examples", dp=task.canonical()))
    assert hostile.code(begin) is None


def test_training_without_secure_aggregation_is_refused(hostile: HostileAverage) -> None:
    assert hostile.code(hostile.content()) == "policy"
    assert "a train message without secure aggregation" in hostile.log()
    assert hostile.trained() == 0


def test_a_query_is_refused_unless_the_policy_says_so(hostile: HostileAverage) -> None:
    assert hostile.code(RecordDict(), "query") == "policy"
    hostile.change(queries=True)
    assert hostile.code(RecordDict(), "query") is None


def test_of_an_evaluation_only_named_metrics_leave(hostile: HostileAverage) -> None:
    assert hostile.code(hostile.content(), "evaluate") == "policy"
    hostile.change(metrics=("accuracy",))
    reply = hostile.ask(hostile.content(), "evaluate").content
    assert {name: dict(record) for name, record in reply.items()} == {"metrics": {"accuracy": 0.5}}  # and no arrays


def test_of_training_only_metrics_leave_that_are_asked_for_and_named(hostile: HostileAverage) -> None:
    hostile.change(metrics=("loss", "one"))
    config = hostile.config(dp=hostile.task(metrics=("loss", "secret")).canonical())
    reply = hostile.ask(hostile.begin(config)).content
    assert list(reply) == [SECTION]
    assert set(reply[SECTION]) == {"round", "attempt", "payload", "metrics"}
    assert reply[SECTION]["metrics"] == '{"loss": 1.0}'


def everything_in(reply: Message) -> str:
    return f"{reply.metadata!r} {reply!r} {dict(reply.content)}"


def test_no_text_of_the_app_s_exception_leaves(hostile: HostileAverage) -> None:
    hostile.kit.fails = {0}
    reply = hostile.ask(hostile.begin(hostile.config()))
    assert dict(reply.content[SECTION]) == {REFUSAL: "internal"}
    assert MARKER not in everything_in(reply)
    assert MARKER in hostile.log()
    assert (hostile.kit.folders[0] / "client.log").stat().st_mode & 0o077 == 0


BROKEN = {
    "a name too few": lambda model: {name: model[name] for name in model if name != "bias"},
    "a name too many": lambda model: {**model, MARKER: model["bias"]},
    "another shape": lambda model: {**model, "bias": model["bias"][:2]},
    "integers": lambda model: {**model, "bias": model["bias"].astype(np.int64)},
    "not a number": lambda model: {**model, "bias": model["bias"] * np.nan},
    "beyond float32": lambda model: {**model, "bias": model["bias"] + 1e300},
}


@pytest.mark.parametrize("name", BROKEN)
def test_arrays_that_are_no_update_of_the_model_stay_at_home(hostile: HostileAverage, name: str) -> None:
    hostile.kit.train = lambda model, node, config: BROKEN[name](model)
    reply = hostile.ask(hostile.begin(hostile.config()))
    assert dict(reply.content[SECTION]) == {REFUSAL: "internal"}
    assert MARKER not in everything_in(reply)
    assert "no update of the model" in hostile.log()
    hostile.kit.train = lambda model, node, config: model
    assert hostile.code(hostile.begin(hostile.config())) is None  # the next attempt trains again
    assert hostile.trained() == 2


def test_an_attempt_whose_training_failed_is_used_up(hostile: HostileAverage) -> None:
    hostile.kit.fails = {0}
    begin = encode_configs([hostile.config()])
    assert [hostile.begin_code(begin) for _ in range(2)] == ["internal", "stale"]
    assert hostile.trained() == 1


def test_a_folder_that_others_can_read_answers_nothing(hostile: HostileAverage) -> None:
    (hostile.kit.folders[0] / "policy.toml").chmod(0o644)
    assert hostile.code(hostile.begin(hostile.config())) == "internal"
    assert "others can read it" in hostile.log()
    assert hostile.trained() == 0


def test_a_node_without_a_folder_answers_nothing(hostile: HostileAverage) -> None:
    hostile.kit.folders[0].rename(hostile.kit.folders[0].with_name("gone"))
    assert hostile.code(hostile.begin(hostile.config())) == "internal"
    assert hostile.trained() == 0
