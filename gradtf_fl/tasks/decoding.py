"""Batched greedy decoding of text prompts, with the KV cache and left padding.

Left padding puts the last prompt token of every row at the same place. It must change nothing: pads are masked, and
positions count real tokens only (transformers' default positions would count the pads). So a row's tokens do not
depend on its neighbours, and equal those of `model.generate(do_sample=False)` on that row alone, up to ties of
float32 logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gradtf_fl.errors import ConfigError

BATCH = 32
LONGEST_ROW = 512
Progress = Callable[[int, int], None]  # prompts that are done, of how many


@dataclass(frozen=True)
class Generated:
    """What follows one prompt.

    Attributes:
        tokens: new token ids, without the end-of-sequence token. text: the same as text.
        dropped: tokens of the prompt's start that did not fit into the model's context.
    """

    tokens: tuple[int, ...]
    text: str
    dropped: int


@dataclass
class _Live:
    """A row that is being generated."""

    index: int
    prompt: list[int]
    dropped: int
    tokens: list[int]


def generate_greedily(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    finished: Callable[[str], bool] = lambda text: False,
    batch: int = BATCH,
    progress: Progress = lambda done, total: None,
) -> list[Generated]:
    """The greedy continuation of each prompt, in the order of ``prompts``.

    A row ends at an end-of-sequence token, after ``max_new_tokens``, or where ``finished(text so far)`` is true;
    that is asked after each token whose text holds a newline. A prompt that leaves less than ``max_new_tokens`` of the
    model's context loses its START (a beginning-of-sequence token stays), so that the question at its end is kept.

    Args:
        model: a causal LM of transformers; put into eval mode, and back.
        batch: rows decoded together; changes the speed only.

    Raises:
        ConfigError: ``max_new_tokens`` leaves no room for a prompt in the model's context.
    """
    import torch

    room = _room(model, max_new_tokens)
    rows = [_fitted(tokenizer, index, prompt, room) for index, prompt in enumerate(prompts)]
    rows.sort(key=lambda row: len(row.prompt))  # neighbours of one length: little padding
    stop = _Stop(tokenizer, end_tokens(model, tokenizer), max_new_tokens, finished)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(rows), batch):
                _decode(model, rows[start : start + batch], stop)
                progress(min(start + batch, len(rows)), len(rows))
    finally:
        model.train(training)
    rows.sort(key=lambda row: row.index)
    return [Generated(tuple(row.tokens), stop.text(row.tokens), row.dropped) for row in rows]


def context_length(model: Any) -> int | None:
    """Positions that ``model`` was made for, None where its config does not say."""
    length = getattr(model.config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def longest_row(model: Any) -> int:
    """Tokens of a row at most, prompt and answer: the model's context, and no more than `LONGEST_ROW`."""
    return min(LONGEST_ROW, context_length(model) or LONGEST_ROW)


class _Stop:
    """When a row ends, and its text."""

    def __init__(
        self, tokenizer: Any, end_tokens: frozenset[int], max_new_tokens: int, finished: Callable[[str], bool]
    ) -> None:
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._max_new_tokens = max_new_tokens
        self._finished = finished
        self._has_newline: dict[int, bool] = {}

    def text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def add(self, row: _Live, token: int) -> bool:
        """Append ``token`` to ``row``; whether the row is complete."""
        if token in self._end_tokens:
            return True
        row.tokens.append(token)
        if len(row.tokens) >= self._max_new_tokens:
            return True
        if token not in self._has_newline:
            self._has_newline[token] = "\n" in self.text([token])
        return self._has_newline[token] and self._finished(self.text(row.tokens))


def _decode(model: Any, rows: Sequence[_Live], stop: _Stop) -> None:
    """Generate ``rows`` to their ends; prompts are padded on the left to the longest."""
    import torch
    from transformers import DynamicCache

    width = max(len(row.prompt) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row.prompt) :] = torch.tensor(row.prompt)
        mask[i, width - len(row.prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    live = list(rows)
    while live:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen = output.logits[:, -1].argmax(-1)
        going = [
            i for i, (row, token) in enumerate(zip(live, chosen.tolist(), strict=True)) if not stop.add(row, token)
        ]
        if 0 < len(going) < len(live):
            kept = torch.tensor(going, device=model.device)
            cache.batch_select_indices(kept)
            chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
        live = [live[i] for i in going]
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1


def _fitted(tokenizer: Any, index: int, prompt: str, room: int | None) -> _Live:
    """Token ids of ``prompt``, the last ``room`` of them; a leading special token of the tokenizer stays in front."""
    ids = list(tokenizer(prompt)["input_ids"]) or [_start_token(tokenizer)]
    if room is None or len(ids) <= room:
        return _Live(index, ids, 0, [])
    front = ids[:1] if ids[0] == tokenizer.bos_token_id and room > 1 else []
    return _Live(index, front + ids[len(ids) - room + len(front) :], len(ids) - room, [])


def _start_token(tokenizer: Any) -> int:
    """For a prompt without tokens: something to predict the first token from."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ConfigError("an empty prompt, and the tokenizer has no token to begin with")


def _room(model: Any, max_new_tokens: int) -> int | None:
    length = context_length(model)
    if length is None:
        return None
    if max_new_tokens >= length:
        raise ConfigError(
            f"{max_new_tokens} new tokens leave no room for a prompt in the model's context of {length} tokens: "
            "give a smaller --max-new-tokens"
        )
    return length - max_new_tokens


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-sequence tokens of the generation settings (one or several) and of the tokenizer."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    tokens = stated if isinstance(stated, list) else [stated]
    return frozenset(int(token) for token in [*tokens, tokenizer.eos_token_id] if token is not None)
