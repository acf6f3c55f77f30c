"""Refinement: the Grad-Transformer's latent is moved until the LLM agrees with the tuned TinyLM on public prompts.

A Grad-Transformer that never saw an update's task generates from the nearest tasks that it knows, and the LLM is wrong
with confidence. The provider can notice: it holds the tuned TinyLM (base model and the sum of the updates) and may ask
it anything public. So it lets the TinyLM answer public prompts and descends on

    loss = (1 - c) * cross entropy(LLM, TinyLM's answer) + c * -log max_v p(v | LLM)

over the ENCODER'S HIDDEN STATES only. Answers of the small model are often wrong, and an LLM tuned on them directly
learns its mistakes (weak-to-strong, the rivals' way); what the decoder can generate is close to updates of whole tasks,
so the search finds the task that explains the answers best, and the second term, the confidence loss of Burns et al.
(2023, section 4.3), lets the LLM overrule single answers.

An update is taken only where agreement on prompts that the search did not use rises by more than ``least_gain``: on
a task that the Grad-Transformer knows, the LLM is right where the TinyLM is not, and has nothing to gain by agreeing.
And an LLM that agrees on nearly half of them already has found the task or one like it. Only a TinyLM that is sure of
its answers overrules it: under DP a TinyLM now and then learns another function, wrong on half of the prompts.

Before the search, the update is read in several ways: as it is, shorter, longer, as it was after the first round.
Noise moves each reading elsewhere, and the one whose LLM agrees most with the TinyLM is where the search begins. After
it, the LLM is tuned on what both models answer alike (see `agreement`), which is what makes a task that is new right.

A mixture of tasks is more than the search finds; `known_tasks` puts its LLM update together where it can.

Privacy: the update has left the organizations under its epsilon, prompts are public; all of this is post-processing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradtf_fl.adapters import Place, UpdateSpace
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import IGNORED, Row, TokenRows, WrittenRows, encode_rows, generate_greedily
from gradtf_fl.training import StackedAdapters, batch_indices
from gradtf_fl.transformer.agreement import AgreementRecipe, compare, tune_on_agreement
from gradtf_fl.transformer.checkpoint import GradTransformer
from gradtf_fl.transformer.known_tasks import KnownRecipe, KnownTasks, TaskLibrary
from gradtf_fl.transformer.model import GradTransformerModel

LEAST_PROMPTS = 32


@dataclass(frozen=True)
class RefinementRecipe:
    """How the latent is moved.

    Attributes:
        batch: prompts a step, of the first 1 - ``held_out`` of them.
        confidence: c of the loss.
        least_gain: by how much agreement (0 to 1) must rise on the other prompts.
        enough: agreement without the search from which on the TinyLM must be sure: its mean probability of its own
            answers at least ``sure``.
        readings: lengths at which the update is read, as shares of its own.
        least_better: by how much agreement (0 to 1) of another reading must exceed that of the update as it is; it must
            be ``enough``, too.
        known: an LLM that agrees on this share, and is certain where it does not (see `AgreementRecipe`), knows the
            task: no other reading.
        agreement: how the LLM is tuned in the end.
        seed: of the order of the prompts.
    """

    steps: int = 60
    batch: int = 32
    rate: float = 0.1
    confidence: float = 0.7
    held_out: float = 1 / 3
    least_gain: float = 0.15
    enough: float = 0.45
    sure: float = 0.97
    readings: tuple[float, ...] = (0.6, 1.3, 1.7)
    least_better: float = 0.05
    known: float = 0.3
    agreement: AgreementRecipe = AgreementRecipe()
    seed: int = 0


@dataclass(frozen=True)
class Answered:
    """Public prompts with what K TinyLMs answer, equally many each.

    Attributes:
        rows: K * R rows of the LLM's tokens, ordered TinyLM by TinyLM; the labels are the answers.
        certainty: [K], see `certainty`.
    """

    rows: TokenRows
    certainty: Tensor


@dataclass(frozen=True)
class Refined:
    """K refined updates.

    Attributes:
        plain: float32 [K, L2, n2], generated from the updates as they are.
        updates: float32 [K, L2, n2], to use.
        before: agreement [K] of ``plain`` with the TinyLM, on prompts that the search does not use.
        after: the same of ``updates``; NaN where they are the plain ones.
        taken: bool [K], whether another reading, the search or agreement tuning changed the update.
        kinds: int64 [K], of prompts that the update was put together from; 0 where it was not (see `known_tasks`).
    """

    plain: Tensor
    updates: Tensor
    before: Tensor
    after: Tensor
    taken: Tensor
    kinds: Tensor

    def summary(self) -> dict[str, Any]:
        """Of the first update, for reports: ``taken``, ``agreement`` and ``without`` it (None where not measured), and
        ``kinds``."""
        before, after = (None if bool(one[0].isnan()) else round(float(one[0]), 4) for one in (self.before, self.after))
        return {"taken": bool(self.taken[0]), "agreement": after, "without": before, "kinds": int(self.kinds[0])}


def refine(
    transformer: GradTransformer,
    llm: StackedAdapters,
    updates: Tensor,
    answered: Answered,
    recipe: RefinementRecipe = RefinementRecipe(),
    firsts: Tensor | None = None,
) -> Refined:
    """LLM updates for K TinyLM updates [K, L1, n1], each with as many public prompts that its TinyLM answered.

    ``firsts`` [K, L1, n1] are the updates after the first of several rounds.
    """
    model, rows = transformer.model.requires_grad_(False), answered.rows.to(llm.initial.device)
    per_set = len(rows) // len(updates)
    fitted = round(per_set * (1 - recipe.held_out))
    first = torch.arange(len(updates))[:, None] * per_set
    held = first + torch.arange(fitted, per_set)
    plain, begun = _read(model, llm, updates, firsts, rows.take(held.reshape(-1)), recipe)

    def agreement(made: Tensor, which: Tensor) -> Tensor:
        return llm.accuracy(llm.initial + made, rows.take(held[which].reshape(-1)))

    chosen = ((begun.agreement < recipe.enough) | (answered.certainty > recipe.sure)).nonzero().flatten().cpu()
    made = begun.updates.clone()
    if len(chosen):
        order = np.stack([batch_indices([recipe.seed, int(k)], fitted, recipe.batch, recipe.steps) for k in chosen])
        index = first[chosen][:, :, None] + torch.from_numpy(order)  # [chosen, steps, batch]
        moved = _search(model, llm, [states[chosen] for states in begun.latents], rows, index, recipe)
        better = agreement(moved, chosen) - begun.agreement[chosen] > recipe.least_gain
        made[chosen] = torch.where(better[:, None, None], moved, begun.updates[chosen])
    made = tune_on_agreement(llm, made, rows, recipe.agreement)
    taken = (made != plain.updates).flatten(1).any(1)
    after, changed = torch.full_like(plain.agreement, torch.nan), taken.nonzero().flatten().cpu()
    if len(changed):
        after[changed] = agreement(made[changed], changed)
    kinds = torch.zeros(len(updates), dtype=torch.long)
    return Refined(plain.updates, made, plain.agreement, after, taken, kinds)


@dataclass(frozen=True)
class _Reading:
    """What the Grad-Transformer makes of K TinyLM updates.

    Attributes:
        latents: of each of its transformers, [K, T, width].
        updates: generated from them, float32 [K, L2, n2].
        agreement: of their LLM with the TinyLM, [K].
    """

    latents: Sequence[Tensor]
    updates: Tensor
    agreement: Tensor


def _read(
    model: GradTransformerModel,
    llm: StackedAdapters,
    updates: Tensor,
    firsts: Tensor | None,
    rows: TokenRows,
    recipe: RefinementRecipe,
) -> tuple[_Reading, _Reading]:
    """The updates as they are, and each one's reading with most agreement; ``rows`` as of `Answered`."""
    readings = [updates, *(length * updates for length in recipe.readings)]
    if firsts is not None and not torch.equal(firsts, updates):
        readings += [firsts, 2 * updates - firsts]
    with torch.no_grad():
        latents = [model.encode(one) for one in readings]
        made = torch.stack([model.generate_from(one) for one in latents])
    found = [compare(llm, one, rows) for one in made]
    agreement = torch.stack([one.agreement for one in found])
    score = torch.where(agreement < recipe.enough, 0.0, agreement)
    known = (found[0].certainty >= recipe.agreement.certain) & (agreement[0] >= recipe.known)
    score[0] = agreement[0] + torch.where(known, 1.0, recipe.least_better)
    best, each = score.argmax(0), torch.arange(len(updates))
    chosen = [torch.stack(states)[best, each] for states in zip(*latents, strict=True)]
    return _Reading(latents[0], made[0], agreement[0]), _Reading(chosen, made[best, each], agreement[best, each])


def _search(
    model: GradTransformerModel,
    llm: StackedAdapters,
    start: Sequence[Tensor],
    rows: TokenRows,
    index: Tensor,
    recipe: RefinementRecipe,
) -> Tensor:
    """LLM updates [K, L2, n2] from the latents that the descent from ``start`` reaches; ``index``: rows of each step
    [K, steps, batch]."""
    latents = [states.clone().requires_grad_(True) for states in start]
    optimizer = torch.optim.Adam(latents, betas=(0.9, 0.95))
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = recipe.rate * (1 - step / recipe.steps)
        part = rows.take(index[:, step].reshape(-1))
        logits = llm.answer_logits(llm.initial + model.generate_from(latents), part)
        loss = refinement_loss(logits, part.answer_labels(), recipe.confidence)
        optimizer.zero_grad()
        torch.autograd.backward(loss * len(index))  # the sum over updates, which have nothing to do with each other
        optimizer.step()
    with torch.no_grad():
        return model.generate_from(latents)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The search is thousands of small products: further threads would mostly wait, and where another process needs
    their cores, for a long time (2.5 CPU seconds become 40)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def certainty(tiny: StackedAdapters, theta: Tensor, answered: TokenRows) -> Tensor:
    """Mean probability [K] that TinyLMs ``theta`` [K, blocks, block_dim] give to their own answers, K * R rows of the
    TinyLM's tokens."""
    answered = answered.to(tiny.initial.device)
    with torch.no_grad():
        shares = tiny.answer_logits(theta, answered).float().log_softmax(-1)
    labels = answered.answer_labels()
    chosen = shares.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != IGNORED)
    return chosen.sum(1).exp().reshape(len(theta), -1).mean(1)


def refinement_loss(logits: Tensor, labels: Tensor, confidence: float) -> Tensor:
    """Mean over answer tokens of the loss above; logits [N, t, V], labels [N, t]."""
    shares = logits.float().log_softmax(-1)
    asked = labels != IGNORED
    agree = -shares.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    sure = -shares.max(-1).values
    return ((1 - confidence) * agree + confidence * sure)[asked].mean()


class RefiningGenerator:
    """A Grad-Transformer that looks at public prompts: offers to a round what `GradTransformer` does."""

    def __init__(
        self,
        transformer: GradTransformer,
        prompts: Sequence[str | Row],
        max_new_tokens: int,
        recipe: RefinementRecipe = RefinementRecipe(),
        known: TaskLibrary | None = None,
        place: Place | None = None,
    ) -> None:
        """Load both models.

        Args:
            prompts: texts, or rows whose questions are asked as an organization trains them.
            max_new_tokens: length of an answer at most, in the TinyLM's tokens.
            known: tasks that the provider tuned the LLM on, to put mixtures together from.
            place: where all models compute; None: on the CPU, in float32.

        Raises:
            ConfigError: too few prompts, or a model can't be loaded.
        """
        if len(prompts) < LEAST_PROMPTS:
            raise ConfigError(f"{len(prompts)} public prompts: refinement needs at least {LEAST_PROMPTS}")
        self.transformer, self.recipe = transformer, recipe
        self.prompts = tuple(Row(prompt, "") if isinstance(prompt, str) else prompt for prompt in prompts)
        self.max_new_tokens = max_new_tokens
        self.source: UpdateSpace = transformer.source
        self.target: UpdateSpace = transformer.target
        tasks = None if known is None else [known.sha256, repr(KnownRecipe())]
        asked = [one.turns or one.prompt for one in self.prompts]
        about = json.dumps([transformer.sha256, asked, max_new_tokens, repr(recipe), tasks])
        self.sha256 = hashlib.sha256(about.encode()).hexdigest()
        sides = self.source, self.target
        self._tiny, self._llm = (StackedAdapters.load(side.model, side.spec, place) for side in sides)
        if place is not None:
            transformer.model.to(place.device)
        self._room = min(self._tiny.max_tokens, self._llm.max_tokens)
        self._known = known

    @cached_property
    def known(self) -> KnownTasks | None:
        """The known tasks with their answers, which take some seconds."""
        if self._known is None:
            return None
        return KnownTasks(self._llm, self._known, [one.prompt for one in self.prompts], self.max_new_tokens)

    def generate(self, update: NDArray[np.float32]) -> NDArray[np.float32]:
        """LLM update float32 [L2, n2] of a TinyLM update float32 [L1, n1]; ConfigError where it does not fit."""
        made: NDArray[np.float32] = self.refined(update).updates[0].numpy()
        return made

    def refined(self, update: NDArray[np.float32], first: NDArray[np.float32] | None = None) -> Refined:
        """The same with its figures (K = 1); NaN where the TinyLM answers too few prompts to look at.

        ``first`` is the update after the first round, from which the tasks of a mixture are told best; None where there
        was one round only.
        """
        plain = torch.from_numpy(self.transformer.generate(update))[None]  # checks the update
        values, firsts = (
            torch.from_numpy(np.ascontiguousarray(one, dtype=np.float32))[None]
            for one in (update, update if first is None else first)
        )
        plain, values, firsts = (one.to(self._llm.initial.device) for one in (plain, values, firsts))
        with _one_thread():
            found = self._refined(plain, values, firsts)
        return Refined(**{field.name: getattr(found, field.name).cpu() for field in fields(Refined)})

    def _refined(self, plain: Tensor, values: Tensor, firsts: Tensor) -> Refined:
        theta = self._tiny.initial + values
        answers = self._answered(theta)
        if len(answers.rows) < LEAST_PROMPTS:
            unknown = torch.full((1,), torch.nan)
            return Refined(
                plain, plain, unknown, unknown, torch.zeros(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
            )
        read, written = (
            encode_rows(answers.rows, side.tokenizer, self._room, end=answers.end) for side in (self._tiny, self._llm)
        )
        answered = Answered(written, certainty(self._tiny, theta, read))
        found = refine(self.transformer, self._llm, values, answered, self.recipe, firsts)
        if self.known is None:
            return found
        made, kinds = self.known.put_together(self._tiny, values, found.updates, firsts, answers.end)
        return replace(found, updates=made, kinds=kinds)

    def _answered(self, theta: Tensor) -> WrittenRows:
        """Prompts with what the TinyLM answers; those that it answers nothing to are left out."""
        self._tiny.set(theta)
        written = generate_greedily(
            self._tiny.model, self._tiny.tokenizer, self.prompts, self.max_new_tokens, batch=256
        )
        answers = [
            (row.answered(one.text), one.ended) for row, one in zip(self.prompts, written, strict=True) if one.text
        ]
        return WrittenRows.of(answers, self._tiny.tokenizer, self._llm.tokenizer)
