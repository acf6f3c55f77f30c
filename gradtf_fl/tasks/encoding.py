"""Rows to tokens: where loss is, where a row is cut, and what ends an answer.

- A row of prompt and answer: both are tokenised apart, so that the border between them is exact. What a tokenizer
  appends to a text (an end-of-sequence token) does not come between them.
- A conversation: by the tokenizer's chat template, loss on every assistant turn (`chat`). Without a template its turns
  are joined, a line end after each.
- The end, where it is trained: the special token that the template puts after an answer, else the end-of-sequence
  token. It has a label like any token of the answer.
- A row that is too long loses the START of its prompt, after a leading beginning-of-sequence token. Only an answer that
  is too long by itself loses its end.
- Padding is masked and without labels, so any token of the model does; it is token 0. A tokenizer's own pad token may
  be one that the model has no embedding for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gradtf_fl.config import MAX_TOKENS, RowFormat
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.chat import conversation, has_template, turn_end
from gradtf_fl.tasks.reading import MalformedRow, named
from gradtf_fl.tasks.row_forms import read_rows, told_form
from gradtf_fl.tasks.rows import IGNORED, Row, RowCounts, TokenRows

PADDING = 0
PROBES = ("a", "0", ".")


class _Span(NamedTuple):
    """Tokens of an answer.

    Attributes:
        start: the first one.
        stop: after the last one, its end included.
        end: 1 where the last one is its end.
    """

    start: int
    stop: int
    end: int


@dataclass(frozen=True)
class _Encoded:
    """One row's tokens, and where its answers are: at least one, the last one at the end."""

    ids: list[int]
    answers: list[_Span]

    @property
    def prompt(self) -> int:
        """Tokens before the last answer."""
        return self.answers[-1][0]

    @property
    def is_scored(self) -> bool:
        """Whether a token of an answer has one before it, from which a model can predict it; its end does not count."""
        return any(span.stop - span.end > max(span.start, 1) for span in self.answers)


@dataclass(frozen=True)
class WrittenRows:
    """Rows that one model wrote, as another is trained on them.

    Attributes:
        rows: as text.
        end: train the end of each answer.
    """

    rows: Sequence[Row]
    end: bool = False

    @classmethod
    def of(cls, answered: Sequence[tuple[Row, bool]], *tokenizers: Any) -> WrittenRows:
        """Rows, each with whether its writer ended it: where most were ended, the others, which were cut, are left out
        and the ends are trained, so that who learns from them learns to stop. Else no end is.

        Args:
            tokenizers: what reads the rows; without a token for the end in each, none is trained.
        """
        ended = [row for row, complete in answered if complete]
        if 2 * len(ended) > len(answered) and all(end_token(tokenizer) is not None for tokenizer in tokenizers):
            return cls(ended, True)
        return cls([row for row, _ in answered])


@dataclass(frozen=True)
class RowTokens:
    """A file's rows, read and encoded.

    Attributes:
        rows: as text.
        tokens: as a model takes them.
        counts: what was cut, empty or there twice.
        form: how they were read, ``format`` told.
        max_tokens: tokens of a row at most: the file's own bound, or the model's context.
    """

    rows: list[Row]
    tokens: TokenRows
    counts: RowCounts
    form: RowFormat
    max_tokens: int


def encode_rows(rows: Sequence[Row], tokenizer: Any, max_tokens: int = MAX_TOKENS, *, end: bool = False) -> TokenRows:
    """Tokens of each row [N, T], right padding; loss on the answers only (see the module).

    Args:
        max_tokens: longer rows are cut.
        end: train the end of each answer.

    Raises:
        ConfigError: ``end`` with a tokenizer that has no token for it; conversations that the chat template refuses.

    >>> from gradtf_fl import Row, encode_rows, load_model
    >>> rows = encode_rows([Row("[_][_][_]37?58=", "13")], load_model("embedded:tiny")[1])
    >>> int((rows.labels != -100).sum())  # tokens of the answer
    2
    """
    return encode_written([WrittenRows(rows, end)], tokenizer, max_tokens)


def encode_written(parts: Sequence[WrittenRows], tokenizer: Any, max_tokens: int = MAX_TOKENS) -> TokenRows:
    """`encode_rows` of several writers' rows, one after the other; ends are trained where theirs are."""
    found = [row for part in parts for row in _encoded(part.rows, tokenizer, part.end, "rows")]
    return _tensors([_fitted(row, max_tokens, tokenizer) for row in found])


def count_encoded(rows: Sequence[Row], tokenizer: Any, max_tokens: int = MAX_TOKENS, *, end: bool = False) -> RowCounts:
    """How many rows are cut, empty, unscorable or there already, as `encode_rows` would have them."""
    return _counted(rows, _encoded(rows, tokenizer, end, "rows"), max_tokens)


def read_tokens(
    path: str | Path,
    tokenizer: Any,
    form: RowFormat,
    config: Any,
    *,
    limit: int | None = None,
    person: str | None = None,
) -> RowTokens:
    """Rows of a file as tokens for a model: what training, scoring and checks all read.

    Args:
        form: how the file's rows are read and encoded.
        config: the model's configuration of transformers.
        limit: only the first rows.
        person: field that says whose a row is; None leaves that open.

    Raises:
        ConfigError: what `read_rows` and `encode_rows` raise; more rows are cut than ``form.max_cut`` allows; rows have
            no token that is scored, or tokens that the model lacks. All of these at once.
    """
    rows, form = read_rows(path, None, form, person)[:limit], told_form(path, form)
    return rows_as_tokens(rows, tokenizer, form, config, f"data {path}")


def rows_as_tokens(rows: list[Row], tokenizer: Any, form: RowFormat, config: Any, where: str) -> RowTokens:
    """`read_tokens` of rows that are in memory; problems begin with ``where``."""
    max_tokens = min(form.max_tokens, positions(config) or form.max_tokens)
    found = _encoded(rows, tokenizer, form.end, where)
    counts = _counted(rows, found, max_tokens)
    fitted = [_fitted(row, max_tokens, tokenizer) for row in found]
    problems = [f"{where}: {problem}" for problem in _problems(counts, fitted, form, max_tokens, config)]
    if problems:
        raise ConfigError(problems)
    return RowTokens(rows, _tensors(fitted), counts, form, max_tokens)


def positions(config: Any) -> int | None:
    """Positions that a model of this configuration was made for, None where it does not say."""
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def prompt_tokens(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Tokens of each prompt, to be continued: without what the tokenizer appends to a text."""
    found = [list(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    appended = len(_appended(tokenizer))
    return [ids[: len(ids) - appended] for ids in found] if appended else found


def question_tokens(tokenizer: Any, row: Row) -> list[int]:
    """Tokens that stand before a row's (last) answer when it is trained: its prompt, or its turns before by the chat
    template. ConfigError where the template refuses them.

    >>> from gradtf_fl import Row, load_model
    >>> from gradtf_fl.tasks.encoding import question_tokens
    >>> question_tokens(load_model("embedded:tiny")[1], Row("[_]12?", "34"))
    [14, 3, 4, 12]
    """
    if not row.turns:
        return prompt_tokens(tokenizer, [row.prompt])[0]
    end = end_token(tokenizer)
    encoded = _encoded([row.answered(row.answer or PROBES[0])], tokenizer, end is not None, "question")[0]
    return encoded.ids[: encoded.prompt]


def end_token(tokenizer: Any) -> int | None:
    """What ends an answer: the special token of the chat template, else the end-of-sequence token; None without."""
    closing = turn_end(tokenizer)
    return int(tokenizer.convert_tokens_to_ids(closing)) if closing else tokenizer.eos_token_id


def _encoded(rows: Sequence[Row], tokenizer: Any, end: bool, where: str) -> list[_Encoded]:
    """Tokens of all rows, however long."""
    ending: list[int] = []
    if end:
        token = end_token(tokenizer)
        if token is None:
            raise ConfigError(
                f"{where}: the tokenizer has no end-of-sequence token, so no answer's end can be trained: set end = "
                "false, or name a model whose tokenizer has one"
            )
        ending = [token]
    chat = has_template(tokenizer)
    pairs = [row for row in rows if not row.turns]
    plain = iter(_pairs(pairs, tokenizer, ending))
    found: list[_Encoded] = []
    problems = []
    for number, row in enumerate(rows, 1):
        try:
            if not row.turns:
                found.append(next(plain))
            else:
                found.append(_by_template(row, tokenizer, ending) if chat else _joined(row, tokenizer, ending))
        except MalformedRow as reason:
            problems.append(f"{where}, row {number}: {reason}")
    if problems:
        raise ConfigError(named(problems))
    return found


def _pairs(rows: Sequence[Row], tokenizer: Any, ending: list[int]) -> list[_Encoded]:
    if not rows:
        return []
    prompts = prompt_tokens(tokenizer, [row.prompt for row in rows])
    answers = _bare(tokenizer, [row.answer for row in rows])
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = prompt + _ended(answer, ending)
        found.append(_Encoded(ids, [_Span(len(prompt), len(ids), len(ending))]))
    return found


def _joined(row: Row, tokenizer: Any, ending: list[int]) -> _Encoded:
    """A conversation without template: each turn's text, a line end after it, each answer followed by the end."""
    ids = prompt_tokens(tokenizer, [""])[0]
    answers: list[_Span] = []
    before = ""
    for turn in row.turns:
        if turn.role != "assistant":
            before += turn.content + "\n" if turn.content else ""
            continue
        ids = ids + _bare(tokenizer, [before])[0] if answers else prompt_tokens(tokenizer, [before])[0]
        answer = _ended(_bare(tokenizer, [turn.content])[0], ending)
        answers.append(_Span(len(ids), len(ids) + len(answer), len(ending)))
        ids, before = ids + answer, "\n"
    return _Encoded(ids, answers)


def _by_template(row: Row, tokenizer: Any, ending: list[int]) -> _Encoded:
    """Tokens of the whole text, as the template's users have them, where its borders are borders of tokens; else of
    the parts between them."""
    written = conversation(row.turns, tokenizer)
    spans = [(answer.start, answer.end if ending else answer.stop) for answer in written.answers]
    borders = [place for span in spans for place in span]
    last = borders[-1]  # what follows the last answer does not belong to the row
    whole, *heads = _bare(tokenizer, [written.text[:last], *(written.text[:place] for place in borders)])
    if all(whole[: len(head)] == head for head in heads):
        places = [len(head) for head in heads]
    else:
        whole, places = [], []
        for start, stop in zip([0, *borders[:-1]], borders, strict=True):
            whole = whole + _bare(tokenizer, [written.text[start:stop]])[0]
            places.append(len(whole))
    closed = [int(bool(ending) and answer.end > answer.stop) for answer in written.answers]
    if ending and not closed[-1]:  # the template closes no turn
        whole, closed[-1] = _ended(whole, ending), 1
        places[-1] = len(whole)
    return _Encoded(whole, [_Span(*span) for span in zip(places[::2], places[1::2], closed, strict=True)])


def _ended(answer: list[int], ending: list[int]) -> list[int]:
    """The answer and its end, which may be written in it already."""
    return answer if ending and answer[-1:] == ending else answer + ending


def _bare(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def _appended(tokenizer: Any) -> list[int]:
    """Special tokens that the tokenizer appends to a text."""
    for text in PROBES:
        bare, whole = _bare(tokenizer, [text])[0], list(tokenizer(text)["input_ids"])
        for start in range(len(whole) - len(bare) + 1 if bare else 0):
            if whole[start : start + len(bare)] == bare:
                return whole[start + len(bare) :]
    return []


def _fitted(row: _Encoded, max_tokens: int, tokenizer: Any) -> _Encoded:
    """The row in at most ``max_tokens`` tokens. An earlier answer that loses its start is not trained."""
    if len(row.ids) <= max_tokens:
        return row
    kept = min(len(row.ids) - row.prompt, max_tokens - min(1, row.prompt))  # tokens of the last answer
    room = max_tokens - kept
    front = 1 if room > 1 and row.ids[0] == tokenizer.bos_token_id else 0
    start, stop = row.prompt - (room - front), row.prompt + kept
    moved = front - start
    answers = [
        _Span(span.start + moved, min(span.stop, stop) + moved, span.end if span.stop <= stop else 0)
        for span in row.answers
        if span.start >= start
    ]
    return _Encoded(row.ids[:front] + row.ids[start:stop], answers)


def _counted(rows: Sequence[Row], found: Sequence[_Encoded], max_tokens: int) -> RowCounts:
    return RowCounts(
        rows=len(rows),
        cut=sum(len(row.ids) > max_tokens for row in found),
        cut_answers=sum(len(row.ids) - row.prompt > max_tokens - min(1, row.prompt) for row in found),
        empty=sum(not row.answers[0].start for row in found),
        unscorable=sum(not row.is_scored for row in found),
        duplicate=len(rows) - len(set(rows)),
    )


def _problems(
    counts: RowCounts, fitted: Sequence[_Encoded], form: RowFormat, max_tokens: int, config: Any
) -> list[str]:
    """Why these rows can't be used."""
    problems = []
    if counts.unscorable:
        first = next(number for number, row in enumerate(fitted, 1) if not row.is_scored)
        problems.append(
            f"{counts.unscorable} of {counts.rows} rows have no token that is scored, for example row {first}: the "
            "tokenizer has no token for its answer, or its prompt is empty and its answer one token"
        )
    if counts.cut > form.max_cut * counts.rows:
        what = f"max_tokens = {max_tokens}" if max_tokens == form.max_tokens else f"the model's {max_tokens} positions"
        problems.append(
            f"{counts.cut} of {counts.rows} rows are longer than {what} ({counts.cut_answers} of them lose the end of "
            f"their answer), at most {form.max_cut:.0%} may be (max_cut): shorten them, or give more tokens"
        )
    vocabulary = int(config.get_text_config().vocab_size)
    foreign = [number for number, row in enumerate(fitted, 1) if max(row.ids, default=0) >= vocabulary]
    if foreign:
        problems.append(
            f"{len(foreign)} of {counts.rows} rows have a token that the model has no embedding for, for example row "
            f"{foreign[0]}: its tokenizer has more tokens than its {vocabulary}"
        )
    return problems


def _tensors(rows: Sequence[_Encoded]) -> TokenRows:
    import torch

    width = max((len(row.ids) for row in rows), default=0)
    ids = torch.full((len(rows), width), PADDING)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids, dtype=torch.int64)
        mask[i, : len(row.ids)] = 1
        for span in row.answers:
            labels[i, span.start : span.stop] = ids[i, span.start : span.stop]
    return TokenRows(ids, mask, labels)
