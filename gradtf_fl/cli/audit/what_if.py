"""``gradtf audit what-if``: the cost of a run before it is run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradtf_fl.cli.options import chosen, config_option, configured, console, emit_json, json_option
from gradtf_fl.errors import ConfigError
from gradtf_fl.shown import shown

if TYPE_CHECKING:
    from gradtf_fl.privacy import LedgerOutlook, WhatIf


@click.command(
    "what-if",
    short_help="Noise and cost of a run before it is run.",
    epilog="Example: gradtf audit what-if --epsilon 4 --rounds 3 --batch 64 --rows 1024 --ledger org-1/ledger.sqlite",
)
@config_option
@click.option("--epsilon", type=float, help="What the whole run may spend per organization.")
@click.option("--rounds", type=int, help="Rounds of the run.")
@click.option("--batch", type=int, help="Expected rows (persons) in a step.")
@click.option(
    "--rows", type=int, help="The organization's rows (its persons, where a person is the unit); always required."
)
@click.option("--steps", type=int, help="DP-SGD steps in a round.  [default: 50]")
@click.option("--delta", type=float, help="Must be the ledger's, if one is given.  [default: 1e-5]")
@click.option(
    "--ledger", type=click.Path(path_type=Path), metavar="PATH", help="A ledger.sqlite, or a folder with one."
)
@click.option("--dataset", metavar="NAME", help="Dataset that pays, if the ledger has several.")
@json_option
def what_if(
    config_file: Path | None, ledger: Path | None, dataset: str | None, rows: int | None, as_json: bool, **given: Any
) -> None:
    """The noise a run needs, the accuracy to expect, and what a ledger's budget still allows.

    The plan comes from --config, and options override it. Without a file, --epsilon, --rounds and --batch are required.
    Nothing is trained, no data is read and no ledger is changed.
    """
    from gradtf_fl.privacy import RunPlan, Unit
    from gradtf_fl.privacy import what_if as answer

    if dataset is not None and ledger is None:
        raise ConfigError("--dataset needs --ledger")
    plan: dict[str, Any] = {"epsilon": None, "rounds": None, "batch": None, "steps": 50, "delta": 1e-5}
    is_measured = True  # accuracies were: of House Rules
    unit: Unit | None = None
    if config_file is not None:
        settings = configured(config_file, {})
        is_measured = settings.task.is_house_rules
        unit = Unit(settings.person)
        plan = {name: getattr(settings, name) for name in plan}
    plan |= chosen(given) | {"rows": rows}
    missing = [name for name, value in plan.items() if value is None]
    if missing:
        or_a_file = ", or a project's file (--config)" if config_file is None and missing != ["rows"] else ""
        raise ConfigError(f"{', '.join(f'--{name}' for name in missing)}: required{or_a_file}")
    found = answer(RunPlan(**plan), ledger, dataset, unit)
    if as_json:
        emit_json(found.to_json() | ({} if is_measured else {"accuracy": None}))
    else:
        _print(found, is_measured)


def _print(found: WhatIf, is_measured: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    accuracy = _accuracy(found) if is_measured else [("accuracy", "not measured for this task: gradtf simulate does")]
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in (*_cost(found), *accuracy, *_ledger(found.ledger)):
        table.add_row(Text(name, style="dim"), Text(shown(value)))
    console().print(table)


def _cost(found: WhatIf) -> list[tuple[str, str]]:
    plan, epsilon = found.plan, found.epsilon
    return [
        (
            "plan",
            f"{plan.rounds} rounds of {plan.steps} steps, {plan.batch} of {plan.rows} {found.unit.plural} expected in "
            "a step",
        ),
        ("noise multiplier", f"{found.sigma:g} (q {plan.batch / plan.rows:.4g}, {plan.rounds * plan.steps} steps)"),
        ("epsilon", f"PRV {epsilon.prv:.3f}, PLD {epsilon.pld:.3f}, RDP {epsilon.rdp:.3f} at delta {plan.delta:g}"),
        (
            f"one {found.unit.name} replaced",
            f"{found.replace_one:.3f} (PLD); the figures above are for one {found.unit.name} added or removed",
        ),
    ]


def _accuracy(found: WhatIf) -> list[tuple[str, str]]:
    from gradtf_fl.privacy import measurements

    measured = measurements()
    free, span = measured["without_dp"], found.to_json()["accuracy"]["measured_range"]
    lines = [
        (
            f"accuracy, {each.organizations} organization{'s' if each.organizations > 1 else ''}",
            f"TinyLM {each.tiny:.3f}, generated LLM {each.generated:.3f}, "
            + ("measured at this epsilon" if each.measured else "on the line between measured epsilons"),
        )
        for each in found.accuracy
    ]
    if not lines:
        lines = [("accuracy", f"not measured at this epsilon, only from {span[0]:g} to {span[1]:g}")]
    lines.append(("without DP", f"TinyLM {free['tiny']:.3f}, generated LLM {free['generated']:.3f}"))
    lines.append(("measured on", f"{measured['task']} ({measured['source']})"))
    if found.differs:
        lines.append(("your plan differs", f"{'; '.join(found.differs)}: expect other figures"))
    return lines


def _ledger(ledger: LedgerOutlook | None) -> list[tuple[str, str]]:
    if ledger is None:
        return []
    budget = "no budget" if ledger.budget is None else f"budget {ledger.budget:g}"
    after = "fits" if ledger.fits else "does NOT fit: the client would refuse it"
    lines = [
        ("ledger", f"{ledger.organization}, {ledger.dataset}: {ledger.spent:.3f} spent, {budget}"),
        ("after the run", f"{ledger.after:.3f}" + ("" if ledger.budget is None else f", {after}")),
    ]
    if ledger.rounds_left is not None:
        lines.append(("rounds left", f"{_rounds(ledger.rounds_left)} like its last one"))
    if ledger.planned_rounds is not None:
        lines.append(("planned rounds", f"{_rounds(ledger.planned_rounds)} of this plan's fit"))
    return lines


def _rounds(count: int) -> str:
    from gradtf_fl.privacy import MOST_ROUNDS

    return f"{MOST_ROUNDS} or more" if count >= MOST_ROUNDS else str(count)
