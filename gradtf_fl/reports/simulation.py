"""``gradtf simulate`` on a terminal: the closing tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradtf_fl.deployment import identifiability_in_words
from gradtf_fl.privacy import Unit
from gradtf_fl.reports.holdings_chart import count_of, largest_labels
from gradtf_fl.reports.quantiles import MANY, QUANTILES, quantiles
from gradtf_fl.reports.simulation_report import OrganizationResult, SimulationReport


def epsilon_covers(unit: Unit) -> str:
    """What the epsilons of a simulation cover, and what they do not."""
    of_rows = unit.person is None
    one = "one training row" if of_rows else f"one person, with all training rows of one value of {unit.person!r}"
    apart = "rows that belong together, such as one person's, which count one by one"
    apart = apart if of_rows else "people whom the rows have under several names, which count one by one"
    return (
        "What epsilon covers: all that leaves an organization through its masked update vectors, all rounds "
        f"composed jointly. Unit: {one}; adjacency: {unit.adjacency} (replacing one costs up to "
        "twice as much); sampler: Poisson; accountant: PRV. It holds even if secure aggregation fails. "
        f"What it does not cover: {apart}; the "
        "time and size of messages; the choice of hyper-parameters; the figures above, which come from private "
        "test rows and are shown only because this is a simulation. The simulation's noise is drawn from --seed "
        "so that a run can be repeated; such noise protects nobody. Deployed organizations use the system's."
    )


CLIENT_COVERS = (
    "Adjacency: its vector against the zero vector; accountant: RDP. It holds only while secure aggregation hides the "
    "single vectors and the honest organizations that it counts on add their noise; it is never added to the first."
)


def print_report(report: SimulationReport, console: Console) -> None:
    """The closing tables: organizations, controls, rounds, and what epsilon does and does not cover."""
    many = len(report.organizations) > MANY
    if any(len(organization.holds) > 1 for organization in report.organizations):
        console.print(_holding_quantiles(report) if many else _holdings(report))
    console.print(_organization_quantiles(report) if many else _organizations(report))
    if report.finished_rounds and not report.is_plain:
        console.print(_controls(report))
    console.print(_rounds(report))
    if many and (lost := _lost(report)):
        console.print(Text(lost))
    if sums := identifiability_in_words(report.rounds):
        console.print(Text(f"Sums opened: {sums}"))
    console.print()
    if report.state != "completed":
        console.print(Text(f"{report.state}: {report.reason}", style="bold"))
    console.print(Text(epsilon_covers(report.unit)), style="dim")
    spent = [o.client_epsilon for o in report.organizations if o.client_epsilon is not None]
    if spent:
        console.print(
            Text(
                f"A second epsilon, of one whole organization in the opened sums: {max(spent):.3f} at delta "
                f"{report.organizations[0].delta:g}, by Skellam noise. {CLIENT_COVERS}"
            ),
            style="dim",
        )
    console.print(Text(f"{report.wall_s:.1f} s in all; report, adapters and ledgers: {report.out}"))


def _table(title: str, headings: Iterable[str], caption: str | None = None) -> Table:
    table = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


_SHOWN = {
    "tiny_base": "TinyLM\nbase",
    "tiny_tuned": "TinyLM\ntuned",
    "llm_base": "LLM\nbase",
    "llm_generated": "LLM\ngenerated",
    "llm_ceiling": "LLM\nceiling",
}
_SHOWN_PLAIN = {
    "tiny_base": "TinyLM\nbase",
    "tiny_tuned": "tuned\nalone",
    "tiny_global": "federation",
    "tiny_ceiling": "tuned\nwithout DP",
}
_CONTROLS = {
    "mean_update": "mean\nupdate",
    "nearest_update": "nearest\nupdate",
    "ridge": "ridge",
    "task_library": "task\nlibrary",
    "llm_generated": "Grad-\nTransformer",
}
_METRIC = {
    "exact_match": "Accuracy (exact match)",
    "rouge1": "ROUGE-1 (F)",
    "loss": "Loss in nats a character (less is better)",
}
WIDTH = 30
"""Characters of the longest bar."""
MARKS = "█▓▒░▞▚╳·"


def model_names(report: SimulationReport) -> Mapping[str, str]:
    """Models that a run compares, by their keys in its figures; a line end where a heading may break."""
    return _SHOWN_PLAIN if report.is_plain else _SHOWN


def control_names(report: SimulationReport) -> Mapping[str, str]:
    """Simpler ways to make an LLM update, and the Grad-Transformer last; without one, none."""
    return {key: name for key, name in _CONTROLS.items() if key in report.names}


def metric_name(report: SimulationReport) -> str:
    """What its figures are."""
    return _METRIC.get(report.metric, report.metric)


def _organizations(report: SimulationReport) -> Table:
    shown = model_names(report)
    table = _accuracy_table(report, "organization", "epsilon\nspent")
    for organization in report.organizations:
        table.add_row(organization.name, *_figures(organization, report))
    table.add_section()
    accuracy = report.accuracy
    spent = max((o.epsilon for o in report.organizations), default=0.0)
    means = [_cell(accuracy[key]) for key in shown] + ([] if report.is_plain else [_cell(report.pgr)])
    table.add_row("mean", *means, f"max {spent:.2f}", style="bold")
    return table


def _accuracy_table(report: SimulationReport, first: str, *last: str) -> Table:
    rules = sorted({organization.rule for organization in report.organizations})
    hidden = "\n".join(f"hidden: {rule}" for rule in rules) if len(rules) == 1 else None
    pgr = [] if report.is_plain else ["PGR"]
    title = f"{metric_name(report)} on each organization's own private test rows"
    return _table(title, [first, *model_names(report).values(), *pgr, *last], hidden)


def _organization_quantiles(report: SimulationReport) -> Table:
    """How figures spread over many organizations, and who has the worst and the best."""
    shown, spread, count = model_names(report), report.quantiles, len(report.organizations)
    table = _accuracy_table(report, "", "epsilon\nspent", "rows")
    table.title = f"{table.title}: quantiles over {count:,} organizations, the worst and the best"
    epsilon, rows = spread["epsilon"], spread["rows"]
    for name, share in QUANTILES.items():
        figures = [_cell(spread["accuracy"][key][name]) for key in shown]
        figures += [] if report.is_plain else [_cell(spread["pgr"][name])]
        label = name if share in (0, 1) else f"{100 * share:.0f} %"
        table.add_row(label, *figures, _number(epsilon[name], ".2f"), _number(rows[name], ",.0f"))
    table.add_section()
    means = [_cell(report.accuracy[key]) for key in shown] + ([] if report.is_plain else [_cell(report.pgr)])
    table.add_row("mean", *means, "", "", style="bold")
    table.add_section()
    for organization in (*report.worst, *report.best[::-1]):
        table.add_row(organization.name, *_figures(organization, report)[:-1], *_spent(organization))
    return table


def _spent(organization: OrganizationResult) -> tuple[str, str]:
    return f"{organization.epsilon:.2f}", f"{organization.rows:,}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _holding_quantiles(report: SimulationReport) -> Table:
    """Of many organizations: how many training rows of each label one holds."""
    held = [organization.holds for organization in report.organizations]
    labels = largest_labels(held)
    table = _table("Training rows of each label at an organization", ["label", *QUANTILES])
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"  # names of files, say
    for label in labels:
        found = quantiles([count_of(one, label, labels) for one in held])
        table.add_row(label, *(_number(found[name], ",.0f") for name in QUANTILES))
    return table


def _lost(report: SimulationReport) -> str:
    """How many organizations were lost in the rounds, and where; empty where none was."""
    dropped: dict[str, int] = {}
    refused: dict[str, int] = {}
    for record in report.rounds:
        for counts, total in ((record.get("dropped"), dropped), (record.get("refused"), refused)):
            for name, count in (counts or {}).items():
                total[name] = total.get(name, 0) + count
    if not dropped:
        return ""
    text = "Lost, all rounds together: " + ", ".join(f"{count:,} at {stage}" for stage, count in dropped.items())
    why = ", ".join(f"{count:,} {code}" for code, count in refused.items())
    return text + (f"; of them by refusal: {why}" if why else "")


def _figures(organization: OrganizationResult, report: SimulationReport) -> list[str]:
    cells = [_cell(organization.accuracy.get(key)) for key in model_names(report)]
    pgr = [] if report.is_plain else [_cell(organization.pgr)]
    return [*cells, *pgr, f"{organization.epsilon:.2f} of {organization.budget:g}"]


def _holdings(report: SimulationReport) -> Table:
    """Who holds how many rows of which label, as bars of one scale."""
    labels = sorted({label for organization in report.organizations for label in organization.holds})
    marks = {label: MARKS[number % len(MARKS)] for number, label in enumerate(labels)}
    most = max((organization.rows for organization in report.organizations), default=1) or 1
    legend = "   ".join(f"{mark} {label}" for label, mark in list(marks.items())[: len(MARKS)])
    more = f"   and {len(labels) - len(MARKS)} more labels" if len(labels) > len(MARKS) else ""
    table = _table("Who holds which rows", ["organization", "training\nrows", "test\nrows", ""], legend + more)
    table.columns[-1].justify = "left"
    for organization in report.organizations:
        bar = "".join(marks[k] * round(WIDTH * count / most) for k, count in sorted(organization.holds.items()))
        table.add_row(organization.name, f"{organization.rows:,}", f"{organization.test_rows:,}", bar)
    return table


def _controls(report: SimulationReport) -> Table:
    """What something simpler than the Grad-Transformer would have reached."""
    controls = control_names(report)
    table = _table(
        f"Controls: {metric_name(report)} of the LLM with an update made in a simpler way", ["", *controls.values()]
    )
    table.add_row(report.metric.replace("_", " "), *(_cell(report.accuracy[key]) for key in controls))
    gains = report.gains
    table.add_row("share of the LLM's own gain", *(_cell(gains[key]) for key in controls))
    return table


def _rounds(report: SimulationReport) -> Table:
    shown = ("round", "state", "joined", "masked", "unmasked")
    noisy = report.config.get("noise_multiplier")
    caption = "the error of the mean is its Skellam noise" if noisy else None
    refined = [] if report.is_plain else ["re-\nfined"]
    table = _table("Rounds", [*shown, "max error\nof the mean", "sent by\na client", *refined], caption)
    for record in report.rounds:
        error, sent = record.get("max_abs_error"), record.get("bytes_up_per_client")
        table.add_row(
            *(str(record.get(key, "")) for key in shown),
            "-" if error is None else f"{error:.1e}",
            "-" if sent is None else f"{sent:,} B",
            *(_refined(record.get("refinement") or {}) for _ in refined),
        )
    return table


def _refined(refinement: Mapping[str, Any]) -> str:
    if kinds := refinement.get("kinds"):
        return f"{kinds} tasks"
    return {None: "-", True: "yes", False: "no"}[refinement.get("taken")]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
