"""The LLM ceiling of a simulation, tuned in a second process while the federation runs, or in a worker after it.

It is half of a simulation's arithmetic and needs nothing from the federation but the number of finished rounds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from gradtf_fl.config import NO_TRANSFORMER, SimulationConfig
from gradtf_fl.deployment import end_with_parent

if TYPE_CHECKING:
    from gradtf_fl.simulation.figures import Figures
    from strategies import WorkerPool

CEILING = "the ceiling"
WORTH_A_PROCESS = 20_000
"""Examples from which on a second process (5 s of imports) pays."""


def ceiling_figures(config: SimulationConfig, rounds: int) -> Figures:
    """The LLM, without a Grad-Transformer the TinyLM, tuned without DP on all organizations' rows together.

    It sees as many examples as the federation in ``rounds`` rounds. Everything follows from the configuration.
    """
    from gradtf_fl.adapters import AdaptedModel, Place
    from gradtf_fl.simulation.figures import OrganizationTests, ceiling
    from gradtf_fl.tasks import federation_data
    from strategies import load_transformer, tiny_spec

    plain = config.transformer == NO_TRANSFORMER
    spec = tiny_spec(config) if plain else load_transformer(config.transformer).target.spec
    data = federation_data(config.task, config, config.organizations, config.batch, config.seed, config.person)
    return ceiling(
        OrganizationTests(AdaptedModel.load(config.adapted_model, spec, Place.of(config.compute)), config, data), rounds
    )


@dataclass
class CeilingWorker:
    """`ceiling_figures` for all planned rounds, in the background where that pays; a context manager."""

    config: SimulationConfig
    _process: BaseProcess | None = None
    _answer: Connection | None = None
    _pool: WorkerPool | None = None

    def __enter__(self) -> CeilingWorker:
        config, cores = self.config, len(os.sched_getaffinity(0))
        examples = config.rounds * config.steps * config.batch * config.organizations
        cut_short = config.lifetime_budget < config.epsilon  # the number of rounds is not known beforehand
        small = config.task.is_house_rules and examples < WORTH_A_PROCESS
        if cores < 2 or small or cut_short or config.workers > 1:
            return self
        import torch

        threads = min(cores // 2, torch.get_num_threads())
        torch.set_num_threads(max(1, min(cores - threads, torch.get_num_threads())))
        context = multiprocessing.get_context("spawn")
        self._answer, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(theirs, config, threads), daemon=True)
        self._process.start()
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def begin(self, pool: WorkerPool | None, rounds: int) -> None:
        """Have a worker of ``pool`` compute the figures after ``rounds`` finished rounds, alongside other work."""
        if pool is not None and len(pool) > 1:
            self._pool = pool
            pool.give(pool.idle()[-1], CEILING, ceiling_figures, self.config, rounds)

    def figures(self, rounds: int) -> Figures:
        """The figures after ``rounds`` finished rounds; computed here when the background has no answer to that."""
        if self._pool is not None:
            told: Figures = self._pool.answer(CEILING)
            return told
        if self._answer is not None and rounds == self.config.rounds:
            try:
                found: Figures | None = self._answer.recv()
            except EOFError:
                found = None
            if found is not None:
                return found
        self.__exit__()
        return ceiling_figures(self.config, rounds)


def _work(answer: Connection, config: SimulationConfig, threads: int) -> None:
    """In the second process; None stands for any failure, the parent repeats the work and shows the error."""
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted and ends this process
    end_with_parent()  # a SIGTERM, by timeout or a batch system, gives it no time to
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(threads)
    try:
        figures: Figures | None = ceiling_figures(config, config.rounds)
    except Exception:
        figures = None
    answer.send(figures)
