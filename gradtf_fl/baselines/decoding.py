"""Text that a stack of K tuned TinyLMs writes: greedy labels for prompts, or sampled rows.

K adapters share one pass, so rows that are complete stay in the batch. Organization k's samples come from its own
seed, so they do not change with the other organizations in the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradtf_fl.baselines.scoring import equal_counts
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Generated, StopRule, decode, fit_prompt
from gradtf_fl.training import StackedAdapters


@dataclass(frozen=True)
class Decoding:
    """How text is written.

    Attributes:
        max_new_tokens: tokens at most; an end-of-text token ends it sooner. Text of exactly as many is not seen to end.
        temperature: 0 takes the likeliest token, else logits are divided by it and one is drawn.
        finished: as `tasks.text_tasks.TextTask.finished`: asked for the text so far after each token that holds a
            newline; where it is true the text ends, newline kept, as the answers of text tasks do.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    finished: Callable[[str], bool] = lambda text: False


def continuations(
    side: StackedAdapters,
    theta: Tensor,
    prompts: Sequence[Sequence[str]],
    decoding: Decoding,
    seed: Sequence[int] = (0,),
    batch: int = 512,
) -> list[list[Generated]]:
    """Continuations [K][R] of ``prompts`` [K][R] by adapters ``theta`` [K, blocks, block_dim] (absolute values).

    Raises:
        ConfigError: organizations have different numbers of prompts, or a prompt is empty and the tokenizer has no
            token to begin with.
    """
    adapters, per_set = theta.shape[0], equal_counts(prompts, "prompts")
    generators = [
        torch.Generator().manual_seed(int(np.random.default_rng([*seed, k]).integers(2**62))) for k in range(adapters)
    ]
    side.set(theta)
    model, tokenizer = side.model, side.tokenizer
    if tokenizer.bos_token_id is None and not all(prompt for part in prompts for prompt in part):
        raise ConfigError("an empty prompt can't be continued: this tokenizer has no begin-of-text token")
    room = None if side.context is None else max(1, side.context - decoding.max_new_tokens)
    stop = StopRule(model, tokenizer, decoding.max_new_tokens, decoding.finished)
    choose = partial(_choose, vocabulary=len(tokenizer), temperature=decoding.temperature, generators=generators)
    written: list[list[Generated]] = [[] for _ in range(adapters)]
    size = max(1, batch // adapters)
    for start in range(0, per_set, size):
        parts = [part[start : start + size] for part in prompts]
        fitted = [fit_prompt(tokenizer, prompt, room) for part in parts for prompt in part]
        new = decode(model, [ids for ids, _ in fitted], stop, choose, keep_places=True)
        found = [
            Generated(tuple(after), _text(tokenizer, before, after), dropped, stop.ended(after))
            for (before, dropped), after in zip(fitted, new, strict=True)
        ]
        for k in range(adapters):
            written[k] += found[k * len(parts[0]) : (k + 1) * len(parts[0])]
    return written


def _choose(logits: Tensor, vocabulary: int, temperature: float, generators: Sequence[torch.Generator]) -> Tensor:
    """One token id [N] below ``vocabulary`` for each row of logits [N, V].

    Rows are ordered adapter by adapter, a generator each.
    """
    logits = logits[:, :vocabulary].float()
    if temperature == 0:
        return logits.argmax(-1)
    shares = torch.softmax(logits / temperature, dim=-1).chunk(len(generators))
    drawn = [torch.multinomial(part, 1, generator=own)[:, 0] for part, own in zip(shares, generators, strict=True)]
    return torch.cat(drawn)


def _text(tokenizer: Any, before: list[int], after: list[int]) -> str:
    """What ``after`` adds to the text of ``before``: decoded together, since some tokenizers eat a leading space."""
    head: str = tokenizer.decode(before, skip_special_tokens=True)
    whole: str = tokenizer.decode(before + after, skip_special_tokens=True)
    return whole[len(head) :] if whole.startswith(head) else str(tokenizer.decode(after, skip_special_tokens=True))
