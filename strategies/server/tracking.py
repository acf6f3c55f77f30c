"""Each round's figures for TensorBoard, MLflow or Weights & Biases, behind one small Protocol.

Their packages come with ``pip install "gradtf-fl[tracking]"``.

Only what the server knows anyway: counts, seconds, bytes, refusals and how a refinement agreed; nothing that
identifies an organization. A tracker runs in a thread of its own: a server that does not answer delays no round.
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from gradtf_fl.errors import ConfigError
from gradtf_fl.flower import RoundRecord

EXPERIMENT = "gradtf"
WAITING_ROUNDS = 64  # that a slow tracker may be behind; later ones are lost
CLOSE_SECONDS = 10.0  # that the end of a run waits for the tracker
MLFLOW_FILE = "mlflow.db"
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}

WANDB_ENVIRONMENT = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
WANDB_SETTINGS = {
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}

logger = logging.getLogger("gradtf.server")


class Tracker(Protocol):
    """Takes a round's figures."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keep ``values`` of round ``step``; may raise anything."""

    def close(self) -> None:
        """Write what is still held back; nothing comes after."""


def open_tracker(tracking: str, run_name: str = EXPERIMENT) -> Tracker | None:
    """The tracker that a plan's ``tracking`` names: ``tensorboard:DIR``, ``mlflow:URI_OR_DIR``, ``wandb:DIR``, or none
    for "".

    Raises:
        ConfigError: its package is missing, or it cannot be opened.
    """
    kind, _, place = tracking.partition(":")
    if not kind:
        return None
    try:
        return Background(_TRACKERS[kind](place, run_name))
    except ImportError as error:
        raise ConfigError(f'tracking {kind}: pip install "gradtf-fl[tracking]" first ({error})') from error
    except Exception as error:  # each library has its own
        raise ConfigError(f"tracking {kind}: cannot be opened ({type(error).__name__}: {error})") from error


def scalars_of(record: RoundRecord, exchange_seconds: Mapping[str, float]) -> dict[str, float]:
    """An attempt's figures by name; ``exchange_seconds`` by stage."""
    values: dict[str, float] = {
        "completed": record.state == "completed",
        "organizations/joined": record.joined,
        "organizations/masked": record.masked,
        "organizations/unmasked": record.unmasked,
        "organizations/dropped": sum(record.dropped.values()),
        "organizations/refused": sum(record.refused.values()),
        "bytes/up_per_organization": record.bytes_up_per_client,
        "bytes/down_per_organization": record.bytes_down_per_client,
    }
    values |= {f"refused/{code}": count for code, count in record.refused.items()}
    values |= {f"seconds/{part}": seconds for part, seconds in record.seconds.items()}
    values |= {f"exchange_seconds/{stage}": seconds for stage, seconds in exchange_seconds.items()}
    for name in ("taken", "agreement", "without", "kinds"):
        if isinstance(value := record.refinement.get(name), bool | int | float):
            values[f"refinement/{name}"] = value
    return {name: float(value) for name, value in values.items()}


class Background:
    """Another tracker, called from a daemon thread; what it raises is logged, once a text."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._work: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(WAITING_ROUNDS)
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over; queue.Full when the tracker is too far behind."""
        self._work.put_nowait((step, values))

    def close(self) -> None:
        """Wait a little for the rest; TimeoutError when the tracker still hangs then."""
        self._work.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            raise TimeoutError(f"the tracker has not finished after {CLOSE_SECONDS:g} s")

    def _run(self) -> None:
        complaints = set[str]()
        while True:
            work = self._work.get()
            try:
                if work is None:
                    self._tracker.close()
                else:
                    self._tracker.scalars(*work)
            except Exception as error:
                complaint = f"{type(error).__name__}: {error}"
                if complaint not in complaints:
                    complaints.add(complaint)
                    logger.warning("the run continues, but its tracker is behind: %s", complaint)
            if work is None:
                return


class _TensorBoard:
    """Event files in a folder: ``tensorboard --logdir DIR``."""

    def __init__(self, place: str, run_name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(Path(place) / run_name))  # type: ignore[no-untyped-call]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """A run of the experiment ``gradtf`` on a tracking server, or in DIR/mlflow.db. MLflow's telemetry stays off."""

    def __init__(self, place: str, run_name: str) -> None:
        for name, value in MLFLOW_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        mlflow = importlib.import_module("mlflow")
        self._metric = importlib.import_module("mlflow.entities").Metric
        uri, artifacts = place, None
        if "://" not in place:  # MLflow gave up plain folders; Flower has installed what its SQLite store needs
            folder = Path(place).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{folder / MLFLOW_FILE}", (folder / "artifacts").as_uri()
        self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT, artifacts)
        self._run: str = self._client.create_run(number, run_name=run_name).info.run_id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [self._metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _WeightsAndBiases:
    """A run of the project ``gradtf`` in DIR/wandb. It stays on this machine until ``wandb sync`` sends it.

    ``WANDB_MODE=online`` in the server's environment sends it at once. Neither way sends this machine's name, its
    load, code, output, or reports of errors.
    """

    def __init__(self, place: str, run_name: str) -> None:
        for name, value in WANDB_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        wandb = importlib.import_module("wandb")
        folder = Path(place).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(**WANDB_SETTINGS)
        mode = os.environ["WANDB_MODE"]
        self._run: Any = wandb.init(project=EXPERIMENT, name=run_name, dir=str(folder), mode=mode, settings=settings)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: Mapping[str, Callable[[str, str], Tracker]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WeightsAndBiases,
}
