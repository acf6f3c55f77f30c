"""A secure average is the inner strategy's own result, within the step of the quantisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Result,
    Strategy,
)
from numpy.typing import NDArray

from gradtf_fl.config import Combine
from gradtf_fl.errors import ConfigError, CorruptFile, RoundAborted, RoundRejected
from gradtf_fl.flower import RoundEvent, SecureAverage, read_records
from gradtf_fl.flower.arrays import decoded, difference, encoded
from gradtf_fl.flower.secure_average import _figures
from gradtf_fl.round_messages import STAGES, Stage
from gradtf_fl.secagg.graph import group_members
from tests.flower.average_kit import CLIP, Kit, first_model, initial, make_kit, trained

STEP = CLIP / ((2**23 - 1) // 3)  # of the quantisation of three members
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "FedProx": FedProx,
    "FedAvgM": lambda: FedAvgM(server_learning_rate=0.7, server_momentum=0.9),
    "FedAdam": lambda: FedAdam(eta=0.05, beta_1=0.9, beta_2=0.99, tau=0.1),
    "FedYogi": lambda: FedYogi(eta=0.05, beta_1=0.9, beta_2=0.99, tau=0.1),
}


def uniform(make: Callable[[], Strategy]) -> Callable[[], Strategy]:
    """The plain strategy, which weighs by a metric that is the same for all."""

    def plain() -> Strategy:
        strategy = make()
        strategy.weighted_by_key = "one"  # type: ignore[attr-defined]
        return strategy

    return plain


UNIFORM = {name: uniform(make) for name, make in STRATEGIES.items()}


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return make_kit(tmp_path)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_mean_is_the_strategy_s_own(kit: Kit, name: str) -> None:
    config = ConfigRecord({"rate": 0.05})
    plain = UNIFORM[name]().start(kit.grid(secure=False), initial(), num_rounds=3, train_config=config)
    secure = SecureAverage(STRATEGIES[name](), roster=kit.keys, clip=CLIP, deadline_s=60.0)
    result = secure.start(kit.grid(), initial(), num_rounds=3, train_config=config)
    assert list(result.arrays) == list(plain.arrays)
    for key in ("weight", "bias", "scale"):
        assert result.arrays[key].dtype == plain.arrays[key].dtype
        np.testing.assert_allclose(result.arrays[key].numpy(), plain.arrays[key].numpy(), atol=60 * STEP)
    steps = result.arrays["steps"].numpy()
    assert (steps.dtype, steps.tolist()) == (np.int64, [7])


def secure(kit: Kit, inner: Strategy | None = None, **settings: Any) -> SecureAverage:
    values: dict[str, Any] = {"roster": kit.keys, "clip": CLIP, "deadline_s": 60.0, "join_s": 1.0, "attempts": 1}
    return SecureAverage(inner or FedAvg(), **(values | settings))


def updates(kit: Kit, members: Iterable[int]) -> dict[int, NDArray[np.float64]]:
    """Each member's difference to the first model, all float arrays in one vector."""
    before = first_model()
    return {node: difference(before, trained(before, node, {"rate": 0.1})).astype(np.float64) for node in members}


def moved_by(result: Result) -> NDArray[np.float64]:
    """How far the result lies from the first model."""
    return difference(first_model(), decoded(result.arrays)).astype(np.float64)


def plain_mean(kit: Kit, members: int) -> NDArray[np.float64]:
    """Mean of the first members' differences."""
    return np.asarray(np.mean(list(updates(kit, range(members)).values()), axis=0))


CONFIG = {"rate": 0.1}


def test_examples_weigh_up_to_the_largest_number(tmp_path: Path) -> None:
    """Members have 10, 20 and 30 examples; 25 count as the full weight: .4, .8 and 1."""
    kit = make_kit(tmp_path, weight_rules=("uniform", "examples"))
    strategy = secure(kit, weights="examples", max_examples=25)
    result = strategy.start(kit.grid(), initial(), 1, train_config=ConfigRecord(CONFIG))
    own = updates(kit, range(3))
    expected = (0.4 * own[0] + 0.8 * own[1] + own[2]) / 2.2
    np.testing.assert_allclose(moved_by(result), expected, atol=4 * STEP)


def test_plain_weights_are_those_of_fedavg_below_the_largest_number(tmp_path: Path) -> None:
    kit = make_kit(tmp_path, weight_rules=("uniform", "examples"))
    plain = FedAvg().start(kit.grid(secure=False), initial(), 1, train_config=ConfigRecord(CONFIG))
    result = secure(kit, weights="examples", max_examples=30).start(
        kit.grid(), initial(), 1, train_config=ConfigRecord(CONFIG)
    )
    np.testing.assert_allclose(moved_by(result), moved_by(plain), atol=4 * STEP)


def test_without_examples_there_is_no_weight(tmp_path: Path) -> None:
    kit = make_kit(tmp_path, weight_rules=("examples",), weighted_by="rows")
    with pytest.raises(RoundAborted):
        secure(kit, FedAvg(weighted_by_key="rows"), weights="examples", max_examples=25).start(kit.grid(), initial(), 1)
    assert "no positive metric 'rows'" in kit.log(0)


def test_an_update_beyond_the_clip_is_scaled_down(kit: Kit) -> None:
    clip = 0.05
    result = secure(kit, clip=clip).start(kit.grid(), initial(), 1, train_config=ConfigRecord(CONFIG))
    clipped = [own * min(1.0, clip / np.linalg.norm(own)) for own in updates(kit, range(3)).values()]
    np.testing.assert_allclose(moved_by(result), np.mean(clipped, axis=0), atol=2 * clip / ((2**23 - 1) // 3) + 1e-7)


@pytest.mark.parametrize("combine", ["mean", "median", "trimmed-mean"])
def test_groups_are_summed_apart_and_combined(tmp_path: Path, combine: Combine) -> None:
    kit = make_kit(tmp_path, 15, groups=3)
    strategy = secure(kit, groups=3, combine=combine)
    result = strategy.start(kit.grid(), initial(), 1, train_config=ConfigRecord(CONFIG))
    own = updates(kit, range(15))
    roster = strategy.sums.roster
    index = {roster.index(bytes.fromhex(key)): own[node] for node, key in enumerate(kit.keys)}
    means = [np.mean([index[one] for one in group_members(roster, 3, group)], axis=0) for group in range(3)]
    expected = np.mean(means, axis=0) if combine == "mean" else np.median(means, axis=0)
    np.testing.assert_allclose(moved_by(result), expected, atol=20 * STEP)


@pytest.mark.parametrize("stage", STAGES)
def test_who_drops_out_is_in_the_sum_if_its_vector_came(tmp_path: Path, stage: Stage) -> None:
    kit = make_kit(tmp_path, 5)
    kit.silent = {(4, stage)}
    strategy = secure(kit)
    result = strategy.start(kit.grid(), initial(), 1, train_config=ConfigRecord(CONFIG))
    left = 5 if stage in ("consistency", "unmask") else 4
    np.testing.assert_allclose(moved_by(result), plain_mean(kit, left), atol=6 * STEP)
    (record,) = strategy.sums.state.records
    assert (record.state, record.masked, record.dropped) == ("completed", left, {stage: 1})


def without_policies(kit: Kit) -> None:
    for folder in kit.folders:
        (folder / "policy.toml").unlink()


def with_an_app_that_raises(kit: Kit) -> None:
    kit.fails = {0, 1}


def with_a_clip_beyond_a_policy(kit: Kit) -> None:
    kit.change(0, max_clip=1.0)
    kit.fails = {1}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            without_policies,
            "3 of 3 organizations failed at home, at what their own logs say; 0 joined and 3 are needed",
        ),
        (with_an_app_that_raises, "2 of 3 organizations failed at home"),
        (with_a_clip_beyond_a_policy, "1 of 3 organizations refuse it, for their policy, budget or rows; 1 failed at"),
    ],
)
def test_why_a_round_never_began(tmp_path: Path, spoil: Callable[[Kit], None], says: str) -> None:
    kit = make_kit(tmp_path)
    spoil(kit)
    with pytest.raises(RoundAborted, match=says):
        secure(kit, attempts=1).start(kit.grid(), initial(), 1)


def test_an_app_without_the_mod_is_named(kit: Kit) -> None:
    with pytest.raises(RoundAborted, match="3 of 3 organizations answered in clear, without secure aggregation"):
        secure(kit, attempts=1).start(kit.grid(secure=False), initial(), 1)


@pytest.mark.parametrize("stage", STAGES)
def test_too_few_end_the_round_without_a_sum(tmp_path: Path, stage: Stage) -> None:
    kit = make_kit(tmp_path, 5)
    kit.silent = {(3, stage), (4, stage)}
    strategy = secure(kit)
    with pytest.raises(RoundAborted) as aborted:
        strategy.start(kit.grid(), initial(), 1)
    assert aborted.value.stage == stage
    assert [(record.state, record.aborted_at) for record in strategy.sums.state.records] == [("aborted", stage)]


def test_the_next_attempt_takes_what_was_never_masked(tmp_path: Path) -> None:
    """Two are silent at the first attempt at share, and answer again at the second."""
    kit = make_kit(tmp_path, 5)
    kit.silent = {(3, "share"), (4, "share")}

    def come_back(event: RoundEvent) -> None:
        if event.kind == "end":
            kit.silent = set()

    strategy = secure(kit, attempts=2, on_event=come_back)
    result = strategy.start(kit.grid(), initial(), 1, train_config=ConfigRecord(CONFIG))
    assert kit.calls == dict.fromkeys(range(5), 1)
    assert [record.state for record in strategy.sums.state.records] == ["aborted", "completed"]
    np.testing.assert_allclose(moved_by(result), plain_mean(kit, 5), atol=6 * STEP)


def test_what_was_masked_is_trained_again(tmp_path: Path) -> None:
    """A vector is masked once: two keys for one would be a two-time pad."""
    kit = make_kit(tmp_path, 5)
    kit.silent = {(3, "mask"), (4, "mask")}

    def come_back(event: RoundEvent) -> None:
        if event.kind == "end":
            kit.silent = set()

    secure(kit, attempts=2, on_event=come_back).start(kit.grid(), initial(), 1)
    assert kit.calls == {0: 2, 1: 2, 2: 2, 3: 1, 4: 1}


def test_a_sum_over_one_fewer_from_the_same_model_is_not_signed(tmp_path: Path) -> None:
    """The server opens a sum, says that it rejects it, and wants another without one member."""
    kit = make_kit(tmp_path, 5)
    state = tmp_path / "state"
    with pytest.raises(RoundRejected):
        secure(kit, max_norm=1e-3, state=state).start(kit.grid(), initial(), 1)
    kit.silent = {(4, "advertise")}
    with pytest.raises(RoundAborted) as aborted:
        secure(kit, state=state).start(kit.grid(), initial(), 1)
    assert aborted.value.stage == "consistency"
    assert "together with earlier sums from one model this sum would be about fewer than 3 organizations" in kit.log(0)


def test_another_start_goes_on_and_uses_no_attempt_twice(tmp_path: Path) -> None:
    kit, state = make_kit(tmp_path, 5), tmp_path / "state"
    whole = secure(kit).start(kit.grid(), initial(), 3)
    secure(kit, state=state).start(kit.grid(), initial(), 1)
    kit.silent = {(3, "mask"), (4, "mask")}
    with pytest.raises(RoundAborted):
        secure(kit, state=state).start(kit.grid(), initial(), 3)
    kit.silent = set()
    strategy = secure(kit, state=state)
    seen: list[int] = []
    result = strategy.start(
        kit.grid(), initial(), 3, evaluate_fn=lambda number, arrays: seen.append(number) or MetricRecord({"n": number})
    )
    records = strategy.sums.state.records
    assert [(one.round, one.attempt, one.state) for one in records] == [
        (1, 0, "completed"),
        (2, 0, "aborted"),
        (2, 1, "completed"),
        (3, 0, "completed"),
    ]
    assert (seen, sorted(result.evaluate_metrics_serverapp)) == ([2, 3], [2, 3])
    np.testing.assert_allclose(moved_by(result), moved_by(whole), atol=60 * STEP)
    assert read_records(state) == list(records)
    finished = secure(kit, state=state).start(kit.grid(), initial(), 3)
    np.testing.assert_array_equal(moved_by(finished), moved_by(result))


def test_a_state_of_another_roster_is_not_continued(tmp_path: Path) -> None:
    kit, other = make_kit(tmp_path / "a"), make_kit(tmp_path / "b")
    secure(kit, state=tmp_path / "state").start(kit.grid(), initial(), 1)
    with pytest.raises(ConfigError, match="another roster"):
        secure(other, state=tmp_path / "state").start(other.grid(), initial(), 2)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    kit, state = make_kit(tmp_path), tmp_path / "state"
    secure(kit, state=state).start(kit.grid(), initial(), 1)
    (state / "arrays.npz").write_bytes(b"junk")
    with pytest.raises(CorruptFile, match=r"arrays\.npz"):
        secure(kit, state=state).start(kit.grid(), initial(), 2)


def test_metrics_are_means_over_those_that_let_them_out(tmp_path: Path) -> None:
    kit = make_kit(tmp_path, 4, metrics=("loss", "accuracy", "num-examples"))
    kit.change(0, metrics=("accuracy",))
    seen: list[dict[str, Any]] = []

    class Watched(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            (reply,) = replies = list(replies)
            seen.append(dict(reply.content["metrics"]))
            return super().aggregate_train(server_round, replies)

    result = secure(kit, Watched(), metrics=("loss", "secret")).start(kit.grid(), initial(), 1)
    assert seen == [{"loss": 3.0, "num-examples": 4.0}]  # losses 2, 3, 4 of members 1 to 3; the weight is theirs, four
    assert dict(result.train_metrics_clientapp[1]) == {"loss": 3.0}
    assert dict(result.evaluate_metrics_clientapp[1]) == {"accuracy": pytest.approx(0.65)}  # alike: 0 hides its number


@pytest.mark.parametrize("lie", [[1.0, 2.0], [], float("nan"), float("inf")])
def test_one_organization_s_figures_end_no_run(tmp_path: Path, lie: float | list[float]) -> None:
    kit = make_kit(tmp_path, metrics=("accuracy", "one"))
    kit.accuracies[0] = lie
    result = secure(kit).start(kit.grid(), initial(), 1)
    assert dict(result.evaluate_metrics_clientapp[1]) == {"one": 1.0}


def test_figures_are_finite_numbers() -> None:
    texts = "2", "[1, 2]", "1e999", "NaN", "1" + 400 * "0", "[[1]]", "[]", '"x"', "null"
    assert [_figures(f'{{"loss": {text}}}', ["loss"]) for text in texts] == [{"loss": 2}, {"loss": [1, 2]}, *7 * [{}]]


def test_no_evaluation_where_nothing_may_leave(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    result = secure(kit).start(kit.grid(), initial(), 2)
    assert result.evaluate_metrics_clientapp == {}
    assert kit.log(0).count("evaluate refused") == 1  # not asked again


def test_the_server_evaluates_before_the_first_round_and_after_each(kit: Kit) -> None:
    norms = []

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        norms.append(float(np.linalg.norm(arrays["bias"].numpy())))
        return MetricRecord({"norm": norms[-1]})

    result = secure(kit).start(kit.grid(), initial(), 2, evaluate_fn=evaluate)
    assert {n: record["norm"] for n, record in result.evaluate_metrics_serverapp.items()} == dict(enumerate(norms))
    assert len(set(norms)) == 3


def test_noise_on_the_sum(tmp_path: Path) -> None:
    """The Skellam noise has the deviation that was asked for: multiplier * clip over three members' mean."""
    kit = make_kit(tmp_path, 3, min_noise=0.5)
    strategy = secure(kit, noise_multiplier=0.5, bits=32, max_norm=1e6)
    result = strategy.start(kit.grid(), initial(), 1, train_config=ConfigRecord(CONFIG))
    error = moved_by(result) - plain_mean(kit, 3)
    assert 0.3 < error.std() / (0.5 * CLIP / 3) < 3  # 16 coordinates; members count on fewer that add noise
    with pytest.raises(RoundAborted):
        secure(kit).start(kit.grid(), initial(), 1)
    assert "noise multiplier 0.0 is below 0.5" in kit.log(0)


REFUSED = {
    FedMedian: "every single update",
    FedTrimmedAvg: "every single update",
    Krum: "every single update",
    MultiKrum: "every single update",
    Bulyan: "every single update",
    QFedAvg: "by its loss",
    FedXgbBagging: "trees",
    FedXgbCyclic: "from node to node",
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_strategies_that_a_mean_is_not_enough_for(kit: Kit, kind: type[Strategy]) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__} .*{REFUSED[kind]}"):
        secure(kit, kind(client_learning_rate=0.1) if kind is QFedAvg else kind())


@pytest.mark.parametrize(
    "wrapper", [DifferentialPrivacyServerSideFixedClipping, DifferentialPrivacyClientSideFixedClipping]
)
def test_flowers_own_noise_is_for_single_replies(kit: Kit, wrapper: Any) -> None:
    with pytest.raises(ConfigError, match="use clip= and noise_multiplier="):
        secure(kit, wrapper(FedAvg(), noise_multiplier=1.0, clipping_norm=1.0, num_sampled_clients=3))


def test_all_problems_at_once(kit: Kit) -> None:
    with pytest.raises(ConfigError) as error:
        secure(kit, FedAvg(fraction_train=0.5, min_train_nodes=9), weights="examples", bits=17, colluders=0.7, groups=2)
    text = str(error.value)
    for problem in ("sample=", "waits for min_train_nodes=9", "max_examples", "bits", "colluders"):
        assert problem in text
    with pytest.raises(ConfigError, match="max_examples is for"):
        secure(kit, max_examples=3)
    with pytest.raises(ConfigError, match="public keys are hex texts"):
        secure(kit, roster=["xyz"])
    with pytest.raises(ConfigError, match="allow_two"):
        secure(kit, roster=kit.keys[:2])
    with pytest.raises(ConfigError, match="threshold must be in"):
        secure(kit, threshold=2)


def test_a_roster_is_a_file_too(kit: Kit, tmp_path: Path) -> None:
    path = tmp_path / "roster.txt"
    path.write_text("".join(f"{key}\n" for key in kit.keys))
    assert secure(kit, roster=path).sums.roster == secure(kit).sums.roster
    path.write_text("junk\n")
    with pytest.raises(ConfigError, match=r"roster\.txt: not one hex"):
        secure(kit, roster=path)


class Uneven(FedAvg):
    """Sends each node a model of its own."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
        for number, message in enumerate(super().configure_train(server_round, arrays, config, grid)):
            record = RecordDict({"arrays": arrays, "config": ConfigRecord({"node": number})})
            yield Message(record, message.metadata.dst_node_id, "train")


class Partial(FedAvg):
    """Leaves a node out."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
        return list(super().configure_train(server_round, arrays, config, grid))[1:]


@pytest.mark.parametrize(("inner", "says"), [(Uneven, "different content"), (Partial, "sample=")])
def test_what_a_strategy_asks_is_the_same_for_all(kit: Kit, inner: type[Strategy], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        secure(kit, inner()).start(kit.grid(), initial(), 1)
    assert kit.calls == {}


def test_a_model_without_float_arrays_has_nothing_to_sum(kit: Kit) -> None:
    with pytest.raises(ConfigError, match="no float arrays"):
        secure(kit).start(kit.grid(), encoded({"steps": np.array([1])}), 1)


def test_too_few_nodes_end_the_run(kit: Kit) -> None:
    strategy = secure(kit, join_s=0.01)
    kit.folders = kit.folders[:1]
    with pytest.raises(RoundAborted) as aborted:
        strategy.start(kit.grid(), initial(), 1)
    assert aborted.value.stage == "connect"


def test_a_member_that_is_killed_after_every_answer_is_in_the_sum(tmp_path: Path) -> None:
    """Each message of member 4 is answered by a process of its own, which is killed when it has answered."""
    kit = make_kit(tmp_path, 5)
    kit.killed = {4: "after"}
    strategy = secure(kit)
    result = strategy.start(kit.grid(), initial(), 1, train_config=ConfigRecord(CONFIG))
    assert strategy.sums.state.records[-1].unmasked == 5
    np.testing.assert_allclose(moved_by(result), plain_mean(kit, 5), atol=6 * STEP)


def test_a_member_that_is_killed_while_it_trains_trains_again(tmp_path: Path) -> None:
    """Another is silent, so that the attempt fails; the killed one may claim the next, which trains."""
    kit = make_kit(tmp_path, 5)
    kit.killed, kit.silent = {4: "while"}, {(3, "advertise")}

    def come_back(event: RoundEvent) -> None:
        if event.kind == "end":
            kit.killed, kit.silent = {}, set()

    strategy = secure(kit, attempts=2, on_event=come_back)
    result = strategy.start(kit.grid(), initial(), 1, train_config=ConfigRecord(CONFIG))
    assert [(one.joined, one.unmasked) for one in strategy.sums.state.records] == [(3, 0), (5, 5)]
    np.testing.assert_allclose(moved_by(result), plain_mean(kit, 5), atol=6 * STEP)


def test_a_strategy_that_waits_for_more_nodes_than_are_there_ends_the_run(tmp_path: Path) -> None:
    """Flower's own sampling would wait without an end."""
    kit = make_kit(tmp_path, 5)
    strategy = secure(kit, FedAvg(min_available_nodes=5), join_s=0.01)
    kit.folders = kit.folders[:4]
    with pytest.raises(RoundAborted, match="5 are needed") as aborted:
        strategy.start(kit.grid(), initial(), 1)
    assert aborted.value.stage == "connect"


def test_an_evaluation_that_waits_for_more_nodes_than_are_there_is_skipped(tmp_path: Path) -> None:
    kit = make_kit(tmp_path, 5, metrics=("accuracy",))
    strategy = secure(kit, FedAvg(min_evaluate_nodes=5), join_s=0.01)
    kit.folders = kit.folders[:4]
    result = strategy.start(kit.grid(), initial(), 1)
    assert result.evaluate_metrics_clientapp == {}
    assert kit.calls == dict.fromkeys(range(4), 1)


def test_metrics_of_who_is_not_in_the_sum_do_not_count(tmp_path: Path) -> None:
    kit = make_kit(tmp_path, 5, metrics=("loss",))
    kit.silent = {(4, "share")}
    result = secure(kit, metrics=("loss",)).start(kit.grid(), initial(), 1)
    assert dict(result.train_metrics_clientapp[1]) == {"loss": 2.5}  # 1, 2, 3 and 4; not 5


def test_a_rejected_round_is_not_tried_again(kit: Kit) -> None:
    """Its sum was opened: another attempt would open another one from the same model."""
    strategy = secure(kit, max_norm=1e-3, attempts=3)
    with pytest.raises(RoundRejected):
        strategy.start(kit.grid(), initial(), 1)
    assert [record.aborted_at for record in strategy.sums.state.records] == ["gate"]


def test_a_server_that_is_killed_in_a_round_does_not_use_its_attempt_again(kit: Kit, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(event: RoundEvent) -> None:
        if event.stage == "mask":
            raise Killed

    with pytest.raises(Killed):
        secure(kit, state=tmp_path / "state", on_event=kill).start(kit.grid(), initial(), 1)
    strategy = secure(kit, state=tmp_path / "state")
    strategy.start(kit.grid(), initial(), 1)
    assert [(record.attempt, record.state) for record in strategy.sums.state.records] == [(1, "completed")]
    assert kit.calls == dict.fromkeys(range(3), 1)  # what was never masked is taken
