"""``python -m experiments.bench.own_pair DIR``: own models and data from one file, by the four commands of a stranger.

    gradtf init      a pair of two small real models with different tokenizers, on two data sets
    gradtf check
    gradtf prepare   --yes
    gradtf simulate  several times, each with another seed: other holders of the private rows, other noise

Each command is a process of its own and is timed. The JSON holds what they reported: what the provider judged on public
rows that no shadow set has, and each federation's figures on private rows, with every control.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.measuring import PACKAGES, machine, revision
from gradtf_fl.files import write_whole

TINY, LLM = "models/stories260K", "models/babyllama-tok361-1.0M"
SOURCES = ("data/dialogsum", "data/gsm8k")


def main() -> None:
    """Run, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder of the project")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with models/ and data/")
    parser.add_argument("--seeds", type=int, default=1, help="federations, with seeds from 0 on")
    parser.add_argument("--workers", type=int, default=2, help="processes that curate")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    project, seconds = str(given.folder / "federation.toml"), {}
    sources = [part for source in SOURCES for part in ("--task", str(given.shared / source))]
    pair = ["--tiny", str(given.shared / TINY), "--llm", str(given.shared / LLM)]
    seconds["init"] = timed("init", str(given.folder), *pair, *sources)[0]
    seconds["check"] = timed("check", "--config", project)[0]
    seconds["prepare"], prepared = timed("prepare", "--config", project, "--yes", "--workers", str(given.workers))
    federations = []
    for seed in range(given.seeds):
        out = str(given.folder / f"run-{seed}")
        seconds[f"simulate {seed}"], report = timed("simulate", "--config", project, "--seed", str(seed), "--out", out)
        federations.append({"seed": seed} | {key: report[key] for key in KEPT})
    document = {
        "command": "python -m experiments.bench.own_pair " + " ".join(sys.argv[1:]),
        "revision": revision(),
        "machine": machine(PACKAGES),
        "pair": {"tiny": TINY, "llm": LLM},
        "sources": SOURCES,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "judgement": prepared["judgement"],
        "federations": federations,
    }
    text = json.dumps(document, indent=1) + "\n"
    print(text)
    if given.out is not None:
        write_whole(given.out, text)


KEPT = ("state", "metric", "accuracy", "pgr", "gain_recovered", "organizations")


def timed(*arguments: str) -> tuple[float, dict[str, Any]]:
    """Seconds of a command, and the JSON that it printed; its progress is shown."""
    print("$ gradtf", *arguments, file=sys.stderr)
    began = time.monotonic()
    command = [sys.executable, "-m", "gradtf_fl.cli.main", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return time.monotonic() - began, document


if __name__ == "__main__":
    main()
