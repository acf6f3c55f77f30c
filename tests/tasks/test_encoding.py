"""Rows to tokens: what is trained and scored, the end of an answer, what is cut."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtf_fl.adapters import load_encoder
from gradtf_fl.config import RowFormat, TaskSection
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import (
    IGNORED,
    Row,
    TokenRows,
    Turn,
    count_rows,
    encode_rows,
    generate_greedily,
    read_rows,
    read_tokens,
    task_rows,
    write_rows,
)
from gradtf_fl.tasks.decoding import end_tokens, fit_prompt
from gradtf_fl.tasks.encoding import end_token
from gradtf_fl.tasks.scoring import score_task
from gradtf_fl.tasks.task_rows import own_rows
from gradtf_fl.tasks.text_tasks import Example
from tests.tasks.tokenizers_kit import ASKS_OTHERWISE, BARE, CHATML, FORGETS, INST, THINK, byte_tokenizer

CHAT = Row.of_turns(
    [
        Turn("user", "Ward?"),
        Turn("assistant", "twelve"),
        Turn("user", "Bed?"),
        Turn("assistant", "thirty four"),
    ]
)


def spans(tokenizer: Any, rows: TokenRows, place: int = 0) -> list[tuple[bool, str]]:
    """A row's tokens as texts: (scored, text) for each run."""
    found: list[tuple[bool, list[int]]] = []
    for token, label, seen in zip(
        rows.input_ids[place].tolist(), rows.labels[place].tolist(), rows.attention_mask[place].tolist(), strict=True
    ):
        if not seen:
            continue
        scored = label != IGNORED
        assert label in (IGNORED, token)
        if not found or found[-1][0] != scored:
            found.append((scored, []))
        found[-1][1].append(token)
    return [(scored, tokenizer.decode(tokens)) for scored, tokens in found]


def config(context: int = 10_000, vocabulary: int = 300) -> Any:
    made = SimpleNamespace(max_position_embeddings=context, vocab_size=vocabulary)
    made.get_text_config = lambda: made
    return made


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (
            CHATML,
            [
                (False, "<|im_start|>user\nWard?<|im_end|>\n<|im_start|>assistant\n"),
                (True, "twelve<|im_end|>"),
                (False, "\n<|im_start|>user\nBed?<|im_end|>\n<|im_start|>assistant\n"),
                (True, "thirty four<|im_end|>"),
            ],
        ),
        (
            INST,
            [
                (False, "<s>[INST] Ward? [/INST]"),
                (True, " twelve </s>"),
                (False, "[INST] Bed? [/INST]"),
                (True, " thirty four </s>"),
            ],
        ),
        (
            THINK,
            [
                (False, "<|im_start|>user\nWard?<|im_end|>\n<|im_start|>assistant\n"),
                (True, "twelve<|im_end|>"),
                (False, "\n<|im_start|>user\nBed?<|im_end|>\n<|im_start|>assistant\n"),
                (True, "<think>\n\n</think>\n\nthirty four<|im_end|>"),
            ],
        ),
        (
            BARE,
            [
                (False, "user: Ward?\nassistant: "),
                (True, "twelve"),
                (False, "\nuser: Bed?\nassistant: "),
                (True, "thirty four</s>"),
            ],
        ),
        (None, [(False, "<s>Ward?\n"), (True, "twelve</s>"), (False, "\nBed?\n"), (True, "thirty four</s>")]),
    ],
    ids=["chatml", "inst", "think", "bare", "none"],
)
def test_every_assistant_turn_is_trained_and_nothing_else(template: str | None, wanted: list[tuple[bool, str]]) -> None:
    tokenizer = byte_tokenizer(template)
    rows = encode_rows([CHAT], tokenizer, end=True)
    assert spans(tokenizer, rows) == wanted
    open_ended = [(scored, text.replace("</s>", "").rstrip() if scored else text) for scored, text in wanted]
    found = spans(tokenizer, encode_rows([CHAT], tokenizer))
    assert [text.removesuffix("<|im_end|>") for scored, text in open_ended if scored] == [
        text for scored, text in found if scored
    ]
    assert spans(tokenizer, rows.last_answers())[-1] == wanted[-1]
    assert sum(scored for scored, _ in spans(tokenizer, rows.last_answers())) == 1


@pytest.mark.parametrize("template", [CHATML, INST, THINK, BARE, None], ids=["chatml", "inst", "think", "bare", "none"])
def test_a_question_is_asked_as_it_is_trained(template: str | None) -> None:
    tokenizer = byte_tokenizer(template)
    trained = encode_rows([CHAT], tokenizer, end=True).last_answers()
    before = int((trained.labels[0] != IGNORED).int().argmax())
    assert fit_prompt(tokenizer, CHAT.answered(""), None) == (trained.input_ids[0, :before].tolist(), 0)


def test_a_model_is_asked_by_its_chat_template() -> None:
    """Joined turns are another text than the one that was trained."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer(CHATML)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(shape).eval()
    ids = fit_prompt(tokenizer, CHAT, None)[0]
    made = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0)
    by_row, by_text = generate_greedily(model, tokenizer, [CHAT, CHAT.prompt], 6)
    assert list(by_row.tokens) == made[0, len(ids) :].tolist()
    assert by_text.tokens != by_row.tokens
    task = own_rows("chats", TaskSection(source=("chats",), metric="exact_match", max_new_tokens=6))
    example = Example(CHAT, (by_row.text.strip(),), "q")
    assert score_task(model, tokenizer, task, [example]).value == 1.0


def test_what_a_template_writes_whole_is_tokenised_whole() -> None:
    tokenizer = byte_tokenizer(CHATML)
    rows = encode_rows([CHAT], tokenizer, end=True)
    text = tokenizer.apply_chat_template([turn._asdict() for turn in CHAT.turns], tokenize=False)
    assert rows.input_ids[0].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"][:-1]  # the last \n


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ASKS_OTHERWISE, "asks for turn 2 otherwise than it writes it"),
        (FORGETS, "does not write the content of turn 2"),
        (INST.replace("== 'system'", "== 'user'"), r"refuses its turns \(no system turn\)"),
    ],
    ids=["asks-otherwise", "forgets", "refuses"],
)
def test_a_row_whose_answers_cannot_be_found_is_refused(template: str, reason: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [CHAT])
    with pytest.raises(ConfigError, match=reason) as caught:
        read_tokens(tmp_path / "rows.jsonl", byte_tokenizer(template), RowFormat(), config())
    assert str(caught.value).startswith(f"data {tmp_path / 'rows.jsonl'}, row 1: ")


contents = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.sampled_from("a1 "), min_size=1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(contents, contents.filter(str.strip)), min_size=1, max_size=3),
    st.sampled_from([CHATML, INST, BARE, None]),
    st.booleans(),
)
def test_scored_text_is_what_the_assistant_said(said: list[tuple[str, str]], template: str | None, end: bool) -> None:
    tokenizer = byte_tokenizer(template)
    row = Row.of_turns(
        [Turn(role, text) for pair in said for role, text in zip(("user", "assistant"), pair, strict=True)]
    )
    found = [text for scored, text in spans(tokenizer, encode_rows([row], tokenizer, 10_000, end=end)) if scored]
    plain = [text.replace("<|im_end|>", "").replace("</s>", "").strip() for text in found]
    assert plain == [answer.strip() for _, answer in said]


@pytest.mark.parametrize(
    ("adds_eos", "end", "answer", "wanted"),
    [
        (False, False, "A", [(False, "<s>Q "), (True, "A")]),
        (False, True, "A", [(False, "<s>Q "), (True, "A</s>")]),
        (True, False, "A", [(False, "<s>Q "), (True, "A")]),
        (True, True, "A", [(False, "<s>Q "), (True, "A</s>")]),
        (True, True, "A</s>", [(False, "<s>Q "), (True, "A</s>")]),
    ],
)
def test_one_end_and_none_in_the_middle(adds_eos: bool, end: bool, answer: str, wanted: list[tuple[bool, str]]) -> None:
    tokenizer = byte_tokenizer(adds_eos=adds_eos)
    assert spans(tokenizer, encode_rows([Row("Q ", answer)], tokenizer, end=end)) == wanted
    assert tokenizer.decode(fit_prompt(tokenizer, "Q ", None)[0]) == "<s>Q "


def test_generation_ends_where_training_does() -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=2))
    for template, token in ((CHATML, "<|im_end|>"), (INST, "</s>"), (BARE, "</s>"), (None, "</s>")):
        tokenizer = byte_tokenizer(template)
        wanted = tokenizer.convert_tokens_to_ids(token)
        assert end_token(tokenizer) == wanted
        assert end_tokens(model, tokenizer) == {2, wanted}
        plain = encode_rows([Row("Q", "A")], tokenizer, end=True)
        assert int(plain.labels[0, -1]) == wanted


def test_a_tokenizer_without_pad_and_end_tokens() -> None:
    tokenizer = byte_tokenizer(eos=False)
    assert tokenizer.pad_token_id is None
    rows = encode_rows([Row("long prompt", "A"), Row("Q", "A")], tokenizer)
    assert (rows.labels[rows.attention_mask == 0] == IGNORED).all()
    with pytest.raises(ConfigError, match=r"no end-of-sequence token, .* set end = false"):
        encode_rows([Row("Q", "A")], tokenizer, end=True)
    chat = byte_tokenizer(CHATML, eos=False)
    assert spans(chat, encode_rows([Row("Q", "A")], chat, end=True))[-1] == (True, "A<|im_end|>")


def test_padding_is_a_token_that_every_model_has() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})  # one more than the model has
    rows = encode_rows([Row("long prompt", "A"), Row("Q", "A")], tokenizer)
    assert int(rows.input_ids.max()) < tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (Row("abcdef", "xy"), [(False, "<s>ef"), (True, "xy")]),
        (Row("abcdef", "wxyz"), [(False, "f"), (True, "wxyz")]),  # room for one token: what is asked
        (Row("abcdef", "uvwxyz"), [(False, "f"), (True, "uvwx")]),
        (Row("", "uvwxyz"), [(False, "<s>"), (True, "uvwx")]),
        (Row("ab", "xy"), [(False, "<s>ab"), (True, "xy")]),
    ],
)
def test_a_long_row_keeps_its_beginning_token_and_its_answer(row: Row, wanted: list[tuple[bool, str]]) -> None:
    tokenizer = byte_tokenizer()
    assert spans(tokenizer, encode_rows([row], tokenizer, 5)) == wanted


def test_an_answer_that_is_cut_has_no_end_and_earlier_answers_go_first() -> None:
    tokenizer = byte_tokenizer()
    assert spans(tokenizer, encode_rows([Row("Q", "uvwxyz")], tokenizer, 5, end=True)) == [
        (False, "Q"),
        (True, "uvwx"),
    ]
    whole = encode_rows([CHAT], tokenizer, end=True)
    length = whole.input_ids.shape[1]
    for room in range(14, length):
        found = spans(tokenizer, encode_rows([CHAT], tokenizer, room, end=True))
        assert found[0][1].startswith("<s>")
        assert found[-1] == (True, "thirty four</s>")
        assert {text for scored, text in found if scored} <= {"twelve</s>", "thirty four</s>"}


ROWS = [Row("a" * 30, "bc"), Row("q", "c" * 30), Row("q", "a"), Row("", "a"), Row("q", "a")]


def test_what_is_cut_is_counted_and_refused_above_the_share(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, ROWS)
    form = RowFormat(max_tokens=20, max_cut=0.4)
    read = read_tokens(path, byte_tokenizer(), form, config())
    counts = read.counts
    assert (counts.rows, counts.cut, counts.cut_answers, counts.duplicate, counts.unscorable) == (5, 2, 1, 1, 0)
    assert read.tokens.input_ids.shape == (5, 20)
    with pytest.raises(ConfigError) as caught:
        read_tokens(path, byte_tokenizer(), form.model_copy(update={"max_cut": 0.3}), config())
    assert caught.value.problems == (
        f"data {path}: 2 of 5 rows are longer than max_tokens = 20 (1 of them lose the end of their answer), at most "
        "30% may be (max_cut): shorten them, or give more tokens",
    )
    assert read_tokens(path, byte_tokenizer(), RowFormat(max_cut=1), config(context=7)).max_tokens == 7
    with pytest.raises(ConfigError, match="2 of 5 rows are longer than the model's 7 positions"):
        read_tokens(path, byte_tokenizer(), RowFormat(), config(context=7))


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [Row("", "7"), Row("1" * 600, "2"), Row("12", "é")])
    encoder, tokenizer = load_encoder("embedded:tiny")
    with pytest.raises(ConfigError) as caught:
        read_tokens(path, tokenizer, RowFormat(end=False, max_cut=0), encoder)
    assert [problem.partition(": ")[2].partition(",")[0] for problem in caught.value.problems] == [
        "2 of 3 rows have no token that is scored",
        "1 of 3 rows are longer than the model's 64 positions (0 of them lose the end of their answer)",
    ]
    with pytest.raises(ConfigError, match="3 of 3 rows have a token that the model has no embedding for"):
        read_tokens(path, byte_tokenizer(), RowFormat(end=False, max_cut=1), config(vocabulary=6))


def test_an_end_alone_makes_no_row_scorable(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    encoder, tokenizer = load_encoder("embedded:tiny")
    write_rows(path, [Row("12=", "Twelve"), Row("", "7"), Row("12=", "7")])
    with pytest.raises(ConfigError, match="2 of 3 rows have no token that is scored, for example row 1"):
        read_tokens(path, tokenizer, RowFormat(end=True), encoder)


STORY = "Once there was a ward.\n\n" + "It had twelve beds and no window. " * 20 + "\n\nThe end."


@pytest.mark.parametrize("name", ["texts.jsonl", "pairs.jsonl", "story.txt", "parts.txt.gz"])
def test_text_gives_the_windows_of_the_providers_reader(name: str, tmp_path: Path) -> None:
    texts = [f"Document {number}. {STORY}" for number in range(12)]
    form = RowFormat(window=100)
    if name.endswith(".jsonl"):
        documents: list[dict[str, str]] = [{"text": text} for text in [*texts, " " + texts[3].upper() + " "]]
        if name == "pairs.jsonl":
            documents = [{"prompt": f"Which {n}?\n", "answer": text} for n, text in enumerate([*texts[:9], *texts[:9]])]
            form = RowFormat(format="text", window=100)
        own, task = tmp_path / "task" / "train.jsonl", "task"
        own.parent.mkdir()
        own.write_text("".join(json.dumps(document) + "\n" for document in documents))
    else:
        own, task = tmp_path / name, name.partition(".")[0]
        text = ("\n<|endoftext|>\n" if task == "story" else "\n\n").join(texts)
        own.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    reader = task_rows._Reader(str(tmp_path / task), task, TaskSection(format="text", window=100), None, None)
    provider = [one.row for one in task_rows._windows(reader.examples("train"), 100, task)]
    assert len(provider) > 80
    assert read_rows(own, None, form) == provider
    assert count_rows(own, form) == len(provider)


def test_a_window_has_no_end(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": STORY}) + "\n")
    tokenizer = byte_tokenizer()
    read = read_tokens(tmp_path / "rows.jsonl", tokenizer, RowFormat(window=50), config())
    assert (read.form.format, read.form.end) == ("text", False)
    assert spans(tokenizer, read.tokens)[-1] == (True, STORY.strip()[:50])
