"""What the person as unit costs: accuracy and loss compared with those of rows, at the same epsilon.

    python -m experiments.paper.person_unit --words FOLDER --out experiments/results/person_unit.json

One organization of 1,024 private rows trains a TinyLM with DP-SGD, 150 steps, epsilon covering all of them. Its rows
are one, four or sixteen of each person, dealt at random: a person with one row is a row, so that line is the row level.
Every way takes 64 rows a step in expectation, so steps cost alike: of four rows a person, 16 persons are drawn. In the
last line each of 64 persons with sixteen rows gives four of them to a step, and four times as many persons are drawn.
House Rules are scored by exact match on 256 fresh rows, word tasks (FOLDER holds a JSONL file of each) by nats a
character. A line of the table is the mean over seeds and half of the 95 % interval; each seed draws its own rows.
What is finished is in the file after each run, and a second start continues from there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.embedded import DELTA, ROWS, TEST_ROWS
from experiments.measuring import interval
from gradtf_fl.adapters import AdaptedModel, AdapterSpec
from gradtf_fl.files import write_whole
from gradtf_fl.privacy import noise_multiplier
from gradtf_fl.tasks import (
    Persons,
    Row,
    encode_rows,
    exact_match,
    house_rules_federation,
    loss_per_character,
    read_rows,
)
from gradtf_fl.training import train_dp

EPSILONS = (2.0, 8.0)
STEPS, BATCH, CLIP, RATE = 150, 64, 0.5, 1e-2
MAX_TOKENS = 64
HOUSE_RULES = "house-rules"


@dataclass(frozen=True)
class Way:
    """Rows a person has, and how many of them enter a step."""

    rows: int
    most: int

    @property
    def name(self) -> str:
        """What the table calls it."""
        if self.rows == 1:
            return "1 row (row level)"
        return f"{self.rows} rows" + (f", {self.most} a step" if self.most < self.rows else "")

    def persons(self, count: int) -> Persons:
        """``count`` rows, dealt in turn; they are in random order."""
        people = count // self.rows
        return Persons(tuple(tuple(range(own, people * self.rows, people)) for own in range(people)), self.most)


WAYS = (Way(1, 1), Way(4, 4), Way(16, 16), Way(16, 4))


def measure(task: str, name: str, train: list[Row], test: list[Row], way: Way, epsilon: float, seed: int) -> float:
    """Score on the test rows of the TinyLM called ``name``: exact match of House Rules, else nats a character."""
    tiny = AdaptedModel.load(name, AdapterSpec(targets=("auto",)), kept=True)
    of_rules = task == HOUSE_RULES
    people = len(train) // way.rows
    batch = BATCH // way.most
    sigma = noise_multiplier(epsilon, DELTA, batch / people, STEPS)
    model = tiny.attach()
    rows = encode_rows(train[: people * way.rows], tiny.tokenizer, MAX_TOKENS, end=not of_rules)
    train_dp(
        model,
        rows,
        sigma=sigma,
        clip=CLIP,
        batch=batch,
        steps=STEPS,
        rate=RATE,
        seed=seed,
        persons=way.persons(len(rows)),
    )
    if of_rules:
        return exact_match(model, encode_rows(test, tiny.tokenizer))
    return loss_per_character(model, tiny.tokenizer, test, MAX_TOKENS)


def rows_of(task: str, words: Path | None, seed: int) -> tuple[list[Row], list[Row]]:
    """Private and test rows, drawn by the seed."""
    if task == HOUSE_RULES:
        held = house_rules_federation("same", 1, ROWS, TEST_ROWS, seed)[0]
        return held.train, held.test
    assert words is not None
    found = read_rows(words / f"{task}.jsonl.gz")
    order = np.random.default_rng([seed, 7]).permutation(len(found))
    count = min(ROWS, 16 * ((len(found) - TEST_ROWS) // 16))
    return [found[i] for i in order[:count]], [found[i] for i in order[count : count + TEST_ROWS]]


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each task, epsilon and way: [mean, half width of the 95 % interval] over seeds; None of one seed."""
    lines: dict[tuple[str, float, str], list[float]] = {}
    for run in runs:
        lines.setdefault((run["task"], run["epsilon"], run["way"]), []).append(run["score"])
    return [
        {
            "task": task,
            "metric": "exact match" if task == HOUSE_RULES else "nats a character",
            "epsilon": epsilon,
            "rows of a person": way,
            "seeds": len(scores),
            "score": [round(value, 4) for value in interval(scores)]
            if len(scores) > 1
            else [round(scores[0], 4), None],
        }
        for (task, epsilon, way), scores in sorted(lines.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/person_unit.json"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--words", type=Path, help="folder of word tasks, a JSONL file of each")
    parser.add_argument("--tasks", nargs="*", default=["fv.antonym", "fv.english-french"], help="of --words")
    parser.add_argument("--tiny", help="TinyLM of the word tasks: folder or name")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    options = parser.parse_args()
    tasks = [(HOUSE_RULES, "embedded:tiny"), *((task, options.tiny) for task in options.tasks if options.words)]
    document: dict[str, Any] = {"delta": DELTA, "rows": ROWS, "steps": STEPS, "rows_a_step": BATCH, "runs": []}
    if options.out.exists():
        document = json.loads(options.out.read_text())
    done = {(run["task"], run["epsilon"], run["way"], run["seed"]) for run in document["runs"]}
    began = time.monotonic()
    for seed in range(options.seeds):
        for task, name in tasks:
            train, test = rows_of(task, options.words, seed)
            for epsilon in EPSILONS:
                for way in WAYS:
                    if (task, epsilon, way.name, seed) in done or time.monotonic() - began > 60 * options.minutes:
                        continue
                    score = measure(task, name, train, test, way, epsilon, seed)
                    run = {"task": task, "epsilon": epsilon, "way": way.name, "seed": seed, "score": score}
                    document["runs"].append(run)
                    document["summary"] = summary(document["runs"])
                    write_whole(options.out, json.dumps(document, indent=1))
                    print(run, flush=True)


if __name__ == "__main__":
    main()
