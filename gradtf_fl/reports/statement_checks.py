"""What an auditor's statement verified: each check by name, with its result and what it looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gradtf_fl.privacy import NOISE_SEEDED, NOISE_UNRECORDED, ROUNDING, LedgerCheck, LedgerReading, head_path
from gradtf_fl.reports.audit import LedgerReport
from gradtf_fl.reports.audit_words import number, title
from gradtf_fl.shown import shown

CLOSE, CLOSE_SHARE = 0.02, 0.002
"""Between PRV and PLD, or as a share of a large epsilon: what the mesh of PRV explains. More is a fault of either."""
MOST_PROBLEMS, MOST_CHARACTERS = 3, 160
"""Of one check that failed, and of one of its problems."""

Result = Literal["holds", "FAILED", "not compared", "not recorded"]
_Finder = Callable[[LedgerReport], Iterator[str]]


@dataclass(frozen=True)
class Compared:
    """What a ledger is compared with, beyond itself.

    Attributes:
        keys: how many public keys the ledger's must be among.
        heads: how many heads that its organization once announced.
    """

    keys: int = 0
    heads: int = 0


@dataclass(frozen=True)
class Check:
    """One line of the statement: what was checked, how it ended, and in which figures."""

    name: str
    result: Result
    detail: str


def ledger_checks(reading: LedgerReading, compared: Compared) -> list[Check]:
    """Whether the file is what its organization signed, as `gradtf audit verify` looks at it."""
    rows = f"{reading.rows} row{'' if reading.rows == 1 else 's'}"
    keys = len(reading.keys)
    head = "the first line of the export" if reading.exported else head_path(reading.path).name
    given = f"one of the {compared.keys} given with --public-key signed it"
    return [
        _check(reading, "chain", "Hash chain", f"the hash of each of {rows} covers the row before it"),
        _check(
            reading,
            "signatures",
            "Signatures",
            f"Ed25519 over each of {rows}" + (f", by {keys} keys in turn" if keys > 1 else ""),
        ),
        _check(reading, "content", "Content", "every charge, settlement and budget follows from the rows before it"),
        _check(reading, "head", "Head", f"{head} names this length and this last row"),
        _check(reading, "file", "File", "no foreign bytes, tables or types of value"),
        _check(reading, "key", "Key", given)
        if compared.keys
        else Check("Key", "not compared", "no --public-key was given: the ledger's own key was believed"),
        _check(reading, "announced heads", "Announced heads", f"{compared.heads} announced earlier, all on this chain")
        if compared.heads
        else Check(
            "Announced heads", "not compared", "no head was given (--heads): a rollback of the whole folder would pass"
        ),
    ]


def _check(reading: LedgerReading, check: LedgerCheck, name: str, detail: str) -> Check:
    problems = [str(problem) for problem in reading.problems if problem.check == check]
    return failed(name, problems) if problems else Check(name, "holds", detail)


def failed(name: str, problems: Sequence[str]) -> Check:
    """A check that failed, with its first problems."""
    told = "; ".join(shown(problem, MOST_CHARACTERS) for problem in problems[:MOST_PROBLEMS])
    more = len(problems) - MOST_PROBLEMS
    return Check(name, "FAILED", told + (f"; and {more} more" if more > 0 else ""))


def figure_checks(reports: Sequence[LedgerReport]) -> list[Check]:
    """Whether the figures say what a reader takes them for."""
    return [
        _all("Budget", reports, _over, "epsilon (PRV) is at most the budget of each dataset that has one"),
        _all("Accountants", reports, _apart, _distance(reports)),
        _all("Sampling", reports, _unsound_sampler, "Poisson, as the accountants assume"),
        _noise(reports),
    ]


def _all(name: str, reports: Sequence[LedgerReport], wrong: _Finder, detail: str) -> Check:
    problems = [f"{title(report)}: {what}" for report in reports for what in wrong(report)]
    return failed(name, problems) if problems else Check(name, "holds", detail)


def _over(report: LedgerReport) -> Iterator[str]:
    if not math.isfinite(report.epsilon.prv):
        yield "a step was taken without noise: there is no finite epsilon"
    elif report.epsilon.prv > report.budget + ROUNDING:
        yield f"epsilon {number(report.epsilon.prv)} is above the budget of {number(report.budget)}"


def _apart(report: LedgerReport) -> Iterator[str]:
    prv, pld = report.epsilon.prv, report.epsilon.pld
    if math.isfinite(prv) != math.isfinite(pld) or abs(prv - pld) > max(CLOSE, CLOSE_SHARE * prv):
        yield f"PRV says {number(prv)}, PLD says {number(pld)}"


def _distance(reports: Sequence[LedgerReport]) -> str:
    apart = [abs(report.epsilon.prv - report.epsilon.pld) for report in reports if math.isfinite(report.epsilon.prv)]
    return f"PRV and PLD, independent code, differ by {max(apart, default=0.0):.3f}"


def _unsound_sampler(report: LedgerReport) -> Iterator[str]:
    if not report.epsilon_valid:
        yield "the sampler is not the Poisson sampling that the accountants assume"


def _noise(reports: Sequence[LedgerReport]) -> Check:
    problems = [f"{title(report)}: {NOISE_SEEDED}" for report in reports if NOISE_SEEDED in report.noise]
    if problems:
        return failed("Noise", problems)
    charged = [report for report in reports if any(charge.counted for charge in report.account.charges)]
    silent = [title(report) for report in charged if NOISE_UNRECORDED in report.noise]
    if silent:
        return Check("Noise", "not recorded", f"{', '.join(silent)}: some charges name no noise generator")
    return Check("Noise", "holds", "no charge names noise that could be replayed")
