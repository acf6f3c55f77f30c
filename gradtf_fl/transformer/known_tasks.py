"""Known tasks: a mixture that the Grad-Transformer can't generate is put together from tasks that the provider knows.

Where prompts show which of several tasks they belong to, the sum of updates holds several tasks at once, and of such
mixtures there are far more than the Grad-Transformer was trained on. But each kind of prompt follows ONE task, and
the provider has LLM updates of tasks: those that it tuned on public rows. So it

1. lets every known task's LLM answer some public prompts (once: nothing here depends on an organization);
2. asks the tuned TinyLM how likely it finds each answer. One answer proves little, since the TinyLM is often wrong,
   but over the prompts of one kind the right task is the one that it finds likeliest by far;
3. finds the kinds itself: a tree splits the prompts by whether they hold a token, wherever two tasks then explain the
   TinyLM better than one;
4. lets the best task of each kind answer all public prompts of that kind, and tunes the LLM on these answers, from the
   update that it would have used otherwise.

Where one task explains all prompts there is nothing to put together, and nothing changes. Privacy: post-processing of
the sum and public prompts, as in `refinement`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradtf_fl.baselines import Controls, embedded_controls
from gradtf_fl.baselines.decoding import Decoding, continue_prompts
from gradtf_fl.baselines.interface import PairSide
from gradtf_fl.tasks.rows import IGNORED, Row, TokenRows, encode_rows
from gradtf_fl.training.stacked import PlainRecipe, descend

Condition = tuple[int, bool]
"""A token of the LLM's vocabulary, and whether a prompt holds it."""


@dataclass(frozen=True)
class KnownRecipe:
    """How tasks are told apart and put together.

    Attributes:
        probes: public prompts that tasks are compared on.
        floor: added to each probability, so that no single prompt rules a task out.
        least_split: nats a probe, over all probes, that a split must explain better.
        least_kind: probes of a kind at least.
        least_gain: nats a probe by which all kinds together must beat the update at hand.
        tuning: of the LLM on the answers, from the update at hand.
    """

    probes: int = 96
    floor: float = 1e-3
    least_split: float = 0.15
    least_kind: int = 8
    least_gain: float = 0.4
    tuning: PlainRecipe = PlainRecipe(steps=150, batch=48, rate=1.5e-2)


@dataclass(frozen=True)
class Kind:
    """Prompts that meet all ``conditions``, the task that explains them best, and its mean score on probes (nats)."""

    conditions: tuple[Condition, ...]
    task: int
    score: float


def split_kinds(scores: Tensor, holds: Tensor, recipe: KnownRecipe) -> list[Kind]:
    """Kinds of prompts, greedily split. ``scores`` [E, n]: of task e on probe n; ``holds`` bool [n, V]: its tokens."""
    total = scores.shape[1]

    def grow(members: Tensor, conditions: tuple[Condition, ...]) -> list[Kind]:
        own, inside = scores[:, members], holds[members]
        task = int(own.sum(1).argmax())
        whole = float(own[task].sum())
        counts = inside.sum(0)
        apart = own @ inside.float()  # [E, V]: sums over the members that hold a token
        gains = apart.max(0).values + (own.sum(1, keepdim=True) - apart).max(0).values - whole
        gains[(counts < recipe.least_kind) | (len(members) - counts < recipe.least_kind)] = -torch.inf
        token = int(gains.argmax())
        if float(gains[token]) / total <= recipe.least_split:
            return [Kind(conditions, task, whole / len(members))]
        with_it = inside[:, token]
        return [
            kind
            for part, held in ((members[with_it], True), (members[~with_it], False))
            for kind in grow(part, (*conditions, (token, held)))
        ]

    return grow(torch.arange(total), ())


class KnownTasks:
    """E known tasks, and what each answers to the first public prompts."""

    def __init__(
        self,
        llm: PairSide,
        updates: Tensor,
        prompts: Sequence[str],
        max_new_tokens: int,
        recipe: KnownRecipe = KnownRecipe(),
    ) -> None:
        """``updates`` [E, L2, n2]: LLM updates, each of one task or mixture."""
        self.llm, self.updates, self.prompts, self.recipe = llm, updates, list(prompts), recipe
        self.decoding = Decoding(max_new_tokens)
        self.probes = self.prompts[: recipe.probes]
        self._holds = _tokens_held(llm, self.prompts)
        self._answers = [answers for part in torch.split(updates, 16) for answers in self._answer(part, self.probes)]

    def _answer(self, updates: Tensor, prompts: Sequence[str]) -> list[list[str]]:
        theta = self.llm.stack.initial + updates
        return continue_prompts(self.llm, theta, [prompts] * len(updates), self.decoding)

    def put_together(self, tiny: PairSide, updates: Tensor, at_hand: Tensor) -> tuple[Tensor, Tensor]:
        """LLM updates for K TinyLM updates [K, L1, n1]: ``at_hand`` [K, L2, n2], or what is put together where that
        explains the TinyLM better; and from how many kinds of prompts each is (int64 [K], 0 where it is at hand)."""
        made, counts = at_hand.clone(), torch.zeros(len(updates), dtype=torch.long)
        for k, update in enumerate(updates):
            kinds = self.kinds(tiny, update, at_hand[k])
            if kinds:
                made[k], counts[k] = self.distil(kinds, at_hand[k]), len(kinds)
        return made, counts

    def kinds(self, tiny: PairSide, update: Tensor, at_hand: Tensor) -> list[Kind]:
        """Kinds of prompts under TinyLM update ``update`` [L1, n1] if they explain it better than the LLM update
        ``at_hand`` [L2, n2]; none where there is nothing to put together."""
        scores = self.scores(tiny, update, [*self._answers, *self._answer(at_hand[None], self.probes)])
        kinds = split_kinds(scores[:-1], self._holds[: len(self.probes)], self.recipe)
        gain = (
            sum(kind.score * self._are(kind)[: len(self.probes)].float().mean() for kind in kinds) - scores[-1].mean()
        )
        return kinds if len(kinds) > 1 and gain > self.recipe.least_gain else []

    def scores(self, tiny: PairSide, update: Tensor, answers: Sequence[Sequence[str]]) -> Tensor:
        """log(p + floor) [E, n] of the probability that the tuned TinyLM gives to answers [E][n]."""
        places: dict[tuple[int, str], int] = {}
        index = [[places.setdefault((n, one), len(places)) for n, one in enumerate(own)] for own in answers]
        rows = [Row(self.probes[n], answer) for n, answer in places]
        tokens = encode_rows(rows, tiny.tokenizer, tiny.max_tokens)
        with torch.no_grad():
            shares = tiny.stack.answer_logits(tiny.stack.initial + update[None], tokens).float().log_softmax(-1)
        labels = tokens.answer_labels()
        chosen = shares.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != IGNORED)
        likely = torch.where((labels != IGNORED).any(1), chosen.sum(1), -torch.inf)  # no answer explains nothing
        return (likely.exp() + self.recipe.floor).log()[torch.tensor(index)]

    def _are(self, kind: Kind) -> Tensor:
        """Which prompts are of a kind, bool [N]."""
        found = torch.ones(len(self.prompts), dtype=torch.bool)
        for token, held in kind.conditions:
            found &= self._holds[:, token] == held
        return found

    def distil(self, kinds: Sequence[Kind], start: Tensor) -> Tensor:
        """LLM update [L2, n2], tuned from ``start`` on what the best task of each kind answers to its prompts."""
        rows = []
        for kind in kinds:
            prompts = [self.prompts[n] for n in self._are(kind).nonzero().flatten()]
            answers = self._answer(self.updates[kind.task][None], prompts)[0]
            rows += [Row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer]
        tokens = encode_rows(rows, self.llm.tokenizer, self.llm.max_tokens)
        stack = self.llm.stack

        def losses(theta: Tensor, part: TokenRows, _: float) -> Tensor:
            return stack.row_losses(theta, part)

        tuned = stack.initial + start
        for theta in descend(stack, tokens, 1, self.recipe.tuning, [[0]], losses, start[None]):
            tuned = theta[0]
        return tuned - stack.initial


def _tokens_held(side: PairSide, prompts: Sequence[str]) -> Tensor:
    """Which tokens of the vocabulary prompts hold: bool [N, V]."""
    held = torch.zeros(len(prompts), len(side.tokenizer), dtype=torch.bool)
    for row, ids in zip(held, side.tokenizer(list(prompts))["input_ids"], strict=True):
        row[ids] = True
    return held


def embedded_updates() -> Tensor:
    """LLM updates [E, L2, n2] of the shadow sets in the package, for the embedded pair."""
    return torch.from_numpy(Controls.load(embedded_controls()).llm)
