"""`SecureAverage`: any Flower strategy that averages, over updates that nobody sees one by one.

One round, from top to bottom (`SecureAverage._round`):

    configure   the inner strategy says what is sent, the same to everybody
    sum         advertise (every client's app trains), share, accept, mask, consistency, unmask: the server learns the
                mean of the clipped differences to what was sent, nothing else
    aggregate   the inner strategy gets one reply: what was sent plus that mean
    evaluate    the inner strategy aggregates what the organizations' policies let out in clear
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Result, Strategy

from gradtf_fl.config import Combine, SumSettings, WeightRule, validate
from gradtf_fl.errors import ConfigError, RoundAborted, RoundRejected
from gradtf_fl.flower.app_task import MAX_EXAMPLES, AppTask, Sent, run_config_digest
from gradtf_fl.flower.arrays import dimension, encoded, floats, moved, unsummed_kept
from gradtf_fl.flower.average_files import load_arrays, save_arrays
from gradtf_fl.flower.exchanges import CONNECT
from gradtf_fl.flower.records import OnEvent
from gradtf_fl.flower.run_state import RunState, locked_run, open_run, save_run
from gradtf_fl.flower.secure_sums import Opened, RoundStart, SecureSums
from gradtf_fl.round_messages import BEACON, CONFIGS, SECTION, STAGE, STAGES, MalformedFields
from gradtf_fl.secagg import Roster, RoundConfig, encode_configs

WEIGHTED_BY = "num-examples"  # of a strategy that has no weighted_by_key
REPLY_METRICS = "metrics"  # record of the metrics in the reply that the inner strategy gets
log = logging.getLogger("flwr").info  # where a run's log comes from

_EACH = "needs every single update, which nobody has here"
_OWN_NOISE = "adds noise for a number of replies; use clip= and noise_multiplier= of SecureAverage instead"
REFUSED: dict[type[Strategy], str] = {
    flower.FedMedian: f"{_EACH}; groups= with combine='median' is the median of group means",
    flower.FedTrimmedAvg: f"{_EACH}; groups= with combine='trimmed-mean' trims group means",
    flower.Krum: _EACH,
    flower.MultiKrum: _EACH,
    flower.Bulyan: _EACH,
    flower.QFedAvg: "weighs every single update by its loss, which nobody has here",
    flower.FedXgbBagging: "collects trees, which have no mean",
    flower.FedXgbCyclic: "passes one model from node to node, so that there is nothing to sum",
    flower.DifferentialPrivacyClientSideAdaptiveClipping: _OWN_NOISE,
    flower.DifferentialPrivacyClientSideFixedClipping: _OWN_NOISE,
    flower.DifferentialPrivacyServerSideAdaptiveClipping: _OWN_NOISE,
    flower.DifferentialPrivacyServerSideFixedClipping: _OWN_NOISE,
}
"""Strategies that a mean is not enough for, and why."""


@dataclass(frozen=True)
class _Round:
    """What the inner strategy sends in a round.

    Attributes:
        nodes: whom it asks first.
        message_type: Flower's type of all messages.
        content: the one content of all messages.
        sent: the same, as both sides hash it.
    """

    nodes: list[int]
    message_type: str
    content: RecordDict
    sent: Sent


class SecureAverage(Strategy):  # type: ignore[misc]
    """Secure aggregation around a strategy that averages: FedAvg, FedProx, FedAvgM, FedAdam, FedYogi, or your own.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> from gradtf_fl import Identity
    >>> from gradtf_fl.flower import SecureAverage
    >>> keys = [Identity.generate().public.hex() for _ in range(5)]
    >>> strategy = SecureAverage(FedAvg(), roster=keys, clip=10.0)
    >>> strategy.quorum  # organizations without which no round can end
    4

    The organizations' side is `secagg_mod` in their ``ClientApp``. Float arrays are summed; others stay as the server
    has them. Metrics of training travel in clear, and only those that are asked for here and named by an organization's
    own policy; their mean counts all organizations alike.

    Args:
        strategy: configures each round and aggregates its one mean. It asks every node (``fraction_train=1.0``).
        roster: the organizations' public keys: a `Roster`, keys in hex, or a file with one hex key a line.
        clip: L2 norm bound of an organization's update (all its arrays together) before it is summed.
        bits: bits per encoded value: 16, 20, 24 or 32.
        weights: "uniform": organizations count alike; "examples": by the metric that the strategy weighs by, as far as
            ``max_examples``, where their policies allow that.
        max_examples: number of examples that counts as the full weight; an organization with more counts no more.
        metrics: names of metrics that training may report.
        run_config: the run's config, ``context.run_config``, where the app has one: organizations refuse a round whose
            configuration does not bind what their app reads there.
        colluders: share of the organizations that may collude with the server; rounded up, and at least one.
        dropouts: share of the organizations that may drop out (from 100 organizations on).
        threshold: organizations that must stay to the end (default: by the roster's size).
        groups: the roster is summed in this many groups, whose means are combined.
        combine: how: "mean", "median" or "trimmed-mean".
        sample: organizations of each round, drawn by a beacon that no party can steer (default: all of them).
        fraction: the same as a share of the roster, rounded up.
        noise_multiplier: standard deviation of the Skellam noise on a sum, in units of ``clip``; 0 for none.
        deadline_s: seconds that the organizations have for a stage, training included (default: ``timeout`` of
            `start`).
        join_s: seconds to wait for the organizations' nodes.
        attempts: most attempts at one round.
        max_norm: L2 norm of a mean above which the whole round is rejected (default: ``clip``).
        allow_two: accept two organizations, of which each learns the other's update.
        state: folder where the run is kept: another start continues after its last finished round, and never uses an
            attempt's number twice. What the inner strategy itself remembers (momentum, say) begins afresh.
        on_event: is told what happens.

    Raises:
        ConfigError: all that is wrong with these, and a strategy that needs every single update.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        roster: Roster | Sequence[str] | str | os.PathLike[str],
        clip: float,
        bits: int = 24,
        weights: WeightRule = "uniform",
        max_examples: int | None = None,
        metrics: Iterable[str] = (),
        run_config: Mapping[str, Any] | None = None,
        colluders: float = 0.1,
        dropouts: float = 0.1,
        threshold: int | None = None,
        groups: int = 1,
        combine: Combine = "trimmed-mean",
        sample: int | None = None,
        fraction: float | None = None,
        noise_multiplier: float = 0.0,
        deadline_s: float | None = None,
        join_s: float = 600.0,
        attempts: int = 4,
        max_norm: float | None = None,
        allow_two: bool = False,
        state: str | os.PathLike[str] | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        members = _roster_of(roster)
        values: dict[str, Any] = {
            "organizations": len(members),
            "clip": float(clip),
            "bits": bits,
            "weight_rule": weights,
            "groups": groups,
            "combine": combine,
            "sample": _sample_of(sample, fraction, len(members)),
            "threshold": threshold,
            "colluders": colluders,
            "dropouts": dropouts,
            "noise_multiplier": float(noise_multiplier),
            "max_norm": max_norm,
            "join_s": float(join_s),
            "attempts": attempts,
            "allow_two": allow_two,
            **({} if deadline_s is None else {"deadline_s": float(deadline_s)}),
        }
        problems = [
            *_strategy_problems(strategy, len(members)),
            *_sample_problems(sample, fraction),
            *_example_problems(weights, max_examples),
        ]

        def named(key: str) -> str:
            return f"SecureAverage: {_ARGUMENTS.get(key, key)}" if key else "SecureAverage"

        try:
            settings = validate(SumSettings, values, named)
        except ConfigError as error:
            raise ConfigError([*problems, *error.problems]) from None
        if problems:
            raise ConfigError(problems)
        self.strategy, self.metrics = strategy, tuple(metrics)
        self._max_examples = max_examples or 0
        self._run_config = run_config_digest(run_config or {})
        self._own_deadline = deadline_s is not None
        self._state = None if state is None else Path(state)
        self._evaluates = True
        self.sums = SecureSums(settings, members, on_event=on_event)

    @property
    def quorum(self) -> int:
        """Organizations without which no round can end."""
        return self.sums.quorum

    @property
    def weighted_by(self) -> str:
        """The metric that the inner strategy weighs by."""
        return str(getattr(self.strategy, "weighted_by_key", WEIGHTED_BY))

    def summary(self) -> None:
        """Log what is about to run."""
        log("secure average of %s organizations, quorum %s: %s", len(self.sums.roster), self.quorum, self.sums.settings)
        self.strategy.summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds, as Flower's own ``Strategy.start``.

        Args:
            initial_arrays: the model, unless ``state`` holds a later one.
            num_rounds: rounds in total, those that ``state`` holds included.
            timeout: seconds that the organizations have for a stage, where ``deadline_s`` is not given, and for an
                evaluation.
            train_config: for the inner strategy.
            evaluate_config: for the inner strategy.
            evaluate_fn: evaluates the model at the server, before the first round and after each.

        Returns:
            Flower's result: the arrays, and the metrics of the rounds of this start.

        Raises:
            RoundAborted: too few organizations, at the last attempt; finished rounds stay in ``state``.
            ConfigError: the inner strategy asks for what cannot be summed; ``state`` holds another run.
        """
        if not self._own_deadline:
            self.sums.settings = self.sums.settings.model_copy(update={"deadline_s": float(timeout)})
        self.sums.rounds, self._evaluates = num_rounds, True
        self.summary()
        result = Result()
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()

        def evaluate_here(number: int, arrays: ArrayRecord) -> None:
            if evaluate_fn is not None and (metrics := evaluate_fn(number, arrays)) is not None:
                result.evaluate_metrics_serverapp[number] = metrics

        with nullcontext() if self._state is None else locked_run(self._state):
            done, arrays = self._resume(initial_arrays)
            result.arrays = arrays
            if done == 0:
                evaluate_here(0, arrays)
            for number in range(done + 1, num_rounds + 1):
                arrays, metrics = self._round(grid, number, arrays, train_config)
                result.arrays = arrays
                if metrics is not None:
                    result.train_metrics_clientapp[number] = metrics
                evaluated = self._evaluate(grid, number, arrays, evaluate_config, timeout)
                if evaluated is not None:
                    result.evaluate_metrics_clientapp[number] = evaluated
                evaluate_here(number, arrays)
        return result

    def _resume(self, initial: ArrayRecord) -> tuple[int, ArrayRecord]:
        """Take up the run in ``state``: the number of its finished rounds, and the arrays after them."""
        name = self.sums.fresh("run")[:16].hex()
        if self._state is None:
            self.sums.state = RunState(name, {})
            return 0, initial
        folder = self._state
        self.sums.save, self.sums.folder = lambda state: save_run(folder, state), folder
        self.sums.keep(open_run(folder, {"roster": self.sums.roster.hash.hex()}, name))
        kept = load_arrays(folder)
        if kept is None:
            return 0, initial
        log("continuing after round %s", kept.round)
        return kept.round, kept.arrays

    def _round(
        self, grid: Grid, number: int, arrays: ArrayRecord, config: ConfigRecord
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """The arrays and metrics that the inner strategy makes of the round's mean."""
        asked = self._configured(grid, number, arrays, config)
        opened = self._opened(grid, number, asked)
        reply = self._reply(asked, opened)
        new_arrays, metrics = self.strategy.aggregate_train(number, [reply])
        kept = arrays if new_arrays is None else unsummed_kept(asked.sent.model, new_arrays)
        if self._state is not None:
            save_arrays(self._state, number, kept)
        self.sums.record(opened.record())
        return kept, metrics

    def _configured(self, grid: Grid, number: int, arrays: ArrayRecord, config: ConfigRecord) -> _Round:
        """What the inner strategy sends; once for all attempts at a round.

        Raises:
            RoundAborted: too few nodes are there.
            ConfigError: it sends different content to different nodes, or not to all of them, or nothing to sum.
        """
        nodes = self.sums.gathered(grid, number, least=_least_nodes(self.strategy, "train"))
        messages = list(self.strategy.configure_train(number, arrays, config, grid))
        name, inner = f"round {number}", type(self.strategy).__name__
        asked = [message.metadata.dst_node_id for message in messages]
        missing = set(nodes).intersection(grid.get_node_ids()) - set(asked)
        if missing or not messages:
            raise ConfigError(
                f"{name}: {inner} asks {len(set(asked))} of {len(nodes)} nodes; it must ask all of them "
                "(fraction_train=1.0): whom a sum is over is decided by SecureAverage, see sample="
            )
        try:
            found = {
                (message.metadata.message_type, sent.arrays, sent.model_hash, sent.records): (message, sent)
                for message, sent in _sent(messages)
            }
        except MalformedFields as error:
            raise ConfigError(f"{name}: {inner}: {error}") from error
        if len(found) > 1:
            raise ConfigError(
                f"{name}: {inner} sends different content to different nodes: models that differ would tell updates "
                "apart, so all get the same"
            )
        if len(set(asked)) < len(asked):
            raise ConfigError(f"{name}: {inner} asks a node twice")
        (message, sent), *_ = found.values()
        if dimension(sent.model) == 0:
            raise ConfigError(f"{name}: the model has no float arrays: there is nothing to sum")
        if number == 1 and (others := sorted(sent.model.keys() - set(floats(sent.model)))):
            log("not float, so not summed: they stay as the server has them: %s", ", ".join(others))
        return _Round(sorted(asked), message.metadata.message_type, message.content, sent)

    def _opened(self, grid: Grid, number: int, asked: _Round) -> Opened:
        """The round's sum, after as many attempts as the settings allow."""
        task = AppTask(
            message_type=asked.message_type,
            arrays=asked.sent.arrays,
            records=asked.sent.records,
            weighted_by=self.weighted_by,
            max_examples=self._max_examples if self.sums.settings.weight_rule == "examples" else 0,
            metrics=self.metrics,
            run_config=self._run_config,
        )
        start = RoundStart(asked.sent.model_hash, dimension(asked.sent.model), task.canonical())
        self.sums.message_type = asked.message_type

        def begin(nodes: list[int], configs: list[RoundConfig]) -> list[Message]:
            config, fields = configs[0], {STAGE: STAGES[0], CONFIGS: encode_configs(configs)}
            ttl, group = self.sums.ttl(grid, len(nodes)), f"{config.round}.{config.attempt}"
            sent = asked.content if config.round else {}  # round 0 draws a beacon and trains nothing

            def opening(node: int) -> RecordDict:
                ours = ConfigRecord({**fields, BEACON: self.sums.proof_for(node)})
                return RecordDict({**sent, SECTION: ours})

            return [Message(opening(node), node, asked.message_type, ttl=ttl, group_id=group) for node in nodes]

        nodes: list[int] | None = asked.nodes
        for left in reversed(range(self.sums.settings.attempts)):
            try:
                return self.sums.open(grid, number, start, begin, nodes)
            except RoundRejected:
                raise
            except RoundAborted as aborted:
                if left == 0 or aborted.stage == CONNECT:
                    raise
                log("%s; %s more attempts", aborted, left)
                nodes = None  # whoever is connected then
        raise AssertionError("a round has at least one attempt")

    def _reply(self, asked: _Round, opened: Opened) -> Message:
        """The mean as if it were the only reply of the round."""
        total = float(sum(one.total_weight for one in opened.sums)) * (self._max_examples or 1)
        figures = {**self._train_metrics(opened), self.weighted_by: total}
        content = RecordDict(
            {
                asked.sent.arrays: encoded(moved(asked.sent.model, opened.mean)),
                REPLY_METRICS: MetricRecord(figures),
            }
        )
        return Message(content, next(iter(opened.log.organizations)), asked.message_type)

    def _train_metrics(self, opened: Opened) -> dict[str, Any]:
        """Mean of each metric over the organizations in the sum that gave it, all alike."""
        included = {key for keys in opened.log.included for key in keys}
        told = [
            _figures(text, self.metrics)
            for node, text in opened.log.metrics.items()
            if opened.log.organizations.get(node) in included
        ]
        means: dict[str, Any] = {}
        for name in self.metrics:
            values = [figures[name] for figures in told if name in figures]
            if values and _are_alike(values):
                means[name] = np.mean(values, axis=0).tolist()
        return means

    def _evaluate(
        self, grid: Grid, number: int, arrays: ArrayRecord, config: ConfigRecord, timeout: float
    ) -> MetricRecord | None:
        """What the inner strategy makes of the metrics that organizations let out; None where none does."""
        if not self._evaluates:
            return None
        if len(nodes := list(grid.get_node_ids())) < (least := _least_nodes(self.strategy, "evaluate")):
            log(
                "evaluation at the organizations is skipped: %s nodes are connected, %s are asked for",
                len(nodes),
                least,
            )
            return None
        messages = list(self.strategy.configure_evaluate(number, arrays, config, grid))
        if not messages:
            return None
        replies = [reply for reply in grid.send_and_receive(messages, timeout=timeout) if reply.has_content()]
        told = [(reply, figures) for reply in replies if (figures := _only_metrics(reply))]
        if not told:
            log("no organization lets a metric of an evaluation out: evaluation at the organizations is skipped")
            self._evaluates = not replies
            return None
        names = set.intersection(*(set(figures) for _, figures in told))
        shared = {name for name in names if _are_alike([figures[name] for _, figures in told])}
        for reply, figures in told:
            kept = {name: value for name, value in figures.items() if name in shared}
            reply.content = RecordDict({REPLY_METRICS: MetricRecord({self.weighted_by: 1.0, **kept})})
        metrics: MetricRecord | None = self.strategy.aggregate_evaluate(number, [reply for reply, _ in told])
        return metrics

    # Flower's hooks, of which `start` has no use ------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The inner strategy's messages."""
        messages: Iterable[Message] = self.strategy.configure_train(server_round, arrays, config, grid)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Raises: one exchange cannot aggregate securely."""
        raise NotImplementedError("secure aggregation takes six exchanges: use start()")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The inner strategy's messages."""
        messages: Iterable[Message] = self.strategy.configure_evaluate(server_round, arrays, config, grid)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The inner strategy's metrics."""
        metrics: MetricRecord | None = self.strategy.aggregate_evaluate(server_round, replies)
        return metrics


_ARGUMENTS = {"organizations": "roster", "weight_rule": "weights"}
"""Fields of the settings that are arguments of another name."""


def _roster_of(given: Roster | Sequence[str] | str | os.PathLike[str]) -> Roster:
    if isinstance(given, Roster):
        return given
    if isinstance(given, str | os.PathLike):
        return Roster.read(given)
    try:
        return Roster(tuple(bytes.fromhex(key) for key in given))
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("SecureAverage: roster: public keys are hex texts") from error


def _strategy_problems(strategy: Strategy, members: int) -> list[str]:
    name = type(strategy).__name__
    refused = next((REFUSED[kind] for kind in type(strategy).__mro__ if kind in REFUSED), None)
    problems = [] if refused is None else [f"SecureAverage: {name} {refused}"]
    fraction = getattr(strategy, "fraction_train", 1.0)
    if fraction < 1.0:
        problems.append(
            f"SecureAverage: {name} has fraction_train={fraction:g}: a part of the nodes is chosen by SecureAverage, "
            "see sample="
        )
    for key in ("min_available_nodes", "min_train_nodes", "min_evaluate_nodes"):
        if (least := getattr(strategy, key, 0)) > members:
            problems.append(f"SecureAverage: {name} waits for {key}={least} nodes, the roster has {members}")
    return problems


def _sample_of(sample: int | None, fraction: float | None, members: int) -> int:
    if fraction is None or sample is not None:
        return sample or 0
    size = math.ceil(round(fraction * members, 9)) if 0 < fraction <= 1 else 0
    return 0 if size == members else size


def _least_nodes(strategy: Strategy, what: str) -> int:
    """Nodes that a strategy of Flower's waits for without an end."""
    return max(getattr(strategy, "min_available_nodes", 0), getattr(strategy, f"min_{what}_nodes", 0))


def _sample_problems(sample: int | None, fraction: float | None) -> list[str]:
    if sample is not None and fraction is not None:
        return ["SecureAverage: sample and fraction say the same: give one of them"]
    if fraction is not None and not 0 < fraction <= 1:
        return ["SecureAverage: fraction is a share of the organizations, above 0 and at most 1"]
    return []


def _example_problems(weights: str, max_examples: int | None) -> list[str]:
    if weights != "examples":
        return [] if max_examples is None else ["SecureAverage: max_examples is for weights='examples'"]
    if type(max_examples) is not int or not 1 <= max_examples <= MAX_EXAMPLES:
        return [
            "SecureAverage: weights='examples' needs max_examples, the number of examples that counts as the full "
            f"weight (1 to {MAX_EXAMPLES})"
        ]
    return []


def _sent(messages: Sequence[Message]) -> Iterable[tuple[Message, Sent]]:
    """Each message with what it brings; contents that are one object are hashed once."""
    seen: dict[int, Sent] = {}
    for message in messages:
        if id(message.content) not in seen:
            seen[id(message.content)] = Sent.of(message.content)
        yield message, seen[id(message.content)]


def _figures(text: object, asked: Sequence[str]) -> Mapping[str, Any]:
    """The metrics that came with an advert: finite numbers, or lists of them; whatever else came is left out."""
    try:
        values = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: values[name] for name in asked if name in values and _is_figure(values[name])}


def _is_figure(value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    most = sys.float_info.max  # a whole number may be beyond any float
    return bool(values) and all(isinstance(one, int | float) and abs(one) <= most for one in values)


def _are_alike(values: Sequence[Any]) -> bool:
    """Whether these figures have a mean: one organization's lists of another length would end the run."""
    return len({np.shape(value) for value in values}) == 1


def _only_metrics(reply: Message) -> dict[str, Any]:
    records = list(reply.content.metric_records.values())
    return {name: value for name, value in records[0].items() if _is_figure(value)} if len(records) == 1 else {}
