"""A whole federation in one process: three organizations, two rounds, the ServerApp and ClientApps of a deployment.

Each organization trains its TinyLM adapter under DP-SGD, the server learns the sum of their updates, and the
Grad-Transformer turns the sum into an LLM adapter. Keys, ledgers and adapters lie in a temporary folder.

Run it (about half a minute on two cores):

    python -W ignore -m experiments.examples.simulate_federation
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from gradtf_fl import SimulationConfig, simulate
from gradtf_fl.reports import SimulationEvent, SimulationReport


def main() -> None:
    """Run it, with a line for each finished round, and print what came out."""
    with tempfile.TemporaryDirectory() as folder:
        config = SimulationConfig(organizations=3, rounds=2, epsilon=8.0, refine=False, out=Path(folder) / "run")
        report = simulate(config, show)
        print_figures(report)


def show(event: SimulationEvent) -> None:
    """One line when a round has ended."""
    if event.epsilon is not None:
        print(f"round {event.round} {event.stage}: epsilon {event.epsilon:.2f} spent", flush=True)


def print_figures(report: SimulationReport) -> None:
    """Mean accuracy on the organizations' own test rows."""
    print(f"state: {report.state}")
    for name in ("tiny_base", "tiny_tuned", "llm_base", "llm_generated", "llm_ceiling"):
        print(f"{name}: {report.accuracy[name]:.3f}")


if __name__ == "__main__":
    main()
