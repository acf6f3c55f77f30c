"""The federation as a Flower strategy: rounds of secure aggregation whose sum becomes an LLM adapter.

One round, from top to bottom (`SecureFederation._round`):

    begin      every organization trains under its own ledger and advertises keys
    sum        share, mask, consistency, unmask: the server learns the mean of the updates, nothing else
    U <- U + mean
    generate   Grad-Transformer: U -> LLM update -> PEFT adapter, hashed and signed
    checkpoint one rename
    deliver    every organization verifies, stores and evaluates at home
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace
from logging import INFO
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from gradtf_fl.config import FederationPlan
from gradtf_fl.errors import BudgetExhausted, ConfigError, RoundAborted
from gradtf_fl.round_messages import (
    DELIVER_TYPE,
    MESSAGE_TYPES,
    AdapterDelivery,
    BeginRound,
    TrainingPlan,
)
from gradtf_fl.secagg import Roster, RoundConfig, SecureSum, default_threshold

from strategies import checkpoints
from strategies.checkpoints import RunState
from strategies.exchange import TTL_MARGIN, Answer, exchange, messages_for, patience
from strategies.provider import GeneratedAdapter, Provider, update_bytes
from strategies.records import EventKind, FederationResult, OnEvent, RoundEvent, RoundRecord
from strategies.secure_round import RoundLog, SecureRound

NODE_POLL_SECONDS = 0.5


class SecureFederation(Strategy):
    """Flower strategy with its own `start`, as a protocol of several stages needs one."""

    def __init__(
        self, plan: FederationPlan, provider: Provider, roster: Roster, on_event: OnEvent | None = None
    ) -> None:
        if len(roster) != plan.organizations:
            raise ConfigError(
                f"the roster has {len(roster)} keys, the plan {plan.organizations} organizations"
            )
        self.plan, self.provider, self.roster = plan, provider, roster
        self._on_event = on_event
        self._begun: RoundConfig | None = None
        self._update: NDArray[np.float32] = np.zeros(
            (provider.tiny.layout.blocks, provider.tiny.layout.block_dim), np.float32
        )
        self._state = RunState("", {})

    @property
    def threshold(self) -> int:
        """Organizations that must reach every stage."""
        return self.plan.threshold or default_threshold(self.plan.organizations)

    def summary(self) -> None:
        """Log what is about to run."""
        plan = self.plan
        log(
            INFO,
            "%s organizations, threshold %s, %s rounds of %s steps, epsilon %s at delta %s",
            plan.organizations,
            self.threshold,
            plan.rounds,
            plan.steps,
            plan.epsilon,
            plan.delta,
        )

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Any = None,
    ) -> FederationResult:
        """Run the rounds that ``out`` does not hold yet.

        Args:
            num_rounds: total of rounds (default: the plan's). timeout: deadline of a stage, seconds (the plan's).
            initial_arrays, train_config, evaluate_config, evaluate_fn: of Flower's own strategies; not used
                here, as every organization builds the same initial adapter from the round's spec.

        Raises:
            RoundAborted: too few organizations at some stage; finished rounds stay in ``out``.
            BudgetExhausted: too few organizations have budget left; finished rounds stay in ``out``.
        """
        self.plan = self.plan.model_copy(
            update={"rounds": num_rounds or self.plan.rounds, "deadline_s": timeout or self.plan.deadline_s}
        )
        self.summary()
        out = self.plan.out
        with checkpoints.locked(out):
            self._resume()
            while (done := self._finished_rounds()) < self.plan.rounds:
                self._round(grid, done + 1)
            return FederationResult(list(self._state.records), self._update, out)

    def _resume(self) -> None:
        out = self.plan.out
        self._state = checkpoints.open_run(out, self._origin())
        checkpoints.save_run(out, self._state)
        if (last := checkpoints.last_checkpoint(out)) is not None:
            if last.global_update.shape != self._update.shape:
                raise ConfigError(f"{out}: the global update there has another shape")
            self._update = last.global_update
            log(INFO, "continuing after round %s", last.round)

    def _origin(self) -> dict[str, str]:
        return {
            "tiny": self.provider.tiny.base_hash,
            "llm": self.provider.llm_hash,
            "transformer": self.provider.generator.sha256,
            "roster": self.roster.hash.hex(),
        }

    def _finished_rounds(self) -> int:
        last = checkpoints.last_checkpoint(self.plan.out)
        return 0 if last is None else last.round

    # ----------------------------------------------------------------------------------------------- one round

    def _round(self, grid: Grid, number: int) -> None:
        self._tell("round", number)
        nodes = self._wait_for_nodes(grid)
        if number > 1 and self._state.delivered < number - 1:
            self._redeliver(grid, number - 1)
        begin = list(self._begin(number, nodes, grid))
        assert self._begun is not None
        secure = SecureRound(grid, self._begun, self.roster, self.plan.rounds, self._on_event)
        try:
            total = secure.sum(begin)
        except (RoundAborted, BudgetExhausted):
            self._record(self._round_record(secure.log, "aborted"), number)
            raise
        started = time.monotonic()
        update = (self._update.astype(np.float64) + self._mean(total)).astype(np.float32)
        adapter = self.provider.generate(self._state.run_id, number, update)
        generated = time.monotonic() - started
        record = replace(
            self._round_record(secure.log, "completed"),
            llm_adapter_sha256=adapter.sha256,
            seconds={**secure.log.seconds, "generate": generated},
        )
        self._tell("generated", number, seconds=generated)
        self._checkpoint(number, record, update, total, adapter)
        self._update = update
        self._deliver(grid, number, adapter)
        self._record(record, number)

    def _begin(self, number: int, nodes: list[int], grid: Grid) -> Iterable[Message]:
        """Use up the next attempt on disk, then the ``train.begin`` messages under a fresh nonce."""
        last_round, last_attempt = self._state.last
        attempt = last_attempt + 1 if last_round == number else 0
        self._state = replace(self._state, last=(number, attempt))
        checkpoints.save_run(self.plan.out, self._state)
        plan = self.plan
        training = TrainingPlan(
            plan.epsilon, plan.delta, plan.rounds, plan.steps, plan.batch, plan.clip, plan.rate
        )
        self._begun = RoundConfig(
            run_id=self._state.run_id,
            round=number,
            attempt=attempt,
            nonce=os.urandom(32),
            model_hash=self.provider.tiny.model_hash(self._update),
            dim=self.provider.tiny.layout.size,
            bits=plan.bits,
            clip=plan.update_clip,
            weight_rule=plan.weight_rule,
            dp=training.canonical(),
            roster_hash=self.roster.hash,
            degree=len(self.roster) - 1,
            threshold=self.threshold,
            deadline_s=plan.deadline_s,
        )
        begin = BeginRound(
            self._begun.encode(),
            self.provider.tiny.spec_json,
            self.provider.tiny.initial_hash,
            update_bytes(self._update),
        )
        ttl = patience(grid, plan.deadline_s, len(nodes)) + TTL_MARGIN
        outgoing = dict.fromkeys(nodes, begin.to_fields())
        return messages_for(outgoing, MESSAGE_TYPES["advertise"], f"{number}.{attempt}", ttl)

    def _wait_for_nodes(self, grid: Grid) -> list[int]:
        """Nodes of this round: all, or those that are there after ``join_s`` when they reach the threshold."""
        end = time.monotonic() + self.plan.join_s
        while True:
            nodes = sorted(grid.get_node_ids())
            if len(nodes) >= self.plan.organizations:
                return nodes
            if time.monotonic() >= end:
                break
            time.sleep(min(NODE_POLL_SECONDS, max(0.0, end - time.monotonic())))
        if len(nodes) < self.threshold:
            raise RoundAborted("advertise", {"connected": len(nodes)}, "too few organizations are connected")
        return nodes

    def _mean(self, total: SecureSum) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = np.asarray(total.mean, np.float64).reshape(self._update.shape)
        return mean

    def _checkpoint(
        self,
        number: int,
        record: RoundRecord,
        update: NDArray[np.float32],
        total: SecureSum,
        adapter: GeneratedAdapter,
    ) -> None:
        assert self._begun is not None
        proof = {
            "run_id": self._state.run_id,
            "nonce": self._begun.nonce.hex(),
            "commitment": self._begun.commitment.hex(),
            "signature": adapter.signature.hex(),
        }
        with checkpoints.new_round(self.plan.out, number) as folder:
            self.provider.save(folder / "llm_adapter", adapter)
            checkpoints.write_update(folder, update, self._mean(total))
            checkpoints.write_record(folder, record, proof)

    def _redeliver(self, grid: Grid, number: int) -> None:
        """A server that died between checkpoint and delivery owes its organizations an adapter."""
        folder = checkpoints.round_folder(self.plan.out, number) / "llm_adapter"
        adapter = self.provider.reload(folder, self._state.run_id, number, self._update)
        self._deliver(grid, number, adapter)

    def _deliver(self, grid: Grid, number: int, adapter: GeneratedAdapter) -> None:
        delivery = AdapterDelivery(
            run_id=self._state.run_id,
            round=number,
            adapter=adapter.packed,
            signature=adapter.signature,
            spec=self.provider.tiny.spec_json,
            initial_hash=self.provider.tiny.initial_hash,
            update=update_bytes(self._update),
        )
        nodes = sorted(grid.get_node_ids())
        wait = patience(grid, self.plan.deadline_s, len(nodes))
        messages = messages_for(
            dict.fromkeys(nodes, delivery.to_fields()), DELIVER_TYPE, f"{number}", wait + TTL_MARGIN
        )
        stored = set[int]()

        def on_answer(answer: Answer) -> None:
            if answer.fields is not None and answer.fields.get("status") == "stored":
                stored.add(answer.node)

        exchange(grid, messages, wait, on_answer)
        self._state = replace(self._state, delivered=number)
        checkpoints.save_run(self.plan.out, self._state)
        self._tell("delivered", number, joined=len(stored), expected=len(nodes))

    # ------------------------------------------------------------------------------------------------- records

    def _round_record(self, rounds_log: RoundLog, state: str) -> RoundRecord:
        assert self._begun is not None
        return RoundRecord(
            round=self._begun.round,
            attempt=self._begun.attempt,
            state="completed" if state == "completed" else "aborted",
            joined=rounds_log.answered.get("advertise", 0),
            masked=rounds_log.answered.get("mask", 0),
            unmasked=rounds_log.answered.get("unmask", 0),
            dropped=dict(rounds_log.dropped),
            refused=dict(rounds_log.refused),
            bytes_up_per_client=rounds_log.traffic.mean_up(),
            bytes_down_per_client=rounds_log.traffic.mean_down(),
            included=rounds_log.included if state == "completed" else (),
            seconds=dict(rounds_log.seconds),
        )

    def _record(self, record: RoundRecord, number: int) -> None:
        self._state = self._state.recorded(record)
        checkpoints.save_run(self.plan.out, self._state)
        self._tell("end", number, record=record)

    def _tell(self, kind: EventKind, number: int, **values: Any) -> None:
        if self._on_event is not None:
            self._on_event(RoundEvent(kind, number, self.plan.rounds, **values))

    # ------------------------------------------------------- Flower's hooks, for code that drives rounds itself

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The ``train.begin`` messages of a round (an attempt is used up)."""
        return self._begin(server_round, sorted(grid.get_node_ids()), grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Never called by `start`: one exchange cannot aggregate securely."""
        raise NotImplementedError("secure aggregation takes five exchanges: use start()")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: organizations evaluate at home when the adapter arrives."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """No metrics: they stay at home."""
        return None
