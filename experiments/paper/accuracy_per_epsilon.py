"""Accuracy for the same epsilon: ways to clip, to add noise and to use it, on House Rules and on a real pair.

    python -m experiments.paper.accuracy_per_epsilon house --out experiments/results/accuracy_per_epsilon.json
    python -m experiments.paper.accuracy_per_epsilon text --out experiments/results/accuracy_per_epsilon_text.json

Every way trains in three rounds whose steps together cost epsilon, by its own accounting (`private_ways`). Its learning
rate is tuned first, by the same three trials at epsilon 1 for every way, on the provider's public rows: of House Rules
those of rules and code pairs that are not measured, of text those of documents that are not measured.

- house: one organization alone with 1,024 rows of each of two rules. Exact match of the TinyLM. What wins there is also
  measured on the mean of a federation of five, and on the LLM with the update generated from it.
- text: one organization with 256 windows of Shakespeare, 25 steps a round. Loss per character of stories260K.

A trial takes 2 to 8 s of one core. What is finished is in the file ``--work``, and a second
start continues from there.

Gains are paired: against the present way of the same seed, so on the same rules, rows and test rows. A way wins where
its mean gain on five seeds is larger than half of its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from experiments.embedded import DELTA
from experiments.measuring import PACKAGES, interval, machine, revision
from experiments.paper.banded_noise import error_of
from experiments.paper.private_ways import PRESENT, Way, calibrated, matrix_of, train
from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.baselines import score_rows
from gradtf_fl.config import TaskSection
from gradtf_fl.curation import as_token_rows, encode_causal
from gradtf_fl.files import write_whole
from gradtf_fl.tasks import HiddenTask, Row, TokenRows, read_task_rows
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.training import StackedAdapters, stack_rows
from gradtf_fl.transformer import GradTransformer, embedded_checkpoint

EPSILONS = (0.5, 1.0, 8.0)
ROUNDS, MEMBERS = 3, 5
RATES = (1e-2, 2e-2, 4e-2)
TUNING_EPSILON, LEAST_SEEDS = 1.0, 4
WAYS: dict[str, Way] = {
    "tuned rate": PRESENT,
    "adaptive clip": Way(clipping="adaptive"),
    "AUTO-S": Way(clipping="auto"),
    "2 bands": Way(bands=2),
    "4 bands": Way(bands=4),
    "B only": Way(only_b=True),
    "25 steps of 128": Way(batch=128, steps=25),
    "12 steps of 256": Way(batch=256, steps=12),
    "rate falls to 0": Way(decay=True),
    "mean of last half": Way(average=0.5),
    "Adam without noise": Way(rule="adam-corrected"),
    "momentum": Way(rule="momentum"),
    "momentum and 4 bands": Way(rule="momentum", bands=4),
}
"""Each with its own rate; the present way keeps its own of 0.01."""
FACTORS = {"adam": 1.0, "adam-corrected": 0.5, "momentum": 5.0}
"""Of the rates that are tried, by rule: about where the three rules move an adapter equally far."""
DEFAULT = "present"
UNTUNED = {
    DEFAULT: PRESENT,
    "half the rate": Way(rate=PRESENT.rate / 2),
    "4 bands, half the rate": Way(bands=4, rate=PRESENT.rate / 2),
    "a quarter of the rate": Way(rate=PRESENT.rate / 4),
}
"""Those after the first are controls: more noise a step makes Adam's moves smaller, which alone may be a gain."""
SIZES, BANDS = (1024, 4096, 16384), (1, 2, 4, 8, 16)
Scores = dict[str, float]


@dataclass(frozen=True)
class Sets:
    """What one seed trains on and scores with; federations of `MEMBERS` and organizations alone take turns.

    Attributes:
        rows: of every organization, ordered one after the other.
        groups: the federation of each.
        tests: of each task.
    """

    rows: TokenRows
    groups: list[int]
    tests: Any


class Pair(Protocol):
    """A TinyLM with its tasks.

    Attributes:
        rows: of an organization.
        steps: of a round, where the present way has 50.
        federated: whether federations are measured too.
        less_is_better: in the scores.
    """

    name: str
    rows: int
    steps: int
    federated: bool
    less_is_better: bool

    def sets(self, seed: int, public: bool, alone: bool) -> Sets:
        """Rows of organizations: private ones to measure, or the provider's to tune."""

    def train(self, sets: Sets, sigma: float, way: Way, seed: int) -> Tensor:
        """Updates of every federation in ``sets``."""

    def scores(self, updates: Tensor, sets: Sets) -> Scores:
        """``one``, of federations also ``five`` and ``generated``; means over tasks."""


class House:
    """House Rules, on the embedded pair."""

    name, rows, less_is_better = "house", 1024, False
    steps, federated = 50, True
    RULES, TUNING_RULES, TEST, HELD = 2, 2, 256, 1000

    def __init__(self) -> None:
        self._transformer = GradTransformer.load(embedded_checkpoint())
        self._tiny, self._llm = (
            StackedAdapters.load(side.model, side.spec) for side in (self._transformer.source, self._transformer.target)
        )

    def rules(self, seed: int, public: bool) -> list[hr.Rule]:
        """Two rules that leave an LLM something to add; those of tuning are never measured."""
        order = np.random.default_rng(7).permutation(len(hr.RULES_WITH_A_GAP))
        names = [hr.RULES_WITH_A_GAP[i] for i in order]
        if public:
            return [hr.rule_named(name) for name in names[: self.TUNING_RULES]]
        chosen = np.random.default_rng([seed, 12]).choice(names[self.TUNING_RULES :], self.RULES, replace=False)
        return [hr.rule_named(name) for name in chosen]

    def sets(self, seed: int, public: bool, alone: bool) -> Sets:
        rng = np.random.default_rng([seed, 99, int(public)])
        tasks = [HiddenTask((rule,)) for rule in self.rules(seed, public)]
        if public:
            pairs = hr.code_pairs("public")
            train_on, test_on = pairs[self.HELD :], pairs[: self.HELD]
        else:
            train_on, test_on = hr.code_pairs("private"), hr.code_pairs("test")
        groups = federations(len(tasks), alone)
        rows = [self._draw(rng, task, train_on, self.rows) for task in tasks for _ in range(len(groups) // len(tasks))]
        tests = [self._draw(rng, task, test_on, self.TEST) for task in tasks]
        return Sets(stack_rows(rows), groups, stack_rows(tests))

    @staticmethod
    def _draw(rng: np.random.Generator, task: HiddenTask, pairs: np.ndarray, count: int) -> TokenRows:
        chosen = pairs[rng.choice(len(pairs), count, replace=False)]
        rule = np.full(count, task.rules[0].index)
        return as_token_rows(hr.encode(rule, chosen[:, 0], chosen[:, 1], np.zeros((count, 3), bool)))

    def train(self, sets: Sets, sigma: float, way: Way, seed: int) -> Tensor:
        return train(self._tiny, sets.rows, sets.groups, sigma, way, [seed, 21], ROUNDS)

    def scores(self, updates: Tensor, sets: Sets) -> Scores:
        if len(updates) == self.RULES:
            return {"one": float(self._tiny.accuracy(self._tiny.initial + updates, sets.tests).mean())}
        five, one = updates[0::2], updates[1::2]
        made = torch.from_numpy(np.stack([self._transformer.generate(update.numpy()) for update in five]))
        shares = {
            "one": self._tiny.accuracy(self._tiny.initial + one, sets.tests),
            "five": self._tiny.accuracy(self._tiny.initial + five, sets.tests),
            "generated": self._llm.accuracy(self._llm.initial + made, sets.tests),
        }
        return {name: float(share.mean()) for name, share in shares.items()}


class Text:
    """stories260K on windows of Shakespeare, which it was not trained on: one organization alone."""

    name, rows, less_is_better = "text", 256, True
    steps, federated = 25, False
    TEST, WINDOW = 256, 16

    def __init__(self, shared: Path) -> None:
        self._tiny = StackedAdapters.load(str(shared / "models" / "stories260K"), AdapterSpec())
        task = TaskSection(format="text", window=self.WINDOW)
        self._tasks = read_task_rows(str(shared / "data" / "text" / "tinyshakespeare"), task)

    def sets(self, seed: int, public: bool, alone: bool) -> Sets:
        rng = np.random.default_rng([seed, 98, int(public)])
        source = self._tasks.public if public else self._tasks.private
        held = self._tasks.judged if public else self._tasks.test
        chosen = [source[i].row for i in rng.choice(len(source), self.rows, replace=False)]
        tests: list[Row] = [held[i].row for i in rng.choice(len(held), self.TEST, replace=False)]
        encoded = encode_causal(chosen, self._tiny.tokenizer, self._tiny.max_tokens)
        return Sets(encoded, [0], tests)

    def train(self, sets: Sets, sigma: float, way: Way, seed: int) -> Tensor:
        return train(self._tiny, sets.rows, sets.groups, sigma, way, [seed, 21], ROUNDS)

    def scores(self, updates: Tensor, sets: Sets) -> Scores:
        theta = self._tiny.initial + torch.cat([torch.zeros_like(updates), updates])
        found = score_rows(
            lambda rows: self._tiny.answer_logits(theta, rows),
            [sets.tests] * len(theta),
            self._tiny.tokenizer,
            self._tiny.max_tokens,
        ).loss_per_character
        return {"untuned": found[0], "one": found[1]}


def federations(tasks: int, alone: bool = False) -> list[int]:
    """For each task one organization alone, or before it a federation of `MEMBERS`."""
    if alone:
        return list(range(tasks))
    return [number for task in range(tasks) for number in (*[2 * task] * MEMBERS, 2 * task + 1)]


class Work:
    """Finished trials, a line of JSON each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf8").splitlines() if path.exists() else []
        self.done: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def trial(
        self, pair: Pair, name: str, way: Way, epsilon: float, seed: int, *, public: bool = False, alone: bool = True
    ) -> dict[str, Any]:
        """The trial's line; computed without one yet."""
        key = {"way": name, "epsilon": epsilon, "seed": seed, "public": public, "alone": alone, "rate": way.rate}
        for line in self.done:
            if line.items() >= key.items():
                return line
        began = time.monotonic()
        sigma, sets = calibrated(way, epsilon, DELTA, pair.rows, ROUNDS), pair.sets(seed, public, alone)
        scores = pair.scores(pair.train(sets, sigma, way, seed), sets)
        line = {**key, "sigma": sigma, **scores, "seconds": round(time.monotonic() - began, 2)}
        self.done.append(line)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf8") as out:
            out.write(json.dumps(line) + "\n")
        print(json.dumps(line), file=sys.stderr, flush=True)
        return line


def pair_way(pair: Pair, way: Way) -> Way:
    """The way with a batch that is the same share of the pair's rows as it is of 1,024, and with the pair's steps."""
    return replace(way, batch=way.batch * pair.rows // 1024, steps=way.steps * pair.steps // PRESENT.steps)


def tuned(pair: Pair, work: Work, name: str) -> Way:
    """The way with the best of its rates, by one organization alone on public rows."""
    trials = []
    for rate in RATES:
        way = pair_way(pair, replace(WAYS[name], rate=rate * FACTORS[WAYS[name].rule]))
        line = work.trial(pair, name, way, TUNING_EPSILON, 0, public=True)
        trials.append((line["one"] * (-1 if pair.less_is_better else 1), way))
    return max(trials, key=lambda trial: trial[0])[1]


def measured(pair: Pair, work: Work, names: Sequence[str], seeds: int) -> None:
    """One organization alone in every way and at every epsilon; then federations in those that win somewhere."""
    ways = {name: pair_way(pair, way) for name, way in UNTUNED.items()}
    ways |= {name: tuned(pair, work, name) for name in names}
    for name, way in ways.items():
        for epsilon in EPSILONS:
            for seed in range(seeds):
                work.trial(pair, name, way, epsilon, seed)
    rows = summary(work.done, pair.less_is_better)
    winners = dict.fromkeys(row["way"] for row in rows if row.get("one_wins"))
    for name in (DEFAULT, *winners) if pair.federated else ():
        for epsilon in EPSILONS:
            for seed in range(seeds):
                work.trial(pair, name, ways[name], epsilon, seed, alone=False)


def summary(lines: Sequence[Mapping[str, Any]], less_is_better: bool, alone: bool = True) -> list[dict[str, Any]]:
    """A row for each way, epsilon and rate: [mean, half of the 95 % interval] of the scores and of their gains."""
    of: dict[tuple[str, float, float], list[Mapping[str, Any]]] = {}
    for line in lines:
        if not line["public"] and line["alone"] == alone:
            of.setdefault((line["way"], line["epsilon"], line["rate"]), []).append(line)
    rows, sign = [], -1 if less_is_better else 1
    base = {(line["epsilon"], line["seed"]): line for (way, *_), mine in of.items() if way == DEFAULT for line in mine}
    for (name, epsilon, rate), mine in of.items():
        row = {"way": name, "epsilon": epsilon, "seeds": len(mine), "rate": rate, "sigma": mine[0]["sigma"]}
        for what in ("one", "five", "generated"):
            if what not in mine[0]:
                continue
            row[what] = rounded([line[what] for line in mine])
            pairs = [(line, base[epsilon, line["seed"]]) for line in mine if (epsilon, line["seed"]) in base]
            if name != DEFAULT and pairs:
                gain = rounded([sign * (line[what] - other[what]) for line, other in pairs])
                row |= {f"{what}_gain": gain, f"{what}_wins": len(pairs) >= LEAST_SEEDS and gain[0] > gain[1]}
        rows.append(row)
    return rows


def noise_of_sums() -> list[dict[str, float]]:
    """Root mean squared noise of all sums of a round's gradients, by arithmetic: independent noise is 1."""
    found = []
    for rows in SIZES:
        for epsilon in EPSILONS:
            alone = calibrated(PRESENT, epsilon, DELTA, rows, ROUNDS) * error_of(matrix_of(PRESENT))
            for bands in BANDS:
                way = replace(PRESENT, bands=bands)
                sigma = calibrated(way, epsilon, DELTA, rows, ROUNDS)
                share = sigma * error_of(matrix_of(way)) / alone
                row = {"rows": rows, "epsilon": epsilon, "bands": bands, "sigma": sigma, "noise": round(share, 4)}
                found.append(row)
    return found


def rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in interval(values)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=("house", "text"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, help="file of finished trials (default: build/accuracy-PAIR.jsonl)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ways", help="names between commas (default: all)")
    parser.add_argument("--finished", action="store_true", help="train nothing: report what the file of trials holds")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="text: folder with models/ and data/")
    options = parser.parse_args()
    names = options.ways.split(",") if options.ways else list(WAYS)
    torch.set_num_threads(1)
    kind: type[House] | type[Text] = House if options.pair == "house" else Text
    work = Work(options.work or Path(f"build/accuracy-{kind.name}.jsonl"))
    if not options.finished:
        measured(House() if kind is House else Text(options.shared), work, names, options.seeds)
    document = {
        "pair": kind.name,
        "delta": DELTA,
        "rows": kind.rows,
        "rounds": ROUNDS,
        "steps": kind.steps,
        "revision": revision(),
        "machine": machine(PACKAGES),
        "rates": RATES,
        "alone": summary(work.done, kind.less_is_better),
        "federations": summary(work.done, kind.less_is_better, alone=False),
        "noise_of_sums": noise_of_sums() if kind is House else None,
        "trials": work.done,
    }
    text = json.dumps(document, indent=1) + "\n"
    if options.out is not None:
        write_whole(options.out, text)
    print(json.dumps(document["alone"], indent=1))


if __name__ == "__main__":
    main()
