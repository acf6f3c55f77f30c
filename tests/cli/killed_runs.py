"""Kills ``gradtf simulate`` at chosen moments, continues it each time, and at last lets it end.

    python -m tests.cli.killed_runs OUT SIGNAL MOMENT,MOMENT,... OPTIONS

Each run is a process of its own, forked from this one so that the libraries are imported once. It sends itself the
signal when it comes to its moment. Prints one JSON list: the exit code and standard error of each run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import clients.local_training  # noqa: F401  # imported here, so that no child has to
import gradtf_fl.simulation.figures
import gradtf_fl.simulation.run
import gradtf_fl.simulation.setup
import strategies.server_app  # noqa: F401
from clients import charging, stages
from clients.node_store import NodeStore
from gradtf_fl.cli.main import cli
from gradtf_fl.flower import MemberStore, SecureSums
from gradtf_fl.privacy import Ledger
from gradtf_fl.reports.simulation_report import SimulationReport
from gradtf_fl.training import dp_checkpoint
from strategies import checkpoints, federation
from strategies.provider import Provider

Moment = tuple[object, str, int, bool]
MOMENTS: dict[str, Moment] = {
    # name: (owner, function, which call of it in a process, whether after it). In this order each one comes to pass.
    "set-up": (gradtf_fl.simulation.setup, "write_rows", 3, True),
    "reserved": (NodeStore, "training_begins", 2, False),
    "training": (dp_checkpoint.DpRun, "after_step", 14, True),
    "update kept": (charging.OpenCharge, "settle", 1, False),
    "settling": (Ledger, "settle", 1, False),
    "asked again": (NodeStore, "training_ends", 1, True),
    "settled": (MemberStore, "open", 3, False),
    "masked": (stages, "answer", 8, True),
    "unmasked": (stages, "answer", 15, True),
    "generating": (Provider, "generate", 1, False),
    "checkpoint": (checkpoints, "write_record", 1, True),
    "after the rename": (SecureSums, "record", 1, False),
    "between rounds": (SecureSums, "next_attempt", 1, True),
    "second sum": (federation.SecureFederation, "_note_begin_deliveries", 1, True),
    "delivery": (federation, "deliver", 1, False),
    "figures": (gradtf_fl.simulation.run, "llm_figures", 1, False),
    "report": (SimulationReport, "write", 1, False),
}


def main() -> None:
    """Run it."""
    out, name, moments, *options = sys.argv[1:]
    runs = []
    arguments = ["simulate", "--out", out, *options]
    for moment in [*moments.split(","), None]:
        runs.append(run(arguments, None if moment is None else (MOMENTS[moment], getattr(signal, name))))
        arguments = ["simulate", "--resume", out]
    print(json.dumps(runs))


def run(arguments: list[str], end: tuple[Moment, signal.Signals] | None) -> tuple[int, str]:
    """(exit code as a shell tells it, standard error)."""
    with tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            os.dup2(errors.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if end is not None:
                end_at(*end)
            cli.main(arguments)
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return (code if code >= 0 else 128 - code), errors.read()


def end_at(moment: Moment, number: signal.Signals) -> None:
    """Have this process send itself ``number`` at that moment."""
    owner, name, which, after = moment
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == which and not after:
            os.kill(os.getpid(), number)
        answer = real(*given, **named)
        if calls == which and after:
            os.kill(os.getpid(), number)
        return answer

    setattr(owner, name, counted)


if __name__ == "__main__":
    main()
