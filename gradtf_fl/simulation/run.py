"""``gradtf simulate``: set up a federation's folders, run its ServerApp and ClientApps, measure, report.

The federation is what deployment runs: `strategies` on one side, `clients` on the other, folders with keys
and ledgers on disk. Only the grid between them is in-process (or Flower's Ray simulation).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradtf_fl.adapters import add_results, load_adapter
from gradtf_fl.config import NO_TRANSFORMER, SimulationConfig
from gradtf_fl.file_names import IDENTITY_KEY, LEDGER, LLM_ADAPTER, REPORT, ROUNDS
from gradtf_fl.privacy import DpEvent, Ledger, Unit, epsilon_prv, epsilon_skellam, read_ledger
from gradtf_fl.reports import OrganizationResult, SimulationEvent, SimulationReport, draw_holdings, result_rows
from gradtf_fl.secagg import Identity
from gradtf_fl.simulation.ceiling import CeilingWorker
from gradtf_fl.simulation.engines import Outcome, run_engine, worker_pool
from gradtf_fl.simulation.figures import Figures, Scorer, llm_figures, sum_error, tiny_figures
from gradtf_fl.simulation.run_clock import OnEvent, RunClock, TimeLeft
from gradtf_fl.simulation.run_folder import folders_of, interrupted_run, new_run, placed, rounds_kept
from gradtf_fl.simulation.setup import FederationFolders, build_folders, check_inputs, check_rows
from gradtf_fl.tasks import FederationData, count_units, federation_data

if TYPE_CHECKING:
    from gradtf_fl.flower import RoundEvent
    from strategies import WorkerPool

STAGES_BESIDE_ROUNDS = 6  # load, set up, and the four groups of figures
HOLDINGS = "holdings.png"


def simulate(
    config: SimulationConfig | None = None, on_event: OnEvent | None = None, *, began: float | None = None
) -> SimulationReport:
    """Run a whole federation on this machine: DP-SGD, secure aggregation, ledgers, Grad-Transformer, evaluation.

    >>> from gradtf_fl import SimulationConfig, simulate
    >>> tiny_run = SimulationConfig(organizations=3, rounds=1, steps=2, batch=8, rows=16, test_rows=8, refine=False)
    >>> report = simulate(tiny_run)
    >>> report.state, report.finished_rounds
    ('completed', 1)
    >>> [organization.epsilon <= 8.0 for organization in report.organizations]
    [True, True, True]
    >>> sorted(report.accuracy)[:3]
    ['llm_base', 'llm_ceiling', 'llm_generated']

    Args:
        config: sizes, privacy and protocol of the run; the defaults of `SimulationConfig` when None. Its ``out``
            names a new folder for report, checkpoints and adapters (default: a temporary folder).
        on_event: called at every step of the run, to show progress; nothing is shown when None.
        began: `time.monotonic` when the user's wait began (default: now); ``wall_s`` counts from there.

    Returns:
        the report, also written to ``OUT/report.json``: accuracy of every model and control, epsilon by organization,
        records of rounds, seconds by stage. It comes after a budget refusal or an aborted round too: see its ``state``.

    Raises:
        ConfigError, CorruptFile: nothing was trained.
    """
    config = placed(SimulationConfig() if config is None else config)
    check_inputs(config)
    began = time.monotonic() if began is None else began
    with new_run(config) as out:
        return _simulated(config, out, on_event, began)


def resume(out: Path, on_event: OnEvent | None = None, *, began: float | None = None) -> SimulationReport:
    """Continue the run in ``out`` that was interrupted, with what it was started with.

    Its report is that of a run that was not interrupted, but for seconds: finished rounds stay, the unfinished one is
    played again with the same keys and noise, and an organization that had trained in it keeps its update and its
    charge. Figures are computed again.

    Args:
        out: its folder.
        on_event, began: as for `simulate`.

    Raises:
        ConfigError: ``out`` holds no run, or another process runs it.
        CorruptFile: a file of it is damaged.
    """
    began = time.monotonic() if began is None else began
    with interrupted_run(out) as config:
        check_inputs(config)
        return _simulated(config, out.absolute(), on_event, began)


def _simulated(config: SimulationConfig, out: Path, on_event: OnEvent | None, began: float) -> SimulationReport:
    """The run in ``out``, from where it stands."""
    kept = rounds_kept(out)
    left = TimeLeft(config.organizations, config.rounds - kept)
    clock = RunClock(on_event or _tell_nobody, STAGES_BESIDE_ROUNDS + config.rounds, left, done=kept)
    clock.enter("set up organizations", str(out))
    data = federation_data(config.task, config, config.organizations, config.batch, config.seed, config.person)
    check_rows(config, data)
    folders = folders_of(config, data, out) or build_folders(config, data, out)
    clock.enter("federation")
    with CeilingWorker(config) as ceiling, worker_pool(config) as pool:
        outcome = _run_federation(config, folders, clock, pool)
        figures = _measure(Scorer(config, data, pool), outcome, folders, ceiling, clock)
    clock.leave()
    report = SimulationReport(
        config=config.model_dump(mode="json") | {"budget": config.lifetime_budget, "out": str(out)},
        state=outcome.state,
        reason=outcome.reason,
        wall_s=time.monotonic() - began,
        organizations=tuple(_organizations(config, data, folders, figures)),
        rounds=tuple(_rounds(outcome, folders, config, data)),
        metric=data.metric,
        pictures=_pictures(data, out),
        seconds=clock.seconds,
        out=str(out),
    )
    _complete_card(report)
    report.write(out / REPORT)
    return report


def _complete_card(report: SimulationReport) -> None:
    """Put what was measured into the card of the last round's adapter."""
    if not report.finished_rounds:
        return
    measured = [("Measured as", f"{report.metric}, mean over {len(report.organizations)} simulated organizations")]
    rows = [*measured, *result_rows({**report.accuracy, "performance gap recovered": report.pgr})]
    add_results(Path(report.out) / ROUNDS / str(report.finished_rounds) / LLM_ADAPTER, rows)


def _pictures(data: FederationData, out: Path) -> dict[str, str]:
    """A chart of who holds what, where organizations can differ in it."""
    if not any(len(organization.holds) > 1 for organization in data.organizations):
        return {}
    draw_holdings([(organization.name, organization.holds) for organization in data.organizations], out / HOLDINGS)
    return {"holdings": HOLDINGS}


def _tell_nobody(_: SimulationEvent) -> None:
    """Progress that nobody watches."""


def _run_federation(
    config: SimulationConfig, folders: FederationFolders, clock: RunClock, pool: WorkerPool | None
) -> Outcome:
    def show(event: RoundEvent) -> None:
        clock.left.note(event)
        if event.kind == "closed":  # told with the stage's last reply
            return
        clock.done += event.kind == "end"
        clock.replies = clock.replies + 1 if event.kind == "reply" else 0
        clock.on_event(_shown(event, clock, folders, config))

    return run_engine(config, folders, show, pool)


def _shown(event: RoundEvent, clock: RunClock, folders: FederationFolders, config: SimulationConfig) -> SimulationEvent:
    """A round's event for people: a stage is told when its last organization answered or was lost."""
    told = partial(
        SimulationEvent,
        done=clock.done,
        total=clock.total,
        round=event.round,
        rounds=event.rounds,
        expected=event.expected or None,
        seconds=event.seconds or None,
        left_s=clock.left.seconds(),
    )
    if (record := event.record) is not None:  # the round is over
        dropped = sum(record.dropped.values())
        return told(record.state, joined=record.joined, dropped=dropped, epsilon=_largest_epsilon(folders, config))
    stage_over = clock.replies == event.expected
    lost_now = event.expected - event.joined if stage_over else 0
    return told(
        "train" if event.stage == "advertise" else event.stage or event.kind,
        joined=event.joined if event.expected else None,
        answered=clock.replies,
        dropped=event.dropped + lost_now if event.stage else None,
        passing=event.kind in ("round", "stage") or (event.kind == "reply" and not stage_over),
    )


def _measure(
    scorer: Scorer, outcome: Outcome, folders: FederationFolders, ceiling: CeilingWorker, clock: RunClock
) -> Mapping[str, Figures]:
    """Figures by name, one value per organization; none when no round was finished (nothing to compare)."""
    finished = sum(record.state == "completed" for record in outcome.records)
    if not finished or outcome.global_update is None:
        return {}
    clock.left.figures_begin()
    generated, spec, _ = load_adapter(folders.out / ROUNDS / str(finished) / LLM_ADAPTER)
    ceiling.begin(scorer.pool, finished)
    figures = tiny_figures(scorer, outcome.global_update, finished, clock.enter)
    figures |= llm_figures(scorer, spec, outcome.global_update, generated, clock.enter)
    clock.enter("tune without DP (ceiling)")
    name = "tiny_ceiling" if scorer.config.transformer == NO_TRANSFORMER else "llm_ceiling"
    return figures | {name: ceiling.figures(finished)}


def _organizations(
    config: SimulationConfig,
    data: FederationData,
    folders: FederationFolders,
    figures: Mapping[str, Figures],
) -> list[OrganizationResult]:
    return [
        OrganizationResult(
            name=organization.name,
            rule=organization.rule,
            epsilon=spent_epsilon(folder, config),
            client_epsilon=client_epsilon(folder, config),
            delta=config.delta,
            budget=config.lifetime_budget,
            accuracy={name: values.score[number] for name, values in figures.items()},
            loss={name: values.loss[number] for name, values in figures.items()},
            rows=len(organization.train),
            persons=None if config.person is None else count_units(organization.train),
            test_rows=len(organization.test),
            holds=organization.holds,
        )
        for number, (organization, folder) in enumerate(zip(data.organizations, folders.organizations, strict=True))
    ]


def spent_epsilon(folder: Path, config: SimulationConfig) -> float:
    """Epsilon in an organization's ledger, all charges composed jointly (PRV); 0 before the first one."""
    if not (folder / LEDGER).exists():
        return 0.0
    ledger = Ledger.open(
        folder / LEDGER,
        identity_key=Identity.load(folder / IDENTITY_KEY).private,
        organization=folder.name,
        delta=config.delta,
        budget=config.lifetime_budget,
        unit=Unit(config.person),
    )
    return _epsilon(ledger.events(), config.delta)


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[DpEvent, ...], delta: float) -> float:
    """Organizations with as many rows spent the same."""
    return epsilon_prv(events, delta)


def client_epsilon(folder: Path, config: SimulationConfig) -> float | None:
    """Client-level epsilon in an organization's ledger, all sums composed jointly; None without Skellam noise."""
    if not (folder / LEDGER).exists():
        return None
    events = read_ledger(folder / LEDGER).content.client_level
    return epsilon_skellam(events, config.delta) if events else None


def _largest_epsilon(folders: FederationFolders, config: SimulationConfig) -> float:
    return max(spent_epsilon(folder, config) for folder in folders.organizations)


def _rounds(
    outcome: Outcome, folders: FederationFolders, config: SimulationConfig, data: FederationData
) -> list[Mapping[str, Any]]:
    """Records of all attempts, with what only a simulation can know: the error of the decoded mean."""
    return [
        record.to_json()
        | {"max_abs_error": sum_error(config, folders, record, data) if record.state == "completed" else None}
        for record in outcome.records
    ]
