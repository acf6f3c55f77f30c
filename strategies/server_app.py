"""The provider's Flower ServerApp. Everything it does is in the run config, read as a `FederationPlan`."""

from __future__ import annotations

import contextlib
import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from gradtf_fl.config import FederationPlan, OrganizationConfig, load_toml
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import ORGANIZATION_CONFIG, ROSTER
from gradtf_fl.flower import OnEvent, RoundEvent
from gradtf_fl.secagg import Roster
from strategies.failures import note_failure
from strategies.federation import FederationResult, SecureFederation
from strategies.provider import Generator, Provider
from strategies.server.observation import Observer, tell_all
from strategies.server.tracking import open_tracker

app = ServerApp()
log = logging.getLogger("flwr").info  # where a run's log comes from


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Run (or continue) the federation of the run config; an error fails the run.

    `Observer` writes OUT/status.json and OUT/events.jsonl.
    """
    plan = FederationPlan.from_run_config(context.run_config)
    try:
        _run(grid, plan)
    except Exception as error:
        with contextlib.suppress(OSError):  # a full disk, say
            note_failure(plan.out, error)
        raise


def _run(grid: Grid, plan: FederationPlan) -> None:
    tracker = open_tracker(plan.tracking, plan.out.absolute().name)
    with Observer(plan, tracker) as observer:
        run_server(grid, plan, tell_all(_log_event, observer))


def _log_event(event: RoundEvent) -> None:
    """Progress for ``flwr log``: one line for each stage that begins and each round that ends."""
    where = f"round {event.round}/{event.rounds}"
    if event.kind == "stage":
        log("%s %s: asking %s", where, event.stage, event.expected)
    elif event.kind == "delivered":
        log("%s adapter stored by %s of %s", where, event.joined, event.expected)
    elif event.kind == "end" and event.record is not None:
        record = event.record
        log("%s %s: joined %s, in the sum %s", where, record.state, record.joined, record.masked)


def run_server(
    grid: Grid, plan: FederationPlan, on_event: OnEvent | None = None, generator: Generator | None = None
) -> FederationResult:
    """Load the provider's side and run the rounds that ``plan.out`` does not hold yet.

    Args:
        generator: instead of the plan's transformer file.

    Raises:
        ConfigError, CorruptFile: before anything is sent.
        RoundAborted: see `SecureFederation`.
    """
    roster = pinned_roster(plan)
    return SecureFederation(plan, Provider(plan, generator), roster, on_event).run(grid)


def pinned_roster(plan: FederationPlan) -> Roster:
    """The organizations' keys: ``OUT/roster.txt``; in a simulation, else, any organization's own roster."""
    if plan.organizations_dir is None or (plan.out / ROSTER).exists():
        return Roster.read(plan.out / ROSTER)
    files = sorted(plan.organizations_dir.glob(f"*/{ORGANIZATION_CONFIG}"))
    if not files:
        raise ConfigError(f"{plan.organizations_dir}: no organization's folder")
    config = load_toml(OrganizationConfig, files[0])
    return Roster(tuple(bytes.fromhex(key) for key in config.secagg.roster))
