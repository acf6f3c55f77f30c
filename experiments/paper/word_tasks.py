"""Word tasks: instructions that no prompt shows, elicited on a real language model, on tasks the provider has not seen.

    python -m experiments.paper.word_tasks --words FOLDER --tiny FOLDER --llm FOLDER \
        --out experiments/results/word_tasks.json

FOLDER of ``--words`` holds one JSONL file of ``{"input", "output"}`` per task; ``--llm`` is SmolLM2-135M-Instruct as
``make real-model`` writes it. A prompt is ``Input: hot`` and ``Output:``, so nothing but tuning tells the task. Rows of
a task are split by the seed: 64 test rows (a quarter at most), of the others one half public and one half private.

The provider tunes both models on the public half of each seen task: its library. An organization tunes the TinyLM on
the private half of one task, seen or unseen, without DP. Each way then makes an LLM update from that TinyLM update,
the library and public prompts (inputs of the task's public half, whose answers are never read). All ways get the same
number of tuning steps. Ceiling: the LLM tuned on the private rows. Oracle ways read public ANSWERS of the unseen task;
they bound what recognition could reach, and no provider has them.

Every tuned update is kept in ``--cache``, in a folder of its settings. The document is written after each task, so a
killed run continues.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.measuring import interval
from experiments.paper.measures.trial import key_of
from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.baselines import Controls, Decoding, continuations
from gradtf_fl.files import PUBLIC, replace_file, write_whole
from gradtf_fl.tasks import Row, TokenRows, encode_rows, read_rows
from gradtf_fl.training import PlainRecipe, StackedAdapters, batch_indices, fine_tune_stacked
from gradtf_fl.transformer import AgreementRecipe, compare, refinement_loss, tune_on_agreement

TEST_ROWS, TUNED_ROWS, MAX_TOKENS, ANSWER_TOKENS = 64, 480, 160, 24
LLM_SPEC = AdapterSpec(targets=("q_proj", "v_proj"), rank=2, alpha=4.0)
TINY_SPEC = AdapterSpec(
    targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), rank=8, alpha=16.0
)
LLM_RECIPE = PlainRecipe(steps=30, batch=16, rate=3e-3)
TINY_RECIPE = PlainRecipe(steps=300, batch=16, rate=3e-3)
CONFIDENCE = 0.5
SHOTS = 8
# One of each pair of near twins (_3 and _5, fv. and ii., cases, languages of one source) stands for both; the twins
# of an unseen task are in neither list. Each unseen task has relatives that are seen, and no twin.
UNSEEN = (
    "fv.choose_last_of_3",  # position: first is seen
    "fv.antonym",  # relation of words: synonym is seen
    "ii.singular_to_plural",  # morphology: capitalization is seen
    "fv.country-capital",  # knowledge: currency is seen
    "fv.animal_v_object_3",  # category: colour, concept, verb, adjective are seen
    "fv.capitalize_last_letter",  # letters: first, second, next are seen
    "fv.english-french",  # translation: German, Spanish are seen
    "fv.next_item",  # order: previous is seen
    "fv.alphabetically_last_3",  # comparison: first is seen
    "ii.num_to_verbal",  # form of a number: no relative
    "ii.sum",  # arithmetic: difference is seen
    "fv.word_length",  # counting: no relative
)
SEEN = (
    "fv.choose_first_of_3",
    "fv.synonym",
    "fv.capitalize",
    "fv.country-currency",
    "fv.color_v_animal_3",
    "fv.concept_v_object_3",
    "fv.object_v_concept_3",
    "fv.verb_v_adjective_3",
    "fv.adjective_v_verb_3",
    "fv.capitalize_first_letter",
    "fv.capitalize_second_letter",
    "fv.lowercase_first_letter",
    "ii.second_word_letter",
    "fv.english-german",
    "fv.english-spanish",
    "fv.prev_item",
    "fv.alphabetically_first_3",
    "ii.diff",
    "ii.larger_animal",
    "fv.park-country",
    "fv.person-occupation",
    "fv.product-company",
)


@dataclass(frozen=True)
class TaskRows:
    """Rows of one task, split."""

    test: list[Row]
    private: list[Row]
    public: list[Row]

    @classmethod
    def read(cls, path: Path, seed: int) -> TaskRows:
        """Of a JSONL file, split by the seed."""
        rows = [Row(f"Input: {row.prompt}\nOutput:", f" {row.answer}\n") for row in read_rows(path)]
        mixed = [rows[i] for i in np.random.default_rng([seed, 11]).permutation(len(rows))]
        held = min(TEST_ROWS, len(mixed) // 4)
        middle = held + (len(mixed) - held) // 2
        return cls(mixed[:held], mixed[held:middle][:TUNED_ROWS], mixed[middle:][:TUNED_ROWS])


@dataclass
class Words:
    """The pair, the tasks and what was tuned already, for one seed."""

    words: Path
    tiny: StackedAdapters
    llm: StackedAdapters
    cache: Path
    seed: int
    seen: Sequence[str]
    _rows: dict[str, TaskRows] = field(default_factory=dict)

    def rows(self, task: str) -> TaskRows:
        """Of a task."""
        if task not in self._rows:
            self._rows[task] = TaskRows.read(self.words / f"{task}.jsonl.gz", self.seed)
        return self._rows[task]

    def encoded(self, side: StackedAdapters, rows: Sequence[Row]) -> TokenRows:
        """Rows as tokens; a line end ends each answer."""
        return encode_rows(rows, side.tokenizer, min(MAX_TOKENS, side.max_tokens))

    def accuracy(self, side: StackedAdapters, update: Tensor, task: str) -> float:
        """Exact match, line end included, on the task's test rows."""
        return float(side.accuracy(side.initial + update[None], self.encoded(side, self.rows(task).test))[0])

    def tuned(self, side: StackedAdapters, rows: Sequence[Row], start: Tensor | None = None) -> Tensor:
        """Update [blocks, block_dim], tuned on ``rows`` from the update ``start``."""
        tokens, recipe = self.encoded(side, rows), TINY_RECIPE if side is self.tiny else LLM_RECIPE
        begin = None if start is None else start[None]
        return fine_tune_stacked(side, tokens, 1, recipe, [[self.seed]], [recipe.steps], start=begin)[0, 0]

    def kept(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """A tensor of the cache, made where it is not there yet."""
        path = self.cache / f"{self.seed}-{name}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(make(), whole := io.BytesIO())
            replace_file(path, whole.getvalue(), PUBLIC)
        found: Tensor = torch.load(path)
        return found

    def update(self, side: StackedAdapters, task: str, half: str) -> Tensor:
        """Of a model tuned on the ``public`` or ``private`` half of a task."""
        name = "tiny" if side is self.tiny else "llm"
        return self.kept(f"{name}-{half}-{task}", lambda: self.tuned(side, getattr(self.rows(task), half)))

    @cached_property
    def library(self) -> tuple[Tensor, Tensor]:
        """TinyLM and LLM updates [E, blocks, block_dim] of the seen tasks."""
        tiny, llm = ([self.update(side, task, "public") for task in self.seen] for side in (self.tiny, self.llm))
        return torch.stack(tiny), torch.stack(llm)

    def answers(self, task: str) -> list[Row]:
        """The task's public prompts with what its tuned TinyLM answers; no answer, no row."""
        theta = self.tiny.initial + self.update(self.tiny, task, "private")
        prompts = [row.prompt for row in self.rows(task).public]
        written = continuations(
            self.tiny, theta[None], [prompts], Decoding(ANSWER_TOKENS, finished=lambda text: True), [self.seed]
        )[0]
        texts = [one.text.strip() for one in written]  # some tokenizers write a space of their own before a word
        return [Row(prompt, f" {text}\n") for prompt, text in zip(prompts, texts, strict=True) if text]

    def composed(self, start: Tensor, rows: Sequence[Row]) -> Tensor:
        """``start`` [E] are weights of the library's tasks; each block's own weights are fitted to ``rows``.

        The loss is refinement's, with weight `CONFIDENCE`.
        """
        updates, tokens = self.library[1], self.encoded(self.llm, rows)
        weights = nn.Parameter(start[:, None].repeat(1, updates.shape[1]))
        optimizer = torch.optim.Adam([weights], lr=0.1)
        order = batch_indices([self.seed, 5], len(tokens), LLM_RECIPE.batch, LLM_RECIPE.steps)
        for step, index in enumerate(order):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / len(order))
            part = tokens.take(torch.from_numpy(index))
            theta = self.llm.initial + (weights[:, :, None] * updates).sum(0)
            loss = refinement_loss(self.llm.answer_logits(theta[None], part), part.answer_labels(), CONFIDENCE)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        with torch.no_grad():
            return (weights[:, :, None] * updates).sum(0)

    def in_context(self, task: str, shown: Sequence[Row]) -> float:
        """Exact match of the untuned LLM that sees ``shown`` rows before each test prompt."""
        head = "".join(f"{row.prompt}{row.answer}\n" for row in shown)
        rows = [Row(head + row.prompt, row.answer) for row in self.rows(task).test]
        tokens = encode_rows(rows, self.llm.tokenizer, 1024)
        return float(self.llm.accuracy(self.llm.initial[None], tokens)[0])


def measure(own: Words, task: str) -> dict[str, float]:
    """Accuracy of each way on one task."""
    tiny_side, llm_side = own.tiny, own.llm
    update, public = own.update(tiny_side, task, "private"), own.rows(task).public
    tiny_library, library = own.library
    controls = Controls.fit(tiny_library.numpy(), library.numpy())
    near = controls.nearest_set(update.numpy())
    answered = own.answers(task)
    right = {row.prompt: row.answer for row in public}
    scores = {
        "TinyLM base": own.accuracy(tiny_side, torch.zeros_like(update), task),
        "TinyLM tuned": own.accuracy(tiny_side, update, task),
        "answers that are right": float(np.mean([row.answer == right[row.prompt] for row in answered] or [0])),
        "LLM base": own.accuracy(llm_side, torch.zeros_like(library[0]), task),
        "LLM tuned (ceiling)": own.accuracy(llm_side, own.update(llm_side, task, "private"), task),
        "mean": own.accuracy(llm_side, library.mean(0), task),
        "nearest": own.accuracy(llm_side, library[near], task),
        "ridge": own.accuracy(llm_side, torch.from_numpy(controls.ridge(update.numpy())), task),
        "in-context, TinyLM's answers": own.in_context(task, answered[:SHOTS]),
        "in-context, right answers (oracle)": own.in_context(task, public[:SHOTS]),
    }
    named = torch.zeros(len(library))
    named[near] = 1.0

    def way(name: str, make: Callable[[], Tensor]) -> Tensor:
        made = own.kept(f"way-{name}-{task}", make)
        scores[name] = own.accuracy(llm_side, made, task)
        return made

    way("composed from right answers (oracle)", lambda: own.composed(named, public))
    if len(answered) >= LLM_RECIPE.batch:
        way("weak-to-strong", lambda: own.tuned(llm_side, answered))
        way("nearest, tuned as long", lambda: own.tuned(llm_side, answered, library[near]))
        composed = way("composed", lambda: own.composed(named, answered))
        tokens = own.encoded(llm_side, answered)
        scores["agreed"] = float(compare(llm_side, composed[None], tokens).agreement)
        recipe = AgreementRecipe(passes=1, least=LLM_RECIPE.batch, tuning=LLM_RECIPE, seed=own.seed)
        way("composed, tuned on agreement", lambda: tune_on_agreement(llm_side, composed[None], tokens, recipe)[0])
    scores["nearest task"] = near
    return scores


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean of each way over tasks, and the half width of its 95 % interval over tasks and seeds, by group."""
    groups: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for name, score in run["scores"].items():
            if name != "nearest task":
                groups.setdefault(run["group"], {}).setdefault(name, []).append(score)
    return {
        group: {
            name: [round(value, 4) for value in interval(values)] if len(values) > 1 else [round(values[0], 4), None]
            for name, values in ways.items()
        }
        for group, ways in groups.items()
    }


def main() -> None:
    """Measure what is not in the document yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=Path, required=True, help="folder of word tasks")
    parser.add_argument("--tiny", required=True, help="TinyLM: folder or name")
    parser.add_argument("--llm", required=True, help="LLM: folder or name")
    parser.add_argument("--out", type=Path, default=Path("build/word_tasks.json"))
    parser.add_argument("--cache", type=Path, default=Path("build/word-tasks"))
    parser.add_argument("--unseen", nargs="*", default=list(UNSEEN))
    parser.add_argument("--seen", nargs="*", default=list(SEEN), help="the library")
    parser.add_argument("--scored", nargs="*", default=list(SEEN[:6]), help="seen tasks to measure")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no task after so many")
    options = parser.parse_args()
    tiny, llm = StackedAdapters.load(options.tiny, TINY_SPEC), StackedAdapters.load(options.llm, LLM_SPEC)
    settings: dict[str, Any] = {
        "tiny": Path(options.tiny).name,
        "llm": Path(options.llm).name,
        "library": options.seen,
        "tuning": {"llm": asdict(LLM_RECIPE), "tiny": asdict(TINY_RECIPE), "rows": TUNED_ROWS},
    }
    document: dict[str, Any] = {**settings, "runs": []}
    if options.out.exists():
        document = json.loads(options.out.read_text())
        if differing := [name for name, value in settings.items() if document.get(name) != value]:
            raise SystemExit(f"{options.out}: measured with a different {', '.join(differing)}; name another --out")
    done = {(run["task"], run["seed"]) for run in document["runs"]}
    began = time.monotonic()
    for seed in range(options.seeds):
        own = Words(options.words, tiny, llm, options.cache / key_of(settings), seed, options.seen)
        for task in (*options.unseen, *options.scored):
            if (task, seed) in done or time.monotonic() - began > 60 * options.minutes:
                continue
            group = "seen" if task in options.seen else "unseen"
            run = {"task": task, "group": group, "seed": seed, "scores": measure(own, task)}
            document["runs"].append(run)
            document["summary"] = summary(document["runs"])
            write_whole(options.out, json.dumps(document, indent=1))
            print(run, flush=True)


if __name__ == "__main__":
    main()
