"""Batched decoding of text prompts, greedy unless told otherwise, with the KV cache and left padding.

Left padding puts the last prompt token of every row at the same place. It must change nothing: pads are masked, and
positions count real tokens only (transformers' default positions would count the pads). So a row's tokens do not
depend on its neighbours, and equal those of `model.generate(do_sample=False)` on that row alone, up to ties of
float32 logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradtf_fl.config import MAX_TOKENS
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.encoding import end_token, positions, question_tokens
from gradtf_fl.tasks.rows import Row

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 32
PromptsDone = Callable[[int, int], None]  # prompts that are done, of how many
Choose = Callable[["Tensor"], "Tensor"]  # logits [N, V] of the next token -> a token for each row [N]


@dataclass(frozen=True)
class Generated:
    """What follows one prompt.

    Attributes:
        tokens: new token ids, without the end-of-sequence token.
        text: the same as text.
        dropped: tokens of the prompt's start that did not fit into the model's context.
        ended: by an end token; else it was cut, or the task's rule found it finished.
    """

    tokens: tuple[int, ...]
    text: str
    dropped: int
    ended: bool


def generate_greedily(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Row],
    max_new_tokens: int,
    finished: Callable[[str], bool] = lambda text: False,
    batch: int = BATCH,
    progress: PromptsDone = lambda done, total: None,
) -> list[Generated]:
    """The greedy continuation of each prompt, in the order of ``prompts``.

    A row ends at an end token (see `end_tokens`), after ``max_new_tokens``, or where ``finished(text so far)`` is true;
    that is asked after each token whose text holds a newline. A prompt that leaves less than ``max_new_tokens`` of the
    model's context loses its START (a beginning-of-sequence token stays), so that the question at its end is kept.

    Args:
        model: a causal LM of transformers; put into eval mode, and back.
        prompts: texts, or rows whose question is asked as it is trained (see `question_tokens`).
        batch: rows decoded together; changes the speed only.

    Raises:
        ConfigError: ``max_new_tokens`` leaves no room for a prompt in the model's context.
    """
    room = _room(model, max_new_tokens)
    fitted = [fit_prompt(tokenizer, prompt, room) for prompt in prompts]
    order = sorted(range(len(fitted)), key=lambda i: len(fitted[i][0]))  # neighbours of one length: little padding
    stop = StopRule(model, tokenizer, max_new_tokens, finished)
    generated: dict[int, Generated] = {}
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            new = decode(model, [fitted[i][0] for i in part], stop)
            for i, tokens in zip(part, new, strict=True):
                generated[i] = Generated(tuple(tokens), stop.text(tokens), fitted[i][1], stop.ended(tokens))
            progress(len(generated), len(order))
    finally:
        model.train(training)
    return [generated[i] for i in range(len(order))]


def context_length(model: Any) -> int | None:
    """Positions that ``model`` was made for, None where its config does not say."""
    return positions(model.config)


def longest_row(model: Any, max_tokens: int = MAX_TOKENS) -> int:
    """Tokens of a row at most, prompt and answer: ``max_tokens``, and no more than the model's context."""
    return min(max_tokens, context_length(model) or max_tokens)


class StopRule:
    """When a row ends, and its text: see `generate_greedily`."""

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int, finished: Callable[[str], bool]) -> None:
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens(model, tokenizer)
        self._max_new_tokens = max_new_tokens
        self._finished = finished
        self._has_newline: dict[int, bool] = {}

    def text(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``, without special ones."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def add(self, tokens: list[int], token: int) -> bool:
        """Append ``token`` to a row's ``tokens``, unless it is an end token; whether the row is complete."""
        if token in self._end_tokens:
            return True
        tokens.append(token)
        return not self._goes_on(tokens)

    def ended(self, tokens: list[int]) -> bool:
        """Whether it was an end token that completed a complete row of ``tokens``."""
        return not tokens or self._goes_on(tokens)

    def _goes_on(self, tokens: list[int]) -> bool:
        """Whether nothing but an end token would complete the row now."""
        if len(tokens) >= self._max_new_tokens:
            return False
        token = tokens[-1]
        if token not in self._has_newline:
            self._has_newline[token] = "\n" in self.text([token])
        return not (self._has_newline[token] and self._finished(self.text(tokens)))


def _likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop: StopRule,
    choose: Choose = _likeliest,
    keep_places: bool = False,
) -> list[list[int]]:
    """New token ids of each of ``prompts`` (token ids), decoded together to the end that ``stop`` gives each row.

    Args:
        model: a causal LM of transformers in eval mode.
        choose: next tokens; called once a step with the logits of all rows in the batch.
        keep_places: complete rows stay in the batch, as a model requires in which a row's place says which adapter it
            goes through. By default they leave it, and the others get faster.
    """
    import torch
    from transformers import DynamicCache

    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    new: list[list[int]] = [[] for _ in prompts]
    complete = [False] * len(prompts)
    batch = list(range(len(prompts)))  # which prompt each row of the batch is
    with torch.no_grad():
        while True:
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            chosen = choose(output.logits[:, -1])
            for row, token in zip(batch, chosen.tolist(), strict=True):
                complete[row] = complete[row] or stop.add(new[row], token)
            if all(complete):
                return new
            going = [place for place, row in enumerate(batch) if keep_places or not complete[row]]
            if len(going) < len(batch):
                kept = torch.tensor(going)  # on the CPU: the cache's layers may lie on several devices
                cache.batch_select_indices(kept)
                chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
                batch = [batch[place] for place in going]
            ids = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = positions[:, -1:] + 1


def fit_prompt(tokenizer: Any, prompt: str | Row, room: int | None) -> tuple[list[int], int]:
    """Token ids of ``prompt``, a text or a row's question, and how many of its start were dropped.

    The last ``room`` tokens are kept (None: all); a leading special token of the tokenizer stays in front.

    Raises:
        ConfigError: the prompt is empty and the tokenizer has no token to begin with.
    """
    asked = Row(prompt, "") if isinstance(prompt, str) else prompt
    ids = question_tokens(tokenizer, asked) or [_start_token(tokenizer)]
    if room is None or len(ids) <= room:
        return ids, 0
    front = ids[:1] if ids[0] == tokenizer.bos_token_id and room > 1 else []
    return front + ids[len(ids) - room + len(front) :], len(ids) - room


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
    """What ends a row: end-of-sequence tokens of the generation settings (one or several) and of the tokenizer, and
    what the chat template puts after an answer."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    tokens = [*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_token_id, end_token(tokenizer)]
    return frozenset(int(token) for token in tokens if token is not None)
