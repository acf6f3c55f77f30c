"""``gradtf simulate``: a whole federation on this machine, with the parts that deployment runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradtf_fl.cli.options import config_option, configured, console, emit_json, json_option
from gradtf_fl.errors import BudgetExhausted, ConfigError, RoundAborted
from gradtf_fl.file_names import REPORT

if TYPE_CHECKING:
    from gradtf_fl.config import SimulationConfig

INSIDE = {"task": "task.source", "rules": "task.rules"}
EXIT_CODES = {"completed": 0, "budget": BudgetExhausted.exit_code, "aborted": RoundAborted.exit_code}


@click.command(
    epilog="Example: gradtf simulate --organizations 8 --epsilon 1 --drop mask:1 --out build/run\n\n"
    "After Ctrl-C or a kill: gradtf simulate --resume build/run\n\n"
    "Exit codes: 0 done, 2 bad options, 3 budget exhausted (finished rounds are kept), 4 round aborted, "
    "130 interrupted."
)
@config_option
@click.option("--organizations", type=int, help="How many organizations take part.  [default: 5]")
@click.option("--rounds", type=int, help="Rounds of training and aggregation.  [default: 3]")
@click.option("--epsilon", type=float, help="What the whole run may spend per organization.  [default: 8]")
@click.option("--delta", type=float, help="Delta of every organization's ledger.  [default: 1e-5]")
@click.option("--budget", type=float, help="Lifetime epsilon of every ledger.  [default: --epsilon]")
@click.option("--task", metavar="SOURCE", multiple=True, help="Rows, as [task] source.  [default: house-rules]")
@click.option("--partition", metavar="NAME", help="iid, dirichlet, shards, pathological, sizes or natural.")
@click.option("--alpha", type=float, help="Concentration of dirichlet.  [default: 0.5]")
@click.option("--by", metavar="FIELD", help="Field of a row that is its label.  [default: the source]")
@click.option("--rows", type=int, help="Rows of an organization; 0: all that fall to it.  [default: 1024]")
@click.option("--test-rows", type=int, help="Test rows of an organization.  [default: 256]")
@click.option("--tiny", metavar="M", help="TinyLM.  [default: embedded:tiny]")
@click.option("--llm", metavar="M", help="LLM.  [default: embedded:llm]")
@click.option("--steps", type=int, help="DP-SGD steps of a round.  [default: 50]")
@click.option("--batch", type=int, help="Expected rows in a step.  [default: 64]")
@click.option(
    "--no-transformer",
    is_flag=True,
    help="A plain federation of the TinyLM: secure sum, DP, ledgers; its adapter is what is delivered.",
)
@click.option(
    "--rules",
    metavar="same|mixed|unseen",
    help="One public rule for all (of those that a TinyLM can't do), a mixture of three, or a held-out rule.  "
    "[default: same]",
)
@click.option(
    "--refine/--no-refine",
    default=None,
    help="Whether the provider refines the LLM update on public prompts.  [default: refine]",
)
@click.option("--engine", metavar="in-process|ray", help="Where clients run.  [default: in-process]")
@click.option("--workers", type=int, help="Processes that share organizations and evaluation.  [default: 1]")
@click.option("--ray-cpus", type=int, help="Cores that an organization takes on Ray.  [default: 1]")
@click.option("--ray-gpus", type=float, help="GPUs that an organization takes on Ray, as 0.25.  [default: 0]")
@click.option("--ray-address", metavar="ADDRESS", help="A running Ray cluster.  [default: one of this run's own]")
@click.option(
    "--drop",
    multiple=True,
    metavar="STAGE:COUNT",
    help="Organizations that vanish at advertise, share, accept, mask, consistency or unmask. Repeatable.",
)
@click.option(
    "--groups", type=int, help="Aggregate in this many groups (each needs at least 5 organizations).  [default: 1]"
)
@click.option("--sample", type=int, help="Organizations a round, drawn by a beacon nobody steers.  [default: all]")
@click.option(
    "--noise-multiplier",
    type=float,
    help="Distributed DP: Skellam noise on every sum, in units of update_clip.  [default: 0, none]",
)
@click.option("--seed", type=int, help="Data, training and noise of the run.  [default: 0]")
@click.option("--allow-two", is_flag=True, default=None, help="Accept 2 organizations: each learns the other's.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="New folder for report and adapters.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Continue the interrupted run in DIR, with what it was started with; no epsilon is charged twice.",
)
@json_option
def simulate(config_file: Path | None, as_json: bool, resume: Path | None, **given: Any) -> int:
    """Run a whole federation on this machine: real server and client apps, secure aggregation, DP-SGD,
    privacy ledgers, Grad-Transformer and evaluation. Nothing leaves this process.
    """
    began = time.monotonic()
    options = _placed(given)
    config = configured(config_file, options) if resume is None else _stored(resume, config_file, options)
    if resume is not None and (document := _finished(resume)) is not None:
        return _say_finished(resume, document, as_json)

    from gradtf_fl.cli.interruption import Interruption
    from gradtf_fl.reports import SimulationEvent, SimulationProgress, print_report

    with SimulationProgress() as progress, Interruption(progress, config.rounds, config.engine == "ray") as shown:
        shown.show(SimulationEvent("load"))
        from gradtf_fl.simulation import resume as continue_run  # imports torch: seconds
        from gradtf_fl.simulation import simulate as run

        if resume is None:
            report = run(config, shown.show, began=began)
        else:
            report = continue_run(resume, shown.show, began=began)
    if config.out is None:
        click.echo(f"gradtf: no --out given; the run is in the temporary folder {report.out}", err=True)
    if as_json:
        emit_json(report.to_json())
    else:
        print_report(report, console())
    if report.state != "completed":
        click.echo(f"gradtf: {report.reason}", err=True)
    return EXIT_CODES[report.state]


def _stored(folder: Path, config_file: Path | None, options: dict[str, Any]) -> SimulationConfig:
    """What the run in ``folder`` was started with; ConfigError where something else is asked for."""
    from gradtf_fl.config import differing
    from gradtf_fl.simulation import read_run

    stored = read_run(folder)
    named = [] if options["out"] in (None, folder) or options["out"].absolute() == folder.absolute() else ["--out"]
    named += differing(stored, config_file, {**options, "out": None}, Path.cwd())
    if named:
        raise ConfigError(
            [
                f"{name}: the run in {folder} was started with another value; leave the option out, or start over"
                for name in named
            ]
        )
    return stored


def _finished(folder: Path) -> dict[str, Any] | None:
    from gradtf_fl.simulation import finished_report

    return finished_report(folder)


def _say_finished(folder: Path, document: dict[str, Any], as_json: bool) -> int:
    if as_json:
        emit_json(document)
    else:
        click.echo(f"The run in {folder} is over ({document['state']}): its report is {folder / REPORT}")
    return EXIT_CODES[document["state"]]


def _placed(given: dict[str, Any]) -> dict[str, Any]:
    """Options by where they stand in the settings."""
    placed = {INSIDE.get(name, name): value for name, value in given.items() if name != "no_transformer"}
    return placed | ({"transformer": "none"} if given["no_transformer"] else {})
