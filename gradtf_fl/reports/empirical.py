"""``gradtf audit empirical`` on a terminal: the claim, what guesses prove, and how much that is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from gradtf_fl.training import AuditPlan, AuditResult, ScoreResult

NEAR_ZERO = (
    "A lower bound near 0, or below the claim, proves nothing: another attack may do better. Only a bound above the "
    "claim proves something, that the trainer leaks more than it says."
)
SEES = (
    "What this audit can see: missing or too little noise, missing clipping, more steps than are accounted for, and "
    "rows whose gradients depend on each other. What it can't: noise that is predictable, a wrong random generator, "
    "leaks by other ways than the gradients and the adapter, and bugs that spare these canaries."
)
WORDS = {"steps": "noisy steps", "update": "final update", "loss": "loss of rows"}


def plan_line(plan: AuditPlan) -> str:
    """One line that is shown before anything is trained."""
    return (
        f"plan {plan.sha256}: seed {plan.seed}, {plan.gradient_canaries} gradient canaries with "
        f"{plan.gradient_guesses} guesses in and {plan.gradient_guesses} out, {plan.row_canaries} row canaries with "
        f"{plan.row_guesses} and {plan.row_guesses}, sigma {plan.sigma:g}"
        + (f", {plan.rows_per_canary} rows each, unit {plan.unit}" if plan.rows_per_canary > 1 else "")
    )


def print_audit(result: AuditResult, console: Console) -> None:
    """Tables of the audited run and its control, the trainer's sensitivity, the verdict, and what it means."""
    plan = result.plan
    console.print(_scores(result))
    made = sum(score.guesses.made for score in result.audit.scores.values())
    right = sum(score.guesses.correct for score in result.audit.scores.values())
    figures = (
        ("claimed epsilon", f"{plan.claimed_epsilon:.3f} at delta {plan.delta:g} (PRV, add or remove one {plan.unit})"),
        ("lower bound", f"{result.audit.lower_bound:.3f} by {made} guesses, {right} of them right"),
        ("confidence", f"{plan.confidence:.1%} for all six bounds together"),
        ("control, no noise", _control(result)),
        ("one row changes", f"the clipped sum by {result.sensitivity.largest:.4f} C; allowed is 1 C"),
        ("coupling of rows", f"{result.sensitivity.coupling:.1e} of the sum; allowed is rounding"),
        ("plan", plan.sha256),
    )
    console.print(_pairs(figures))
    if result.problems:
        console.print(Text("FAILED", style="bold red"))
    else:
        console.print(Text("Nothing found that contradicts the claim.", style="bold"))
    console.print(Text(f"{NEAR_ZERO} {SEES}"), style="dim")


def _control(result: AuditResult) -> str:
    if not result.control.refuting:
        return f"not caught, bound {result.control.lower_bound:.3f}: no power"
    return f"caught by {', '.join(result.control.refuting)}; bound {result.control.lower_bound:.3f}"


def _scores(result: AuditResult) -> Table:
    table = Table(
        title=f"{result.plan.steps} steps of DP-SGD on the embedded TinyLM, sigma {result.plan.sigma:g}; control: 0",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("score", no_wrap=True)
    for heading in ("guesses\nright", "epsilon\nby pair", "epsilon\nby curve", "p of\nclaim"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("control\nright", "control\nepsilon", "control\ncaught"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, score in result.audit.scores.items():
        control = result.control.scores[name]
        table.add_row(
            WORDS[name],
            _right(score),
            f"{score.bound.pair:.2f}",
            f"{score.bound.curve:.2f}",
            f"{min(score.bound.pair_p, score.bound.curve_p):.2g}",
            _right(control),
            f"{control.bound.epsilon:.2f}",
            "yes" if control.bound.refutes else "no",
            style="bold red" if score.bound.refutes else None,
        )
    return table


def _right(score: ScoreResult) -> str:
    return f"{score.guesses.correct}/{score.guesses.made}"


def _pairs(figures: tuple[tuple[str, str], ...]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in figures:
        table.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    return table
