"""Processes that share a simulation's work: spawned, each with its share of the cores, gone with their parent.

A worker takes one piece of work at a time. Which worker gets a piece is the caller's choice, so that the same
organization is always served by the same process.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from gradtf_fl.deployment import end_with_parent
from gradtf_fl.errors import GradtfError

JOIN_SECONDS = 10.0


class WorkerDied(GradtfError):
    """A worker process ended before its work was done, killed for its memory, say. What is on disk stays there."""


@dataclass
class _Worker:
    """A process, the pipe to it, and the job that it is at (None: idle)."""

    process: BaseProcess
    pipe: Connection
    job: str | None = None


class WorkerPool:
    """``count`` spawned processes of ``threads`` torch threads each; a context manager.

    Raises:
        ValueError: fewer than one worker or thread.
    """

    def __init__(self, count: int, threads: int) -> None:
        if count < 1 or threads < 1:
            raise ValueError(f"expected at least one worker with one thread, got {count} with {threads}")
        self.threads = threads
        context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._kept: dict[str, Any] = {}  # answers that nobody has asked for yet
        try:
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours))
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids, in the order of the workers."""
        return tuple(worker.process.pid or 0 for worker in self._workers)

    def idle(self) -> list[int]:
        """Numbers of the workers without work, lowest first."""
        return [number for number, worker in enumerate(self._workers) if worker.job is None]

    def give(self, number: int, job: str, work: Callable[..., Any], *arguments: Any) -> None:
        """Have the idle worker ``number`` call ``work(*arguments)``.

        Args:
            job: what its answer is called, and an error.
            work: a function of a module, which a new process can import.
            arguments: can be pickled.

        Raises:
            WorkerDied: that process has ended. ValueError: it is at work.
        """
        worker = self._workers[number]
        if worker.job is not None:
            raise ValueError(f"worker {number} is at {worker.job}")
        worker.job = job
        try:
            worker.pipe.send_bytes(pickle.dumps((work, arguments)))
        except OSError:
            raise self._died(number) from None

    def answers(self, seconds: float) -> list[tuple[str, Any]]:
        """(job, what its work returned) of all that are done; waits up to ``seconds`` for the first one.

        Raises:
            WorkerDied: a worker that was at work has ended. Else what the work raised.
        """
        at_work = {worker.pipe: number for number, worker in enumerate(self._workers) if worker.job is not None}
        found = []
        for pipe in wait(list(at_work), seconds) if at_work else ():
            number = at_work[pipe]  # type: ignore[index]
            worker = self._workers[number]
            try:
                fine, answer = pickle.loads(worker.pipe.recv_bytes())
            except (EOFError, OSError):
                raise self._died(number) from None
            job, worker.job = worker.job, None
            if not fine:
                raise answer
            found.append((str(job), answer))
        return found

    def each(self, work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """``work(*arguments[i])`` for every i, in their order, each in an idle worker.

        Raises:
            WorkerDied: as `answers`. Else what the work raised.
        """
        names = [f"{work.__name__} {place + 1} of {len(arguments)}" for place in range(len(arguments))]
        waiting = deque(zip(names, arguments, strict=True))
        while any(name not in self._kept for name in names):
            for number in self.idle():
                if waiting:
                    name, values = waiting.popleft()
                    self.give(number, name, work, *values)
            self._kept |= dict(self.answers(1.0))
        return [self._kept.pop(name) for name in names]

    def answer(self, job: str) -> Any:
        """What the work of ``job``, which was given, returns; waits for it. Raises as `each`."""
        while job not in self._kept:
            if all(worker.job != job for worker in self._workers):
                raise ValueError(f"nobody is at {job}")
            self._kept |= dict(self.answers(1.0))
        return self._kept.pop(job)

    def everywhere(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Have every worker call ``work(*arguments)``; all must be idle. Raises as `each`."""
        for number in range(len(self)):
            self.give(number, str(number), work, *arguments)
        while len(self.idle()) < len(self):
            self.answers(1.0)

    def close(self) -> None:
        """End all workers at once, at work or not."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join(JOIN_SECONDS)
            worker.pipe.close()
        self._workers = []

    def _died(self, number: int) -> WorkerDied:
        worker = self._workers[number]
        worker.process.join(JOIN_SECONDS)
        code = worker.process.exitcode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with status {code}"
        hint = "; memory may have run out, try fewer workers" if code == -signal.SIGKILL else ""
        return WorkerDied(f"worker {number + 1} of {len(self)} ended {how} at {worker.job}{hint}")


def _serve(pipe: Connection, threads: int) -> None:
    """In the worker: take work until the parent is gone."""
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    end_with_parent()
    warnings.simplefilter("ignore")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    while True:
        work, arguments = pickle.loads(pipe.recv_bytes())
        try:
            answer = pickle.dumps((True, work(*arguments)))
        except Exception as error:
            answer = _told(error)
        pipe.send_bytes(answer)


def _told(error: Exception) -> bytes:
    """An exception for the parent, as itself where it can travel."""
    try:
        pickle.loads(pickled := pickle.dumps((False, error)))
    except Exception:
        return pickle.dumps((False, GradtfError(f"{type(error).__name__}: {error}")))
    return pickled


def share_of_threads(workers: int) -> int:
    """Torch threads of each of ``workers`` processes: what this process would use, shared out, at least one."""
    import torch

    return max(1, torch.get_num_threads() // workers)
