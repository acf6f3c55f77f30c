"""Text that a stack of K tuned TinyLMs writes: greedy labels for prompts, or sampled rows.

Own loop instead of `generate` or `tasks.decoding`: K adapters share one pass, so rows that are complete stay in the
batch (there they leave it), and organization k's samples come from its own seed, so they do not change with the other
organizations in the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradtf_fl.baselines.scoring import equal_counts
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import end_tokens
from gradtf_fl.training import StackedAdapters


@dataclass(frozen=True)
class Decoding:
    """How text is written.

    Attributes:
        max_new_tokens: tokens at most; an end-of-text token ends it sooner.
        temperature: 0 takes the likeliest token, else logits are divided by it and one is drawn.
        finished: as `tasks.text_tasks.TextTask.finished`: asked for the text so far after each token that holds a
            newline; where it is true the text ends, newline kept, as the answers of text tasks do.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    finished: Callable[[str], bool] | None = None


def continue_prompts(
    side: StackedAdapters,
    theta: Tensor,
    prompts: Sequence[Sequence[str]],
    decoding: Decoding,
    seed: Sequence[int] = (0,),
    batch: int = 512,
) -> list[list[str]]:
    """Continuations [K][R] of ``prompts`` [K][R] by adapters ``theta`` [K, blocks, block_dim] (absolute values).

    Raises ConfigError when organizations have different numbers of prompts, or a prompt holds no token and the
    tokenizer has none to begin with.
    """
    adapters, per_set = theta.shape[0], equal_counts(prompts, "prompts")
    generators = [
        torch.Generator().manual_seed(int(np.random.default_rng([*seed, k]).integers(2**62))) for k in range(adapters)
    ]
    side.set(theta)
    written: list[list[str]] = [[] for _ in range(adapters)]
    size = max(1, batch // adapters)
    for start in range(0, per_set, size):
        parts = [part[start : start + size] for part in prompts]
        ids = [_prompt_ids(side, prompt, decoding.max_new_tokens) for part in parts for prompt in part]
        new = _decode(side, ids, decoding, generators)
        texts = [_text(side.tokenizer, before, after) for before, after in zip(ids, new, strict=True)]
        for k in range(adapters):
            written[k] += texts[k * len(parts[0]) : (k + 1) * len(parts[0])]
    return written


def _prompt_ids(side: StackedAdapters, prompt: str, room: int) -> list[int]:
    """Token ids of a prompt; its START is lost when the model's context has no room for prompt and answer."""
    ids: list[int] = side.tokenizer(prompt)["input_ids"]
    if not ids and side.tokenizer.bos_token_id is not None:
        ids = [int(side.tokenizer.bos_token_id)]
    if not ids:
        raise ConfigError("an empty prompt can't be continued: this tokenizer has no begin-of-text token")
    return ids if side.context is None else ids[-max(1, side.context - room) :]


@torch.no_grad()
def _decode(
    side: StackedAdapters, prompts: Sequence[list[int]], decoding: Decoding, generators: Sequence[torch.Generator]
) -> list[list[int]]:
    """New token ids for each prompt, left-padded to one width, with a key-value cache."""
    width = max(map(len, prompts))
    ends = torch.tensor(sorted(end_tokens(side.model, side.tokenizer)), dtype=torch.long)
    ids = torch.full((len(prompts), width), int(side.tokenizer.pad_token_id))
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    done = torch.zeros(len(prompts), dtype=torch.bool)
    cache: Any = None
    new: list[list[int]] = [[] for _ in prompts]
    for _ in range(decoding.max_new_tokens):
        output = side.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        chosen = _choose(output.logits[:, -1, : len(side.tokenizer)].float(), decoding.temperature, generators)
        done |= torch.isin(chosen, ends)
        for i in (~done).nonzero().flatten().tolist():
            new[i].append(int(chosen[i]))
            done[i] = decoding.finished is not None and _is_finished(side.tokenizer, new[i], decoding.finished)
        if bool(done.all()):
            break
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return new


def _is_finished(tokenizer: Any, new: list[int], finished: Callable[[str], bool]) -> bool:
    newest: str = tokenizer.decode(new[-1:], skip_special_tokens=True)
    return "\n" in newest and finished(tokenizer.decode(new, skip_special_tokens=True))


def _choose(logits: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> Tensor:
    """One token id [N] for each row of logits [N, V]; rows are ordered adapter by adapter, a generator each."""
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
