"""Greedy decoding (equal to transformers' generate, whatever the batch) and the metrics' means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gradtf_fl.adapters.models import load_model
from gradtf_fl.config import RowFormat
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import (
    PAPER_TASKS,
    Example,
    FolderSource,
    Row,
    TextTask,
    answer_rouge1,
    load_task,
    read_tokens,
    score_task,
    scoring,
    write_rows,
)
from gradtf_fl.tasks.answers import first_line, has_first_line, states_final_answer
from gradtf_fl.tasks.decoding import Generated, generate_greedily
from tests.benchmark_data import DATA, MODELS, needs_data, needs_models

ALPHABET = "<>abcdefg\nhijklmn"  # "<" begins, ">" ends; id = place
CONTEXT = 12


class Letters:
    """A tokenizer of one token for each character, "<" in front as a real tokenizer has it."""

    bos_token_id, eos_token_id = 0, 1

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, list[Any]]:
        if isinstance(text, list):
            return {"input_ids": [self(one, add_special_tokens)["input_ids"] for one in text]}
        return {"input_ids": [0] * add_special_tokens + [ALPHABET.index(c) for c in text if c in ALPHABET]}

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(ALPHABET[t] for t in tokens if t > 1)


class NextLetter(torch.nn.Module):
    """A model that continues the alphabet; after "n" comes the end. It notes the prompts it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.config = LlamaConfig(num_hidden_layers=1, max_position_embeddings=CONTEXT)
        self.device = torch.device("cpu")
        self.seen: list[list[int]] = []
        self.widths: list[int] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: object) -> SimpleNamespace:
        assert not self.training
        if input_ids.shape[1] > 1:
            self.seen += [ids[mask == 1].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        self.widths.append(len(input_ids))
        after = (input_ids + 1) % len(ALPHABET)
        after[after == 0] = 1
        return SimpleNamespace(logits=torch.nn.functional.one_hot(after, len(ALPHABET)).float())


def texts(generated: Sequence[Generated]) -> list[str]:
    return [one.text for one in generated]


def test_a_row_ends_at_the_end_token_the_limit_or_the_finished_text() -> None:
    model = NextLetter().train()
    made = generate_greedily(model, Letters(), ["l", "ab", "e"], 4, lambda text: text.count("\n") == 1)
    assert texts(made) == ["mn", "cdef", "fg\n"]
    assert [len(one.tokens) for one in made] == [2, 4, 3]
    assert model.training


def test_finished_is_asked_after_newlines_only() -> None:
    asked: list[str] = []

    def finished(text: str) -> bool:
        asked.append(text)
        return False

    assert texts(generate_greedily(NextLetter(), Letters(), ["f"], 6, finished)) == ["g\nhijk"]
    assert asked == ["g\n"]


def test_rows_that_are_complete_leave_the_batch() -> None:
    model = NextLetter()
    assert texts(generate_greedily(model, Letters(), ["a", "n", "m", "l"], 4)) == ["bcde", "", "n", "mn"]
    assert model.widths == [4, 3, 2, 1]


def test_a_long_prompt_loses_its_start_and_says_how_much() -> None:
    model = NextLetter()
    made = generate_greedily(model, Letters(), ["aaaabcd", "aaaabcdef", "b"], 4)
    assert [one.dropped for one in made] == [0, 2, 0]  # 8 of 12 places are left for a prompt, "<" among them
    assert sorted(model.seen, key=len) == [
        [0, 3],
        [0, *Letters()("aaaabcd")["input_ids"][1:]],
        [0, *(2, 2, 3, 4, 5, 6, 7)],
    ]
    assert texts(made) == ["efg\n", "g\nhi", "cdef"]


def test_no_room_for_a_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"12 new tokens leave no room for a prompt .* context of 12 tokens"):
        generate_greedily(NextLetter(), Letters(), ["a"], 12)
    assert len(generate_greedily(NextLetter(), Letters(), ["abc"], 11)) == 1


def test_every_end_token_of_the_generation_settings_ends_a_row() -> None:
    model: Any = NextLetter()
    model.generation_config = SimpleNamespace(eos_token_id=[ALPHABET.index("d"), ALPHABET.index("g")])
    assert texts(generate_greedily(model, Letters(), ["b", "e", "l"], 5)) == ["c", "f", "mn"]


@pytest.fixture(scope="module")
def untrained() -> tuple[Any, Any]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(ALPHABET),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval(), Letters()


def by_transformers(model: Any, tokenizer: Any, prompt: str, new: int) -> list[int]:
    """Tokens of `generate` on one prompt alone, without the end token."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    settings = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 1}
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist()
    return [token for token in tokens if token != tokenizer.eos_token_id]


def assert_equal_to_transformers(model: Any, tokenizer: Any, prompts: list[str], new: int) -> None:
    expected = [by_transformers(model, tokenizer, prompt, new) for prompt in prompts]
    assert len({tuple(tokens) for tokens in expected}) > len(prompts) // 2
    for batch in (1, 3, len(prompts)):
        made = generate_greedily(model, tokenizer, prompts, new, batch=batch)
        assert [list(one.tokens) for one in made] == expected, f"batch {batch}"


def test_decoding_equals_transformers_at_any_batch(untrained: tuple[Any, Any]) -> None:
    letters = "abcdefghijklmn"
    prompts = [letters[n:] + letters[: n % 5] * n for n in range(10)]
    assert_equal_to_transformers(*untrained, prompts, 20)


def test_left_padding_does_not_shift_learned_positions() -> None:
    # Rotary positions are relative: only learned ones tell whether pads were counted
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(ALPHABET),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    prompts = ["a", "bcdefgh", "ijkl", "mn" * 8, "c"]
    assert_equal_to_transformers(GPT2LMHeadModel(config).eval(), Letters(), prompts, 12)


@needs_models
def test_decoding_equals_transformers_on_a_real_model() -> None:
    model, tokenizer = load_model(str(MODELS / "stories260K"))
    prompts = [
        "Once upon a time",
        "Lily",
        "The big red ball rolled down the hill and into the lake.\n\nThen Tom said:\n",
        "One day, a little boy named Tim went to the park with his mom. They saw a very old tree and a small dog.",
        "",
        "Solve the problem: 2 + 3 = é\n",
        "Ben and Mia are friends. " * 8,
    ]
    assert_equal_to_transformers(model, tokenizer, prompts, 60)


def toy(metric: str) -> TextTask:
    def convert(_: object) -> Example:
        raise NotImplementedError

    if metric == "rouge1":
        return TextTask("toy", "rouge1", "text", convert, first_line, has_first_line, 4)
    return TextTask("toy", "exact_match", "text", convert, first_line, states_final_answer, 4)


def example(prompt: str, *references: str) -> Example:
    return Example(Row(prompt, references[0] + "\n"), references, prompt)


def test_the_mean_is_over_rows_and_names_what_went_wrong() -> None:
    rows = [example("a", "bcde"), example("l", "n", "mn"), example("n", "x"), example("abcdefgggg", "h")]
    score = score_task(NextLetter(), Letters(), toy("exact_match"), rows)
    assert score.row_scores == (1.0, 1.0, 0.0, 0.0)
    assert (score.metric, score.value, score.rows) == ("exact_match", 0.5, 4)
    assert (score.unanswered, score.truncated) == (1, 1)  # "n" gives no text; the last prompt is too long


def test_rows_with_one_prompt_are_generated_once_and_scored_each() -> None:
    model = NextLetter()
    rows = [example("a", "bcde"), example("l", "mn"), example("a", "bcde fg"), example("a", "h")]
    score = score_task(model, Letters(), toy("rouge1"), rows)
    assert len(model.seen) == 2
    assert score.row_scores == (1.0, 1.0, pytest.approx(2 / 3), 0.0)
    assert score.value == pytest.approx((1 + 1 + 2 / 3) / 4)


def test_the_limit_of_new_tokens_is_the_tasks_unless_given() -> None:
    rows = [example("a", "bc")]
    assert score_task(NextLetter(), Letters(), toy("exact_match"), rows).value == 0.0
    assert score_task(NextLetter(), Letters(), toy("exact_match"), rows, max_new_tokens=2).value == 1.0


def test_progress_ends_at_the_number_of_prompts() -> None:
    told: list[tuple[int, int]] = []
    prompts = ["a", "b", "c"]
    generate_greedily(
        NextLetter(), Letters(), prompts, 2, batch=2, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(2, 3), (3, 3)]


@needs_data
@needs_models
@pytest.mark.parametrize("name", ["gsm8k", "dialogsum"])
def test_a_real_model_scores_the_same_at_any_batch(name: str) -> None:
    model, tokenizer = load_model(str(MODELS / "stories260K"))
    task = PAPER_TASKS[name]
    examples = load_task(task, "test", FolderSource(DATA / name)).examples[:9]
    scores = [score_task(model, tokenizer, task, examples, 24, batch=batch) for batch in (1, 4, 9)]
    assert scores[0] == scores[1] == scores[2]
    assert (scores[0].value > 0) == (name == "dialogsum")


class Words(Letters):
    """An answer is the letter n, which reads as words."""

    answer = "alpha beta gamma"

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, list[Any]]:
        if isinstance(text, str):
            return super().__call__(text.replace(self.answer, "n"), add_special_tokens)
        return super().__call__(text, add_special_tokens)

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        return super().decode(tokens, skip_special_tokens).replace("n", "alpha beta zeta")


def test_answers_at_home_are_generated_on_few_rows_and_for_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [Row(letter + "m", Words.answer) for letter in "abcdefg" * 20])
    model = NextLetter().train()
    model.config.vocab_size = len(ALPHABET)
    read = read_tokens(path, Words(), RowFormat(), model.config)
    score = answer_rouge1(model, Words(), read)
    assert score is not None
    assert (score.value, score.rows) == (pytest.approx(2 / 3), 32)  # two words of three
    assert model.training
    monkeypatch.setattr(scoring, "HOME_SECONDS", 0.0)
    bounded = answer_rouge1(model, Words(), read)
    assert bounded is not None
    assert bounded.rows == 4
    short = replace(read, rows=[Row(row.prompt, "n") for row in read.rows])
    assert answer_rouge1(model, Words(), short) is None
    windows = replace(read, rows=[Row("", row.answer) for row in read.rows])
    assert answer_rouge1(model, Words(), windows) is None  # a start token is no prompt
