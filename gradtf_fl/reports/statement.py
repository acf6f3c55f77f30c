"""The auditor's statement on one ledger: one page of facts, tables and checks, as data.

`to_page` in `statement_html` and `to_pdf` in `statement_pdf` draw the same value, so both say the same words. Every
figure is one of `LedgerReport`; nothing is computed here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtf_fl.file_names import ORGANIZATION_CONFIG
from gradtf_fl.privacy import LedgerReading
from gradtf_fl.reports.audit import LedgerReport, not_covered
from gradtf_fl.reports.audit_words import limit, number, rounds_left, terms
from gradtf_fl.reports.statement_checks import Check, Compared, failed, figure_checks, ledger_checks
from gradtf_fl.reports.statement_rounds import CHARGE_HEADINGS, charge_rows, moment, period
from gradtf_fl.shown import shown
from gradtf_fl.version import __version__

MOST_CONFIG_BYTES = 100_000
LONGEST_NAME = 120
NO_COMPLIANCE = "No statement of compliance"
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Unreadable:
    """A ledger that is too damaged to say whose it is, and why."""

    path: Path
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A name and its value; ``code`` marks hexadecimal digits."""

    name: str
    value: str
    code: bool = False


@dataclass(frozen=True)
class Grid:
    """A table of short texts."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Part:
    """One section of the page. ``blanks`` are lines to be filled in by hand."""

    title: str
    text: str = ""
    grid: Grid | None = None
    facts: tuple[Fact, ...] = ()
    points: tuple[str, ...] = ()
    blanks: tuple[str, ...] = ()


@dataclass(frozen=True)
class AuditStatement:
    """What is said about one ledger; every text is fit for a page.

    Attributes:
        organization: as the ledger names it; empty where it cannot be read.
        compliant: whether every check holds.
        verdict: the same in a few words.
        reasons: why not; empty for a compliant one.
        caution: what a reader must know besides, such as checks that were not made; may be empty.
        made: when the statement was made (UTC, ISO 8601).
        parts: the sections, in order.
        checks: every check with its result.
        reports: the figures, dataset by dataset; empty where there are none.
    """

    path: Path
    organization: str
    compliant: bool
    verdict: str
    reasons: tuple[str, ...]
    caution: str
    made: str
    parts: tuple[Part, ...]
    checks: tuple[Check, ...]
    reports: tuple[LedgerReport, ...]

    @property
    def heading(self) -> str:
        """Whose statement it is."""
        return self.organization or "Organization not known"

    @property
    def source(self) -> str:
        """Who made the page, from what, and when."""
        name = shown(self.path.name, LONGEST_NAME)
        return f"Made by gradtf-fl {__version__} on {self.made} from {name}, by gradtf audit statement."

    def to_json(self) -> dict[str, Any]:
        """The statement for programs; ``figures`` are those of ``gradtf audit report --json``."""
        return {
            "ledger": str(self.path),
            "organization": self.organization,
            "compliant": self.compliant,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "caution": self.caution,
            "made": self.made,
            "checks": [{"what": check.name, "result": check.result, "detail": check.detail} for check in self.checks],
            "figures": [report.to_json() for report in self.reports],
        }


def make_statement(
    reading: LedgerReading | Unreadable,
    reports: Sequence[LedgerReport],
    *,
    compared: Compared,
    made: str,
    not_computed: str = "",
) -> AuditStatement:
    """The statement on one ledger.

    Args:
        reading: the ledger with every signature checked, or why it cannot be read.
        reports: its figures, dataset by dataset.
        compared: what it was compared with.
        made: the time now (UTC, ISO 8601).
        not_computed: why there are no figures, in words.
    """
    if isinstance(reading, Unreadable):
        organization, checks = "", [failed("Reading", reading.problems)]
    else:
        organization = shown(reading.content.genesis.organization, LONGEST_NAME)
        figures = [failed("Figures", [not_computed])] if not_computed else figure_checks(reports)
        checks = [*ledger_checks(reading, compared), *figures]
    reasons = tuple(f"{check.name}: {check.detail}" for check in checks if check.result == "FAILED")
    return AuditStatement(
        path=reading.path,
        organization=organization,
        compliant=not reasons,
        verdict=NO_COMPLIANCE if reasons else _verdict(reports),
        reasons=reasons,
        caution=_caution(checks, reports),
        made=made,
        parts=tuple(_parts(reading, reports, checks)),
        checks=tuple(checks),
        reports=tuple(reports),
    )


def _verdict(reports: Sequence[LedgerReport]) -> str:
    if all(limit(report.budget) == "none" for report in reports):
        return "Verified; the ledger sets no budget to comply with"
    return "Verified: epsilon is within the budget that the ledger records"


def _caution(checks: Sequence[Check], reports: Sequence[LedgerReport]) -> str:
    found = [] if all(report.sound for report in reports) else ["The figures of a broken ledger prove nothing."]
    for result in ("not compared", "not recorded"):
        if names := [check.name.lower() for check in checks if check.result == result]:
            found.append(f"{result.capitalize()}: {', '.join(names)}.")
    return " ".join(found)


def _parts(
    reading: LedgerReading | Unreadable, reports: Sequence[LedgerReport], checks: Sequence[Check]
) -> Iterator[Part]:
    if not isinstance(reading, Unreadable):
        yield _who(reading)
    if reports:
        yield _data(reports)
        yield _epsilon(reports)
        yield _method(reports)
    rows = tuple((check.name, check.result, check.detail) for check in checks)
    yield Part("Verified how", grid=Grid(("check", "result", "what was checked"), rows))
    if reports:
        yield Part("Not covered by epsilon", points=not_covered(report.unit for report in reports))
    yield _signatures(reading)


def _who(reading: LedgerReading) -> Part:
    genesis = reading.content.genesis
    keys = len(reading.keys)
    return Part(
        "Who",
        facts=(
            Fact("organization", shown(genesis.organization, LONGEST_NAME)),
            Fact("public key" + (f" (of {keys} in turn, the last)" if keys > 1 else ""), reading.keys[-1].hex(), True),
            Fact("ledger head", reading.head.hex(), True),
            Fact("ledger", f"{reading.rows} rows, begun {moment(genesis.created)}"),
        ),
    )


def _data(reports: Sequence[LedgerReport]) -> Part:
    headings = (
        "dataset",
        "unit of protection",
        "declared",
        "drawn in a step",
        "first charge (UTC)",
        "last charge (UTC)",
    )
    rows = tuple(
        (
            shown(report.dataset, LONGEST_NAME),
            shown(report.unit, LONGEST_NAME),
            _declared(report),
            _drawn(report),
            *period(report.account.charges),
        )
        for report in reports
    )
    text = (
        "Declared is the number of rows or persons that the organization made public. It stands in its configuration, "
        "which the ledger does not sign; a step draws each of them with the probability q that the ledger does sign."
    )
    return Part("Which rows and persons, and when", text, Grid(headings, rows))


def _drawn(report: LedgerReport) -> str:
    rates = sorted({event.q for event in report.events})
    if not rates:
        return "–"
    return f"q = {rates[0]:.4g}" if len(rates) == 1 else f"q = {rates[0]:.4g} to {rates[-1]:.4g}"


def _declared(report: LedgerReport) -> str:
    """What the configuration in the ledger's folder declares, where it is this dataset's."""
    declared = declared_beside(report.reading.path, report.organization, report.dataset)
    return NOT_STATED if declared is None else f"{declared:,} {report.unit.plural}"


def declared_beside(ledger: Path, organization: str, dataset: str) -> int | None:
    """``[privacy] declared`` of the configuration in the ledger's folder; None without one for this dataset."""
    try:
        with (ledger.parent / ORGANIZATION_CONFIG).open("rb") as file:
            document = tomllib.loads(file.read(MOST_CONFIG_BYTES).decode())
    except (OSError, ValueError, RecursionError):
        return None
    privacy = document.get("privacy")
    if document.get("name") != organization or not isinstance(privacy, dict):
        return None
    declared = privacy.get("declared")
    if privacy.get("dataset", "train") != dataset or type(declared) is not int or not 0 < declared < 2**41:
        return None
    return declared


def _epsilon(reports: Sequence[LedgerReport]) -> Part:
    clients = any(report.client_level is not None for report in reports)
    headings = ("dataset", "PRV", "PLD", "RDP", "one replaced", "budget", "left", "rounds left")
    rows = tuple(
        (
            shown(report.dataset, LONGEST_NAME),
            number(report.epsilon.prv),
            number(report.epsilon.pld),
            number(report.epsilon.rdp),
            number(report.replace_one),
            limit(report.budget),
            limit(report.remaining),
            rounds_left(report),
            *((number(report.client_level),) if clients else ()),
        )
        for report in reports
    )
    text = (
        f"Epsilon at delta {reports[0].delta:g}, all rounds composed jointly. PRV is compared with the budget. One "
        "replaced: by PLD, for one unit exchanged for another. Rounds left: how many more like the last one fit."
    )
    return Part("What epsilon", text, Grid((*headings, "client level") if clients else headings, rows))


def _method(reports: Sequence[LedgerReport]) -> Part:
    facts = tuple(
        Fact(term.name if n == 0 else "", value if whose is None else f"{value} ({whose})")
        for term in terms(reports)
        for n, (value, whose) in enumerate(term.values)
    )
    charges = charge_rows([(shown(report.dataset, LONGEST_NAME), report.account.charges) for report in reports])
    grid = Grid(CHARGE_HEADINGS, charges) if charges else None
    return Part("By which method", "" if charges else "Nothing was charged yet.", grid, facts)


def _signatures(reading: LedgerReading | Unreadable) -> Part:
    blanks = ("Auditor", "Place and date", "Signature")
    if isinstance(reading, Unreadable):
        return Part("Signatures", blanks=blanks)
    text = (
        "The organization signed the last row of its ledger, and with it every row before. A ledger proves what its "
        "key's owner recorded, not that everything was recorded."
    )
    return Part("Signatures", text, facts=(Fact("Ed25519", reading.signature.hex(), True),), blanks=blanks)


def file_names(statements: Sequence[AuditStatement]) -> list[str]:
    """A file name without ending for each statement: letters and digits of the organization, never twice the same."""
    taken: set[str] = set()
    names = []
    for statement in statements:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", statement.organization).strip("-")[:40].strip("-") or "ledger"
        name, count = stem, 1
        while name.lower() in taken:
            count += 1
            name = f"{stem}-{count}"
        taken.add(name.lower())
        names.append(name)
    return names
