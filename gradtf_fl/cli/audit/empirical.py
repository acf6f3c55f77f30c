"""``gradtf audit empirical``: does the DP-SGD trainer leak more than its epsilon says?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradtf_fl.cli.options import chosen, console, emit_json, json_option
from gradtf_fl.errors import ConfigError, VerificationFailed

if TYPE_CHECKING:
    from gradtf_fl.training import AuditPlan


@click.command(
    short_help="Attack the trainer with canaries.",
    epilog="Example: gradtf audit empirical --epsilon 4 --plan plan.json\n\n"
    "Exit codes: 0 nothing found, 2 bad options, 5 the claim is refuted or the audit has no power.",
)
@click.option("--epsilon", type=float, help="Claimed epsilon to test; noise is calibrated to it.  [default: 8]")
@click.option("--delta", type=float, help="Delta of the claim.  [default: 1e-5]")
@click.option("--canaries", "gradient_canaries", type=int, help="Gradient canaries, at most 4096.  [default: 1500]")
@click.option("--row-canaries", type=int, help="Rows with a wrong answer.  [default: 200]")
@click.option("--rows", type=int, help="Ordinary rows besides the canaries.  [default: 64]")
@click.option("--unit", type=click.Choice(["row", "person"]), help="Unit that is drawn and clipped.  [default: row]")
@click.option("--rows-per-canary", type=int, help="Equal rows of each canary, as one person may have.  [default: 1]")
@click.option("--steps", type=int, help="DP-SGD steps.  [default: 50]")
@click.option("--batch", type=int, help="Expected rows (persons) in a step.  [default: 320]")
@click.option("--clip", type=float, help="Clipping bound of a row's (person's) gradient.  [default: .5]")
@click.option("--confidence", type=float, help="Confidence of all bounds together.  [default: .95]")
@click.option("--seed", type=int, help="Replay a run. Without a seed, noise comes from the system, as in deployment.")
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the plan here before anything is trained.",
)
@json_option
def empirical(plan_file: Path | None, as_json: bool, **given: Any) -> None:
    """Audit the DP-SGD trainer by one training run with canaries (Steinke et al. 2023), on the embedded TinyLM.

    Each canary row enters by a fair coin. Three scores guess the coins, and too many right guesses refute the claimed
    epsilon. The numbers of guesses are fixed before training. A second run without noise must be caught, or the audit
    has no power. It takes about half a minute and touches neither a ledger nor your data.
    """
    from gradtf_fl.reports import plan_line, print_audit
    from gradtf_fl.training import AuditPlan

    plan = AuditPlan.make(**chosen(given))
    if plan_file is not None:
        _register(plan, plan_file)
    click.echo(plan_line(plan), err=True)

    from gradtf_fl.reports import WorkProgress

    with WorkProgress("audit") as progress:
        progress.show("load", 0, 2 * plan.steps)
        from gradtf_fl.training import run_audit  # imports torch: seconds

        result = run_audit(plan, progress.show)
    if as_json:
        emit_json(result.to_json())
    else:
        print_audit(result, console())
    if result.problems:
        raise VerificationFailed(result.problems)


def _register(plan: AuditPlan, path: Path) -> None:
    """Write the plan and its hash to a new file; an older plan is never overwritten."""
    try:
        with path.open("x", encoding="utf8") as file:
            json.dump({"plan": plan.to_json(), "plan_sha256": plan.sha256}, file, indent=1)
    except FileExistsError as error:
        raise ConfigError(f"--plan {path}: there is a file already; plans are not overwritten") from error
    except OSError as error:
        raise ConfigError(f"--plan {path}: can't be written ({error.strerror})") from error
