"""The federation as a Flower strategy: rounds of secure aggregation whose sum becomes an LLM adapter.

One round, from top to bottom (`SecureFederation._round`):

    begin       every organization stores the last round's LLM adapter, trains under its own ledger, advertises keys
    sum         share, accept, mask, consistency, unmask: the server learns the mean of the updates, nothing else
    U <- U + mean
    generate    Grad-Transformer: U -> LLM update -> PEFT adapter, hashed and signed
    checkpoint  one rename

The adapter goes out with the next round's begin, the last round's in an exchange of its own; every organization
verifies, stores and evaluates it at home.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from gradtf_fl.config import FederationPlan
from gradtf_fl.errors import ConfigError, RoundAborted, RoundRejected
from gradtf_fl.file_names import LLM_ADAPTER
from gradtf_fl.flower import (
    CONNECT,
    TTL_MARGIN,
    EventKind,
    OnEvent,
    RoundEvent,
    RoundLog,
    RoundRecord,
    SecureRound,
    combine_groups,
    gate,
    groups_needed,
    messages_for,
    patience,
    wait_for_nodes,
)
from gradtf_fl.round_messages import MESSAGE_TYPES, BeginRound, Refusal, TrainingPlan
from gradtf_fl.secagg import Roster, RoundConfig, Topology, certain_noisers, encode_configs, group_size, topology
from strategies import checkpoints
from strategies.checkpoints import RunState
from strategies.delivery import PendingDelivery, deliver, fill_begin
from strategies.provider import Provider, start_hash, update_bytes

RETURN_S = 20.0  # for a node that was started again between two rounds
logger = logging.getLogger("gradtf.server")


@dataclass(frozen=True)
class FederationResult:
    """A finished run.

    Attributes:
        rounds: records of all attempts, aborted ones too, those of earlier starts included.
        global_update: U, float32 [blocks, block_dim]. out: the folder of checkpoints.
    """

    rounds: list[RoundRecord]
    global_update: NDArray[np.float32]
    out: Path


class SecureFederation(Strategy):  # type: ignore[misc]
    """Flower strategy whose `start` does not call the hooks below: a protocol of several stages needs its own `run`.

    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> from gradtf_fl import FederationPlan, Identity, Roster, SecureFederation
    >>> from strategies import Provider
    >>> plan = FederationPlan(organizations=3, rounds=1, out=Path(mkdtemp()))
    >>> roster = Roster(tuple(Identity.generate().public for _ in range(3)))
    >>> SecureFederation(plan, Provider(plan), roster).quorum  # organizations without which no round can end
    3
    """

    def __init__(
        self, plan: FederationPlan, provider: Provider, roster: Roster, on_event: OnEvent | None = None
    ) -> None:
        if len(roster) != plan.organizations:
            raise ConfigError(f"the roster has {len(roster)} keys, the plan {plan.organizations} organizations")
        self.plan, self.provider, self.roster = plan, provider, roster
        self._on_event = on_event
        layout = provider.tiny.layout
        self._update: NDArray[np.float32] = np.zeros((layout.blocks, layout.block_dim), np.float32)
        self._first: NDArray[np.float32] | None = None  # U after the first round
        self._state = RunState("", {})
        self._pending: PendingDelivery | None = None
        self._gathered = False  # whether the organizations were waited for, as before the first round

    @property
    def shapes(self) -> list[Topology]:
        """Graph, threshold and quorum of each group."""
        if (t := self.plan.threshold) is not None:
            return [Topology(len(self.roster) - 1, t, t)]
        groups = self.plan.groups
        sizes = (group_size(len(self.roster), groups, group) for group in range(groups))
        return [topology(size, self.plan.colluders, self.plan.dropouts) for size in sizes]

    @property
    def quorum(self) -> int:
        """Organizations without which no round can end."""
        return sum(sorted(shape.quorum for shape in self.shapes)[: groups_needed(self.plan.groups)])

    def summary(self) -> None:
        """Log what is about to run."""
        logger.info("%s organizations, quorum %s: %s", len(self.roster), self.quorum, self.plan)

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
        """Flower's way to start a strategy: `run` with another number of rounds and another deadline than the plan's.

        Args:
            initial_arrays: an empty ``ArrayRecord()``, as every organization builds the same initial adapter from the
                round's spec.
            num_rounds: rounds in total, those that ``out`` holds included.
            timeout: seconds that the organizations have for a stage.
            train_config: None, as the plan says how to train.
            evaluate_config: None, as organizations evaluate at home.
            evaluate_fn: None, for the same reason.

        Returns:
            Flower's result; its only array is ``update``, U as float32 [blocks, block_dim].

        Raises:
            ConfigError: an argument is given that this strategy does not take; else as `run`.
        """
        given = {
            "initial_arrays": initial_arrays,
            "train_config": train_config,
            "evaluate_config": evaluate_config,
            "evaluate_fn": evaluate_fn,
        }
        if refused := [f"{name}: SecureFederation takes none, leave it empty" for name, v in given.items() if v]:
            raise ConfigError(refused)
        self.plan = self.plan.model_copy(update={"rounds": num_rounds, "deadline_s": timeout})
        return Result(arrays=ArrayRecord({"update": Array(self.run(grid).global_update)}))

    def run(self, grid: Grid) -> FederationResult:
        """Run the plan's rounds, those that ``out`` does not hold yet.

        Raises:
            RoundAborted: too few organizations at some stage; finished rounds stay in ``out``.
            ConfigError, CorruptFile: ``out`` holds another run, or is damaged.
        """
        self.summary()
        with checkpoints.locked(self.plan.out):
            done = self._resume()
            if done and self._state.delivered < done:  # killed between checkpoint and delivery
                folder = checkpoints.round_folder(self.plan.out, done) / LLM_ADAPTER
                adapter = self.provider.reload(folder, self._state.run_id, done, self._update)
                self._pending = PendingDelivery(done, adapter, update_bytes(self._update))
            for number in range(done + 1, self.plan.rounds + 1):
                self._round(grid, number)
            self._deliver(grid)
            return FederationResult(list(self._state.records), self._update, self.plan.out)

    def _resume(self) -> int:
        """Take up the state in ``out``; the number of finished rounds."""
        out = self.plan.out
        origin = {
            "tiny": self.provider.tiny.model_sha256,
            "llm": self.provider.llm.model_sha256,
            "transformer": self.provider.generator.sha256,
            "roster": self.roster.hash.hex(),
        }
        self._state = checkpoints.open_run(out, origin, self._run_name())
        last = checkpoints.last_checkpoint(out)
        if last is not None:
            if last.global_update.shape != self._update.shape:
                raise ConfigError(f"{out}: the global update there has another shape")
            self._update, self._first = last.global_update, checkpoints.checkpoint(out, 1).global_update
            if last.record not in self._state.records:  # killed between the rename and the next line
                self._state = self._state.recorded(last.record)
            logger.info("continuing after round %s", last.round)
        checkpoints.save_run(out, self._state)
        return 0 if last is None else last.round

    def _round(self, grid: Grid, number: int) -> None:
        self._tell("round", number)
        configs = self._next_attempt(number)
        config = configs[0]
        try:
            nodes = self._connected(grid, self.quorum)
        except RoundAborted as aborted:
            joined = aborted.counts["connected"]
            self._record(RoundRecord(number, config.attempt, "aborted", joined=joined, aborted_at=CONNECT))
            raise
        secure = SecureRound(grid, configs, self.roster, self.plan.rounds, self._on_event)
        try:
            sums = secure.sums(self._begin_messages(grid, nodes, configs))
            gate(sums, config, self.plan.max_norm)
        except RoundAborted as error:
            record = secure.log.record(config, "aborted")
            self._record(replace(record, aborted_at="gate") if isinstance(error, RoundRejected) else record)
            raise
        self._note_begin_deliveries(secure.log, len(nodes))
        started = time.monotonic()
        mean = combine_groups(sums, self.plan.combine).reshape(self._update.shape)
        update = (self._update.astype(np.float64) + mean).astype(np.float32)
        adapter = self.provider.generate(self._state.run_id, number, update, self._first)
        seconds = {**secure.log.seconds, "generate": time.monotonic() - started}
        record = replace(
            secure.log.record(config, "completed"),
            llm_adapter_sha256=adapter.sha256,
            refinement=adapter.refinement,
            seconds=seconds,
        )
        self._tell("generated", number, seconds=seconds["generate"])
        proof = {
            "run_id": self._state.run_id,
            "nonce": config.nonce.hex(),
            "commitment": ",".join(config.commitment.hex() for config in configs),
            "signature": adapter.signature.hex(),
        }
        with checkpoints.new_round(self.plan.out, number) as folder:
            self.provider.save(folder / LLM_ADAPTER, adapter)
            checkpoints.write_update(folder, update, mean)
            checkpoints.write_record(folder, record, proof)
        self._update, self._pending = update, PendingDelivery(number, adapter, update_bytes(update))
        self._first = update if self._first is None else self._first
        self._record(record)

    def _connected(self, grid: Grid, least: int) -> list[int]:
        """The nodes to ask. Who did not come to the first round is not waited for at length before every other one."""
        all_s = RETURN_S if self._gathered else None
        nodes = wait_for_nodes(grid, self.plan.organizations, least, self.plan.join_s, all_s)
        self._gathered = True
        return nodes

    def _next_attempt(self, number: int) -> list[RoundConfig]:
        """The round's next attempt, used up on disk before anyone hears of it; with a fresh nonce."""
        last_round, last_attempt = self._state.last
        attempt = last_attempt + 1 if last_round == number else 0
        self._state = replace(self._state, last=(number, attempt))
        checkpoints.save_run(self.plan.out, self._state)
        plan = self.plan
        training = self._training_plan()
        nonce, model_hash = self._fresh(f"nonce/{number}/{attempt}"), start_hash(self.provider.tiny, self._update)
        sizes = (group_size(len(self.roster), plan.groups, group) for group in range(plan.groups))
        noisers = [certain_noisers(*sized, plan.colluders) for sized in zip(sizes, self.shapes, strict=True)]
        return [
            RoundConfig(
                run_id=self._state.run_id,
                round=number,
                attempt=attempt,
                nonce=nonce,
                model_hash=model_hash,
                dim=self.provider.tiny.layout.size,
                bits=plan.bits,
                clip=plan.update_clip,
                weight_rule=plan.weight_rule,
                dp=training.canonical(),
                roster_hash=self.roster.hash,
                groups=plan.groups,
                group=group,
                degree=shape.degree,
                threshold=shape.threshold,
                quorum=shape.quorum,
                noise_multiplier=plan.noise_multiplier,
                noisers=noisers[group] if plan.noise_multiplier > 0 else 0,
                deadline_s=plan.deadline_s,
            )
            for group, shape in enumerate(self.shapes)
        ]

    def _run_name(self) -> str:
        """Of a new run: random, and in a deployment with the time, by which organizations tell an old run's adapter."""
        name = self._fresh("run")[:16].hex()
        return name if self.plan.organizations_dir is not None else f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}"

    def _training_plan(self) -> TrainingPlan:
        plan, tiny = self.plan, self.provider.tiny
        return TrainingPlan(
            epsilon=plan.epsilon,
            delta=plan.delta,
            rounds=plan.rounds,
            steps=plan.steps,
            batch=plan.batch,
            clip=plan.clip,
            rate=plan.rate,
            spec=tiny.spec.canonical(),
            initial_sha256=tiny.initial_sha256,
            llm_sha256=self.provider.llm.model_sha256,
        )

    def _fresh(self, purpose: str) -> bytes:
        """32 bytes of the operating system's entropy; in a simulation a function of the seed, for replays."""
        if self.plan.organizations_dir is None:
            return os.urandom(32)
        text = f"gradtf/simulation/v1|{self.plan.seed}|{self.roster.hash.hex()}|{purpose}"
        return hashlib.sha256(text.encode()).digest()

    def _begin_messages(self, grid: Grid, nodes: list[int], configs: list[RoundConfig]) -> list[Message]:
        config = configs[0]
        begin = BeginRound(
            configs=encode_configs(configs),
            update=update_bytes(self._update),
            **fill_begin(self._pending),
        )
        ttl = patience(grid, config.deadline_s, len(nodes)) + TTL_MARGIN
        outgoing = dict.fromkeys(nodes, begin.to_fields())
        return messages_for(outgoing, MESSAGE_TYPES["advertise"], f"{config.round}.{config.attempt}", ttl)

    def _note_begin_deliveries(self, log: RoundLog, asked: int) -> None:
        """The begin's adapter is delivered to everybody who answered, if only to refuse the round by its policy.

        The others get the next adapter; after an aborted round all of them get this one again.
        """
        if self._pending is not None:
            self._note_delivery(
                self._pending.round, log.answered["advertise"] + log.refused.get(Refusal.POLICY, 0), asked
            )

    def _deliver(self, grid: Grid) -> None:
        """Send out the last round's adapter, which no begin carries."""
        if self._pending is None:
            return
        self._connected(grid, least=1)
        delivered = deliver(grid, self._pending.message(self._state.run_id, self.provider.tiny), self.plan.deadline_s)
        self._note_delivery(self._pending.round, delivered.stored, delivered.asked)

    def _note_delivery(self, number: int, stored: int, asked: int) -> None:
        self._pending = None
        self._state = replace(self._state, delivered=number)
        checkpoints.save_run(self.plan.out, self._state)
        self._tell("delivered", number, joined=stored, expected=asked)

    def _record(self, record: RoundRecord) -> None:
        self._state = self._state.recorded(record)
        checkpoints.save_run(self.plan.out, self._state)
        self._tell("end", record.round, record=record)

    def _tell(self, kind: EventKind, number: int, **values: Any) -> None:
        if self._on_event is not None:
            self._on_event(RoundEvent(kind, number, self.plan.rounds, **values))

    # Flower's hooks, of which `start` has no use ------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The ``train.begin`` messages of a round's next attempt, which is used up."""
        nodes = sorted(grid.get_node_ids())
        return self._begin_messages(grid, nodes, self._next_attempt(server_round))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Raises: one exchange cannot aggregate securely."""
        raise NotImplementedError("secure aggregation takes six exchanges: use start()")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: organizations evaluate at home when the adapter arrives."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """No metrics: they stay at home."""
        return None
