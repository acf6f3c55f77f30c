"""The task library: a mixture that the Grad-Transformer can't generate is composed of tasks that the provider knows.

Where prompts show which of several tasks they belong to, the sum of updates holds several tasks at once, and of such
mixtures there are far more than the Grad-Transformer was trained on. But each kind of prompt follows ONE task, and
the provider has tuned its LLM on tasks: it knows their updates and which tokens their prompts hold. So it

1. sorts the public prompts into kinds: those that the same known tasks could belong to, as their tokens say;
2. lets every such task's LLM answer some prompts of the kind, and asks the tuned TinyLM how likely it finds each
   answer. One answer proves little, since the TinyLM is often wrong, but over the prompts of one kind the right task is
   the one that it finds likeliest by far, where the TinyLM has learned it;
3. asks the first round's sum, too, which is nearly a weighted sum of what each task's update looks like (`unmixing`):
   where every organization has a task of its own, their average answers none of them, but the sum names all of them;
4. lets the best task of each kind answer all its prompts, and tunes the LLM on these answers, from the update that it
   would have used otherwise. That update answers the kinds that no known task explains. Where answers of a kind end,
   the LLM learns to end them.

If all prompts are of one kind there is nothing to compose, and nothing changes. Privacy: post-processing of
the sum and public prompts, as in `refinement`. It recognises tasks and learns none: a kind of prompts whose task the
provider has never seen is left as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gradtf_fl.adapters import ASSETS
from gradtf_fl.baselines import Decoding, continuations
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.files import PUBLIC, replace_file
from gradtf_fl.tasks import IGNORED, Generated, Row, WrittenRows, encode_rows, encode_written
from gradtf_fl.training import PlainRecipe, StackedAdapters, fine_tune_stacked
from gradtf_fl.transformer.unmixing import unmix


@dataclass(frozen=True)
class TaskLibrary:
    """E tasks that the provider tuned the LLM on.

    Attributes:
        updates: LLM updates float32 [E, L2, n2].
        signatures: TinyLM updates float32 [E, L1, n1] of organizations that have the task, after the first round.
        tokens: which tokens of the LLM's vocabulary the prompts of a task hold, bool [E, V].
    """

    updates: Tensor
    signatures: Tensor
    tokens: Tensor

    @classmethod
    def load(cls, path: Path) -> TaskLibrary:
        """Of a file that `save` wrote; ConfigError when it is missing, CorruptFile when it is something else."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not path.is_file():
            raise ConfigError(f"known tasks {path}: no such file")
        try:
            tensors = load_file(path)
            updates, signatures = tensors["updates"].float(), tensors["signatures"].float()
            tokens = tensors["tokens"].bool()
        except (OSError, SafetensorError, KeyError) as error:
            raise CorruptFile(f"known tasks {path}: damaged or something else ({error})") from error
        counts = {len(updates), len(signatures), len(tokens)}
        if (updates.dim(), signatures.dim(), tokens.dim()) != (3, 3, 2) or len(counts) > 1:
            shapes = {"updates": updates, "signatures": signatures, "tokens": tokens}
            found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in shapes.items())
            raise CorruptFile(f"known tasks {path}: {found}")
        return cls(updates, signatures, tokens)

    def save(self, path: Path) -> None:
        """Write it atomically, updates in float16: half the size, the same answers."""
        from safetensors.torch import save

        tensors = {
            "updates": self.updates.half(),
            "signatures": self.signatures.half(),
            "tokens": self.tokens.byte(),
        }
        replace_file(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}), PUBLIC)

    @property
    def sha256(self) -> str:
        """Of its content, hex."""
        parts = (self.updates, self.signatures, self.tokens)
        return hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()

    def could_be(self, held: Tensor) -> Tensor:
        """Whether a prompt could be of a task, bool [E, N]: all of its tokens, ``held`` [N, V], are in the task's."""
        foreign: Tensor = (~self.tokens).float() @ held.float().T
        return foreign == 0


def embedded_tasks() -> TaskLibrary:
    """Every public House Rule, for the embedded pair; ``python -m experiments.embedded.tune_known_tasks`` makes it."""
    return TaskLibrary.load(ASSETS / "known-tasks.safetensors")


@dataclass(frozen=True)
class KnownRecipe:
    """How tasks are told apart and composed.

    Attributes:
        probes: prompts of a kind that its tasks are compared on.
        least_kind: prompts of a kind at least; the update at hand answers smaller ones.
        floor: added to each probability, so that no single prompt rules a task out.
        likelihood: weight of the TinyLM's nats a prompt against the log of what the first sum leaves unexplained.
        handicap: nats a prompt by which the update at hand must be likelier than the best task to be preferred: it was
            fitted to the TinyLM, whose mistakes it therefore shares.
        unexplained: the update at hand is no candidate where known tasks leave less of the first sum unexplained (a
            share of its squared length; a task that the provider never saw left .23 to .54, five known ones .1).
        tuning: of the LLM on the answers, from the update at hand.
    """

    probes: int = 64
    least_kind: int = 16
    floor: float = 1e-2
    likelihood: float = 0.08
    handicap: float = 1.5
    unexplained: float = 0.2
    tuning: PlainRecipe = PlainRecipe(steps=300, batch=48, rate=1.5e-2)


@dataclass(frozen=True)
class PromptKind:
    """Prompts (their places) that the same ``tasks`` could belong to."""

    prompts: tuple[int, ...]
    tasks: tuple[int, ...]


def sort_prompts(could_be: Tensor, least: int) -> list[PromptKind]:
    """Kinds of at least ``least`` prompts and one task, by first prompt; ``could_be`` bool [E, N]."""
    places: dict[tuple[int, ...], list[int]] = {}
    for n, column in enumerate(could_be.T):
        places.setdefault(tuple(column.nonzero().flatten().tolist()), []).append(n)
    return [PromptKind(tuple(own), tasks) for tasks, own in places.items() if tasks and len(own) >= least]


class KnownTasks:
    """What is known of the public prompts before any federation: their kinds, and each task's answers to probes."""

    def __init__(
        self,
        llm: StackedAdapters,
        library: TaskLibrary,
        prompts: Sequence[str],
        max_new_tokens: int,
        recipe: KnownRecipe = KnownRecipe(),
    ) -> None:
        self.llm, self.library, self.prompts, self.recipe = llm, library, list(prompts), recipe
        self.decoding = Decoding(max_new_tokens)
        found = sort_prompts(library.could_be(_tokens_held(llm, self.prompts)), recipe.least_kind)
        self.kinds = found if len(found) > 1 else []
        """Empty where all prompts are of one kind."""
        self._answers = [
            _texts(self._answer(library.updates[list(kind.tasks)], self._probes(kind))) for kind in self.kinds
        ]

    def _probes(self, kind: PromptKind) -> list[str]:
        return [self.prompts[n] for n in kind.prompts[: self.recipe.probes]]

    def _answer(self, updates: Tensor, prompts: Sequence[str]) -> list[list[Generated]]:
        theta = self.llm.initial + updates.to(self.llm.initial.device)
        return continuations(self.llm, theta, [prompts] * len(updates), self.decoding)

    def put_together(
        self,
        tiny: StackedAdapters,
        updates: Tensor,
        at_hand: Tensor,
        firsts: Tensor | None = None,
        end: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """LLM updates for K TinyLM updates, composed if the task library explains the TinyLM.

        Args:
            updates: float32 [K, L1, n1].
            at_hand: float32 [K, L2, n2], what is used otherwise.
            firsts: as ``updates``, after the first round; ``updates`` themselves where there was one only.
            end: the TinyLM ends its answers.

        Returns:
            float32 [K, L2, n2], and from how many kinds of prompts each is: int64 [K], 0 where it is at hand.
        """
        made, counts = at_hand.clone(), torch.zeros(len(updates), dtype=torch.long)
        for k, (update, first) in enumerate(zip(updates, updates if firsts is None else firsts, strict=True)):
            chosen = self.choose(tiny, update, at_hand[k], first, end)
            if any(task is not None for task in chosen):
                made[k], counts[k] = self.distil(chosen, at_hand[k]), len(chosen)
        return made, counts

    def choose(
        self, tiny: StackedAdapters, update: Tensor, at_hand: Tensor, first: Tensor, end: bool = False
    ) -> list[int | None]:
        """The task that explains TinyLM update ``update`` [L1, n1], and ``first`` [L1, n1] after the first round, best,
        for each kind of prompts; None where the LLM update ``at_hand`` [L2, n2] does."""
        recipe, chosen = self.recipe, list[int | None]()
        unmixed = unmix(self.library.signatures, first.cpu(), [kind.tasks for kind in self.kinds])
        for kind, answers, residuals in zip(self.kinds, self._answers, unmixed.residuals, strict=True):
            probes = self._probes(kind)
            offered = [*answers, *_texts(self._answer(at_hand[None], probes))]
            scores = self.scores(tiny, update, probes, offered, end).mean(1)
            best = int((recipe.likelihood * scores[:-1] - residuals).argmax())
            explained = unmixed.unexplained < recipe.unexplained
            explained = explained or float(scores[best]) > float(scores[-1]) - recipe.handicap
            chosen.append(kind.tasks[best] if explained else None)
        return chosen

    def scores(
        self,
        tiny: StackedAdapters,
        update: Tensor,
        probes: Sequence[str],
        answers: Sequence[Sequence[str]],
        end: bool = False,
    ) -> Tensor:
        """log(p + floor) [E, R] of the probability that the tuned TinyLM gives to answers [E][R] to ``probes`` [R], and
        with ``end`` to stopping there."""
        places: dict[tuple[int, str], int] = {}
        index = [[places.setdefault((n, one), len(places)) for n, one in enumerate(own)] for own in answers]
        rows = [Row(probes[n], answer) for n, answer in places]
        tokens = encode_rows(rows, tiny.tokenizer, tiny.max_tokens, end=end).to(tiny.initial.device)
        with torch.no_grad():
            shares = tiny.answer_logits(tiny.initial + update[None], tokens).float().log_softmax(-1)
        labels = tokens.answer_labels()
        chosen = shares.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != IGNORED)
        likely = torch.where((labels != IGNORED).sum(1) > end, chosen.sum(1), -torch.inf)  # no answer explains nothing
        return (likely.exp() + self.recipe.floor).log().cpu()[torch.tensor(index)]

    def distil(self, chosen: Sequence[int | None], start: Tensor) -> Tensor:
        """LLM update [L2, n2], tuned from ``start`` on what the chosen task of each kind answers to its prompts; where
        none is chosen, ``start`` answers."""
        written = []
        for kind, task in zip(self.kinds, chosen, strict=True):
            prompts = [self.prompts[n] for n in kind.prompts]
            update = start if task is None else self.library.updates[task]
            answers = self._answer(update[None], prompts)[0]
            rows = [
                (Row(prompt, one.text), one.ended) for prompt, one in zip(prompts, answers, strict=True) if one.text
            ]
            written.append(WrittenRows.of(rows, self.llm.tokenizer))
        if not any(own.rows for own in written):
            return start
        tokens = encode_written(written, self.llm.tokenizer, self.llm.max_tokens)
        tuning = self.recipe.tuning
        return fine_tune_stacked(self.llm, tokens, 1, tuning, [[0]], [tuning.steps], start=start[None])[0, 0]


def _texts(answers: Sequence[Sequence[Generated]]) -> list[list[str]]:
    return [[one.text for one in own] for own in answers]


def _tokens_held(side: StackedAdapters, prompts: Sequence[str]) -> Tensor:
    """Which tokens of the vocabulary prompts hold: bool [N, V]."""
    held = torch.zeros(len(prompts), len(side.tokenizer), dtype=torch.bool)
    for row, ids in zip(held, side.tokenizer(list(prompts))["input_ids"], strict=True):
        row[ids] = True
    return held
