"""Ledgers of strangers: what they cost an audit is bounded, and one that costs too much stops no other's report.

Rows are signed by whoever made them, so any (sigma, q, steps) may be in one. What no training can be is not computed;
what is far from a usual training's figures is computed in a process of its own, with limits of time and memory. A
ledger that does not get by is named.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from gradtf_fl.deployment import end_with_parent
from gradtf_fl.privacy import DpEvent, LedgerReading, epsilon_rdp, load_libraries, merge
from gradtf_fl.reports.audit import LedgerReport, curve_points, report_ledger_reading
from gradtf_fl.shown import shown

MOST_EVENTS, MOST_STEPS, MOST_ROWS = 32, 1_000_000, 200_000
SIGMAS = (0.2, 1000.0)
SMALLEST_DELTA, LARGEST_EPSILON = 1e-12, 100.0
POSSIBLE_SIGMAS, POSSIBLE_STEPS, POSSIBLE_DELTA = (1e-3, 1e5), 100_000_000, 1e-20
"""Beyond them no accountant is asked: this program trains with none of that, in ten thousand rounds."""
SECONDS, SECONDS_TOGETHER, MEMORY_BYTES = 4, 80, 700_000_000
"""Of the process of one ledger, beyond what the accountants' libraries take: CPU time at least, and of all ledgers of
an audit together where that is more. Who audits one ledger can wait for hundreds of kinds of step; among twenty, none
holds up the others."""
SIDE_BY_SIDE, FEW_POINTS = 2, 4
WALL = 15
"""Seconds that go by for each of CPU time, on a busy machine, before a process is given up."""


def report_each(readings: Sequence[LedgerReading]) -> tuple[list[LedgerReport], list[str]]:
    """The figures of each dataset of each ledger, in order, and a line for each ledger without."""
    points = curve_points(len(readings))
    few, seconds = min(points, FEW_POINTS), max(SECONDS, SECONDS_TOGETHER // max(1, len(readings)))
    reports: list[LedgerReport] = []
    problems: list[str] = []
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        strange = {
            n: pool.submit(limited, reading, few, seconds) for n, reading in enumerate(readings) if not usual(reading)
        }
        plain = {n: report_ledger_reading(reading, points) for n, reading in enumerate(readings) if n not in strange}
        for number, reading in enumerate(readings):
            found = plain[number] if number in plain else strange[number].result()
            if isinstance(found, str):
                problems.append(f"{reading.path}: {found}")
            else:
                reports += found
    return reports, problems


def usual(reading: LedgerReading) -> bool:
    """Whether the figures cost no more than those of any long training."""
    content = reading.content
    delta = content.genesis.delta
    if reading.rows > MOST_ROWS or not delta >= SMALLEST_DELTA or len(set(content.client_level)) > MOST_EVENTS:
        return False
    if any(event.releases > MOST_STEPS for event in content.client_level):
        return False
    return all(_usual(merge(a.events), delta, a.budget) for a in content.datasets)


def impossible(reading: LedgerReading) -> str | None:
    """What in it can come from no training, in words; None where all of it can."""
    if reading.content.genesis.delta < POSSIBLE_DELTA:
        return f"delta is {reading.content.genesis.delta:g}: no audit can compute that"
    for account in reading.content.datasets:
        events = merge(account.events)
        if (steps := sum(event.steps for event in events)) > POSSIBLE_STEPS:
            return f"{steps:.3g} steps: no training of one organization has that many"
        for event in events:
            if event.sigma and not POSSIBLE_SIGMAS[0] <= event.sigma <= POSSIBLE_SIGMAS[1]:
                return f"sigma is {event.sigma:g}: no training of one organization has that"
    return None


def _usual(events: Sequence[DpEvent], delta: float, budget: float) -> bool:
    if len(events) > MOST_EVENTS or sum(event.steps for event in events) > MOST_STEPS:
        return False
    if LARGEST_EPSILON < budget < math.inf:
        return False
    noisy = [event for event in events if event.sigma > 0]
    if not all(SIGMAS[0] <= event.sigma <= SIGMAS[1] for event in noisy):
        return False
    return not noisy or epsilon_rdp(noisy, delta) <= LARGEST_EPSILON


def limited(reading: LedgerReading, points: int, seconds: int = SECONDS) -> list[LedgerReport] | str:
    """The reports of one ledger from a process of its own; in words why there are none.

    Args:
        points: of the curve of epsilon over rounds.
        seconds: of CPU time.
    """
    if (why := impossible(reading)) is not None:
        return why
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_compute, args=(theirs, reading, points, seconds), daemon=True)
    process.start()
    theirs.close()
    try:
        found: list[LedgerReport] | str | None = ours.recv() if ours.poll(WALL * seconds) else None
    except EOFError:
        found = None
    finally:
        process.kill()
        process.join()
        ours.close()
    if found is not None:
        return found
    events = [event for account in reading.content.datasets for event in merge(account.events)]
    return (
        f"not computed within {seconds} s and {MEMORY_BYTES / 1e6:.0f} MB: {len(events)} kinds of step, "
        f"{sum(event.steps for event in events):.2g} steps; audit it alone, or ask whose training looks like that"
    )


def _compute(out: Connection, reading: LedgerReading, points: int, seconds: int) -> None:
    end_with_parent()
    load_libraries()
    _limit(seconds)
    try:
        reports = report_ledger_reading(reading, points)
        for report in reports:
            _ = report.rounds, report.projected_rounds  # computed here, not by whoever prints them
        out.send(reports)
    except MemoryError:
        return
    except Exception as error:
        out.send(f"its figures can't be computed ({type(error).__name__}: {shown(error, 200)})")


def _limit(seconds: int) -> None:
    """From now on ``seconds`` of CPU time and `MEMORY_BYTES` more than now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = math.ceil(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (end, end + 1))
    status = Path("/proc/self/status")
    if status.exists():
        data = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmData"))
        limit = data * 1024 + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
