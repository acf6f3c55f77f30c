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

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from gradtf_fl.config import FederationPlan, SumSettings
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import LLM_ADAPTER
from gradtf_fl.flower import (
    OnEvent,
    Opened,
    RoundRecord,
    RoundStart,
    SecureSums,
    locked_run,
    messages_for,
    open_run,
    save_run,
)
from gradtf_fl.round_messages import MESSAGE_TYPES, BeginRound, Refusal, TrainingPlan
from gradtf_fl.secagg import Roster, RoundConfig, encode_configs
from strategies import checkpoints
from strategies.delivery import PendingDelivery, deliver, fill_begin
from strategies.provider import Provider, start_hash, update_bytes
from strategies.round_card import round_card

logger = logging.getLogger("gradtf.server")


@dataclass(frozen=True)
class FederationResult:
    """A finished run.

    Attributes:
        rounds: records of all attempts, aborted ones too, those of earlier starts included.
        global_update: U, float32 [blocks, block_dim].
        out: the folder of checkpoints.
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
        self.plan, self.provider, self.roster = plan, provider, roster
        self.sums = SecureSums(_settings(plan), roster, plan.rounds, on_event=on_event, fresh=self._fresh)
        layout = provider.tiny.layout
        self._update: NDArray[np.float32] = np.zeros((layout.blocks, layout.block_dim), np.float32)
        self._first: NDArray[np.float32] | None = None  # U after the first round
        self._pending: PendingDelivery | None = None

    @property
    def quorum(self) -> int:
        """Organizations without which no round can end."""
        return self.sums.quorum

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
        self.sums.settings, self.sums.rounds = _settings(self.plan), num_rounds
        return Result(arrays=ArrayRecord({"update": Array(self.run(grid).global_update)}))

    def run(self, grid: Grid) -> FederationResult:
        """Run the plan's rounds, those that ``out`` does not hold yet.

        Raises:
            RoundAborted: too few organizations at some stage; finished rounds stay in ``out``.
            ConfigError, CorruptFile: ``out`` holds another run, or is damaged.
        """
        self.summary()
        with locked_run(self.plan.out):
            done = self._resume()
            if done and self.sums.state.delivered < done:  # killed between checkpoint and delivery
                folder = checkpoints.round_folder(self.plan.out, done) / LLM_ADAPTER
                adapter = self.provider.reload(folder, self.sums.state.run_id, done, self._update)
                self._pending = PendingDelivery(done, adapter, update_bytes(self._update))
            for number in range(done + 1, self.plan.rounds + 1):
                self._round(grid, number)
            self._deliver(grid)
            return FederationResult(list(self.sums.state.records), self._update, self.plan.out)

    def _resume(self) -> int:
        """Take up the state in ``out``; the number of finished rounds."""
        out = self.plan.out
        origin = {
            "tiny": self.provider.tiny.model_sha256,
            "llm": self.provider.llm.model_sha256,
            "transformer": self.provider.generator.sha256,
            "roster": self.roster.hash.hex(),
        }
        self.sums.save, self.sums.folder = lambda state: save_run(out, state), out
        state = open_run(out, origin, self._run_name())
        last = checkpoints.last_checkpoint(out)
        if last is not None:
            if last.global_update.shape != self._update.shape:
                raise ConfigError(f"{out}: the global update there has another shape")
            self._update, self._first = last.global_update, checkpoints.checkpoint(out, 1).global_update
            if last.record not in state.records:  # killed between the rename and the next line
                state = state.recorded(last.record)
            logger.info("continuing after round %s", last.round)
        self.sums.keep(state)
        return 0 if last is None else last.round

    def _round(self, grid: Grid, number: int) -> None:
        opened = self.sums.open(grid, number, self._start(), lambda *asked: self._begin_messages(grid, *asked))
        self._note_begin_deliveries(opened)
        started = time.monotonic()
        mean = opened.mean.reshape(self._update.shape)
        update = (self._update.astype(np.float64) + mean).astype(np.float32)
        adapter = self.provider.generate(self.sums.state.run_id, number, update, self._first)
        seconds = {**opened.log.seconds, "generate": time.monotonic() - started}
        record = replace(
            opened.record(),
            llm_adapter_sha256=adapter.sha256,
            refinement=adapter.refinement,
            seconds=seconds,
        )
        self.sums.tell("generated", number, seconds=seconds["generate"])
        proof = {
            "run_id": self.sums.state.run_id,
            "nonce": opened.configs[0].nonce.hex(),
            "commitment": ",".join(config.commitment.hex() for config in opened.configs),
            "signature": adapter.signature.hex(),
        }
        with checkpoints.new_round(self.plan.out, number) as folder:
            card = round_card(self.plan, self.provider, self._training_plan(), proof["run_id"], record, adapter)
            self.provider.save(folder / LLM_ADAPTER, adapter, card)
            checkpoints.write_update(folder, update, mean)
            checkpoints.write_record(folder, record, proof)
        self._update, self._pending = update, PendingDelivery(number, adapter, update_bytes(update))
        self._first = update if self._first is None else self._first
        self.sums.record(record)

    def _start(self) -> RoundStart:
        """What the next attempt starts from, and what it asks."""
        tiny = self.provider.tiny
        return RoundStart(start_hash(tiny, self._update), tiny.layout.size, self._training_plan().canonical())

    def _run_name(self) -> str:
        """Of a new run: random; in a deployment with the time, so that organizations recognize an old run's adapter."""
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
        ttl = self.sums.ttl(grid, len(nodes))
        outgoing = {node: replace(begin, beacon=self.sums.proof_for(node)).to_fields() for node in nodes}
        return messages_for(outgoing, MESSAGE_TYPES["advertise"], f"{config.round}.{config.attempt}", ttl)

    def _note_begin_deliveries(self, opened: Opened) -> None:
        """The begin's adapter is delivered to everybody who answered, if only to refuse the round by its policy.

        The others get the next adapter; after an aborted round all of them get this one again.
        """
        if self._pending is not None:
            log = opened.log
            stored = log.answered["advertise"] + log.refused.get(Refusal.POLICY, 0)
            self._note_delivery(self._pending.round, stored, opened.asked)

    def _deliver(self, grid: Grid) -> None:
        """Send out the last round's adapter, which no begin carries."""
        if self._pending is None:
            return
        self.sums.connected(grid, least=1)
        delivered = deliver(
            grid, self._pending.message(self.sums.state.run_id, self.provider.tiny), self.plan.deadline_s
        )
        self._note_delivery(self._pending.round, delivered.stored, delivered.asked)

    def _note_delivery(self, number: int, stored: int, asked: int) -> None:
        self._pending = None
        self.sums.keep(replace(self.sums.state, delivered=number))
        self.sums.tell("delivered", number, joined=stored, expected=asked)

    # Flower's hooks, of which `start` has no use ------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The ``train.begin`` messages of a round's next attempt, which is used up."""
        nodes = sorted(grid.get_node_ids())
        return self._begin_messages(grid, nodes, self.sums.next_attempt(server_round, self._start()))

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


def _settings(plan: FederationPlan) -> SumSettings:
    """How the plan sums. Its rounds have one attempt a start: who runs the server starts it again."""
    shared = set(SumSettings.model_fields) & set(FederationPlan.model_fields) - {"clip"}
    return SumSettings(clip=plan.update_clip, attempts=1, **{name: getattr(plan, name) for name in shared})
