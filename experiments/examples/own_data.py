"""A federation on your own rows with your own model: DP-SGD, secure aggregation and ledgers; no Grad-Transformer.

Run it (a minute with a model of 1 M parameters). MODEL is a folder or hub id of a decoder, ROWS a file of rows (.jsonl,
.csv) with an input and an output each. With babyllama-tok361-1.0M and ii.first_word_letter.jsonl.gz:

    $ python -W ignore -m experiments.examples.own_data MODEL ROWS
    completed: 2 rounds
    tiny_base: 0.000
    tiny_tuned: 0.125
    tiny_ceiling: 0.771
    org-1: 267 rows, epsilon 7.99 at delta 1e-05
    org-2: 267 rows, epsilon 7.99 at delta 1e-05
    org-3: 266 rows, epsilon 8.00 at delta 1e-05
"""

import sys
import tempfile
from pathlib import Path

from gradtf_fl import SimulationConfig, simulate


def main(model: str, rows: str, out: Path) -> None:
    """Three organizations share the private half of the rows out; print what they gained and what it cost them."""
    config = SimulationConfig(
        tiny=model, llm=model, transformer="none", task={"source": rows}, organizations=3, rounds=2, rows=0,
        test_rows=32, batch=64, epsilon=8.0, out=out / "run",
    )  # fmt: skip
    report = simulate(config)
    print(f"{report.state}: {report.finished_rounds} rounds")
    for name in ("tiny_base", "tiny_tuned", "tiny_ceiling"):
        print(f"{name}: {report.accuracy[name]:.3f}")
    for one in report.organizations:
        print(f"{one.name}: {one.rows} rows, epsilon {one.epsilon:.2f} at delta {one.delta:g}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(tempfile.mkdtemp()))
