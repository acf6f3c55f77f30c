"""Known tasks: prompts are sorted by who could have asked them, and the task that the TinyLM follows is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gradtf_fl.config import HOUSE_RULES_ANSWER_TOKENS
from gradtf_fl.curation.shadow import as_token_rows
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.tasks import Generated, Row, TokenRows, encode_rows, end_token, public_rows
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.tasks.federation import HiddenTask
from gradtf_fl.training import StackedAdapters
from gradtf_fl.training.stacked import DpRecipe, PlainRecipe, dp_fine_tune_stacked, fine_tune_stacked, stack_rows
from gradtf_fl.transformer import GradTransformer, embedded_checkpoint
from gradtf_fl.transformer.known_tasks import (
    KnownRecipe,
    KnownTasks,
    PromptKind,
    TaskLibrary,
    embedded_tasks,
    sort_prompts,
)

MIXTURE = HiddenTask(tuple(hr.rule_named(name) for name in ("cej", "agl", "dim")), (False, True, False))
SEEN = hr.split_rules()[0]
QUICK = KnownRecipe(probes=48, tuning=PlainRecipe(steps=120, batch=48, rate=1.5e-2))


def library(*tokens: list[int]) -> TaskLibrary:
    """One without updates to speak of; each task's tokens as 0 and 1."""
    nothing = torch.zeros(len(tokens), 1, 1)
    return TaskLibrary(nothing, nothing, torch.tensor(tokens).bool())


def test_a_prompt_could_be_of_the_tasks_that_hold_all_its_tokens() -> None:
    prompts = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]]).bool()
    found = library([1, 1, 0], [1, 1, 1]).could_be(prompts)
    assert found.tolist() == [[True, True, False, False], [True, True, True, True]]


def test_prompts_that_the_same_tasks_could_have_are_one_kind() -> None:
    could_be = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()
    assert sort_prompts(could_be, 2) == [PromptKind((0, 2), (0, 1)), PromptKind((1, 3), (1,))]
    assert sort_prompts(could_be, 3) == []  # too few of each, and no task at all for the last


def test_a_library_keeps_its_tasks(tmp_path: Path) -> None:
    shipped, path = embedded_tasks(), tmp_path / "tasks.safetensors"
    shipped.save(path)
    again = TaskLibrary.load(path)
    assert again.sha256 == shipped.sha256
    assert len(again.updates) == len(SEEN)
    for other in (
        TaskLibrary(again.updates, again.signatures, ~again.tokens),
        TaskLibrary(again.updates, -again.signatures, again.tokens),
        TaskLibrary(-again.updates, again.signatures, again.tokens),
    ):
        assert other.sha256 != again.sha256


def test_a_library_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"known tasks .*none\.safetensors: no such file"):
        TaskLibrary.load(tmp_path / "none.safetensors")
    damaged, other, older, crooked = (
        tmp_path / f"{name}.safetensors" for name in ("damaged", "other", "old", "crooked")
    )
    damaged.write_bytes(b"no safetensors")
    two, three = torch.zeros(2, 1, 1), torch.zeros(3, 4)
    save_file({"weights": torch.zeros(2)}, other)
    save_file({"updates": two, "tokens": torch.zeros(2, 4)}, older)
    save_file({"updates": two, "signatures": two.clone(), "tokens": three}, crooked)
    for path in (damaged, other, older):
        with pytest.raises(CorruptFile, match="damaged or something else"):
            TaskLibrary.load(path)
    shapes = r"updates \(2, 1, 1\), signatures \(2, 1, 1\), tokens \(3, 4\)"
    with pytest.raises(CorruptFile, match=shapes):
        TaskLibrary.load(crooked)


def test_each_known_task_shows_its_own_operation_only() -> None:
    tokens = embedded_tasks().tokens
    for rule, held in zip(SEEN, tokens, strict=True):
        shown = {tag for tag in hr.INPUT_TAGS + hr.OPERATION_TAGS + hr.OUTPUT_TAGS if held[hr.TOKEN_ID[f"[{tag}]"]]}
        assert shown == {hr.OPERATION_TAGS[rule.operation]}
        assert held[hr.TOKEN_ID[hr.MASK]]
        assert all(held[hr.TOKEN_ID[str(digit)]] for digit in range(10))


@pytest.fixture(scope="module")
def sides() -> tuple[StackedAdapters, StackedAdapters]:
    transformer = GradTransformer.load(embedded_checkpoint())
    tiny, llm = (StackedAdapters.load(side.model, side.spec) for side in (transformer.source, transformer.target))
    return tiny, llm


@pytest.fixture(scope="module")
def update(sides: tuple[StackedAdapters, StackedAdapters]) -> Tensor:
    """TinyLM update [1, L1, n1] tuned on the mixture."""
    rows = as_token_rows(MIXTURE.draw(np.random.default_rng(11), 1024, "private"))
    recipe = PlainRecipe(steps=150, batch=32, rate=1e-2)
    return fine_tune_stacked(sides[0], rows, 1, recipe, [[11]], [recipe.steps])[0]


@pytest.fixture(scope="module")
def known(sides: tuple[StackedAdapters, StackedAdapters]) -> KnownTasks:
    prompts = [row.prompt for row in public_rows("mixed", 768, 11)]
    return KnownTasks(sides[1], embedded_tasks(), prompts, HOUSE_RULES_ANSWER_TOKENS, QUICK)


def operation_of(known: KnownTasks, kind: PromptKind) -> int:
    """Of the tag that every prompt of a kind shows."""
    tags = {prompt[4] for prompt in (known.prompts[n] for n in kind.prompts)}
    assert len(tags) == 1
    return hr.OPERATION_TAGS.index(tags.pop())


def right(known: KnownTasks, chosen: list[int | None]) -> list[bool]:
    """For each rule of the mixture, whether the task chosen for its prompts computes the same."""
    by_operation = {operation_of(known, kind): task for kind, task in zip(known.kinds, chosen, strict=True)}
    found = []
    for rule in MIXTURE.rules:
        task = by_operation[rule.operation]
        assert task is not None
        grid = np.arange(100)
        found.append(bool((SEEN[task].apply(grid, grid[::-1]) == rule.apply(grid, grid[::-1])).all()))
    return found


def test_the_tasks_of_a_mixture_are_named_and_put_together(
    sides: tuple[StackedAdapters, StackedAdapters], update: Tensor, known: KnownTasks
) -> None:
    tiny, llm = sides
    at_hand = torch.zeros(1, *llm.initial.shape)
    assert right(known, known.choose(tiny, update[0], at_hand[0], update[0])) == [True] * 3
    made, kinds = known.put_together(tiny, update, at_hand)
    assert kinds.tolist() == [len(hr.OPERATIONS)]
    test: TokenRows = as_token_rows(MIXTURE.draw(np.random.default_rng(12), 512, "test"))
    followed = float(tiny.accuracy(tiny.initial + update, test))
    assert float(llm.accuracy(llm.initial + made, test)) > followed + 0.1


def test_the_first_sum_names_tasks_that_the_average_of_organizations_does_not_answer(
    sides: tuple[StackedAdapters, StackedAdapters], known: KnownTasks
) -> None:
    tiny, llm = sides
    rng = np.random.default_rng(15)
    tasks = [HiddenTask((rule,), MIXTURE.shown) for rule in MIXTURE.rules]
    rows = stack_rows([as_token_rows(task.draw(rng, 512, "private")) for task in tasks])
    updates = dp_fine_tune_stacked(tiny, rows, [0, 0, 0], [0.0] * 3, DpRecipe(steps=30), [15])
    first, last = updates[0].mean(0), updates[-1].mean(0)
    test = as_token_rows(MIXTURE.draw(np.random.default_rng(16), 256, "test"))
    assert float(tiny.accuracy((tiny.initial + last)[None], test)) < 0.5
    at_hand = torch.zeros_like(llm.initial)
    assert right(known, known.choose(tiny, last, at_hand, first)) == [True] * 3
    deaf = KnownTasks(llm, known.library, known.prompts, HOUSE_RULES_ANSWER_TOKENS, replace(QUICK, likelihood=1e6))
    assert right(deaf, deaf.choose(tiny, last, at_hand, first)) != [True] * 3


def test_an_update_that_explains_the_tinylm_far_better_is_kept(
    sides: tuple[StackedAdapters, StackedAdapters], update: Tensor, known: KnownTasks
) -> None:
    llm = sides[1]
    rows = as_token_rows(MIXTURE.draw(np.random.default_rng(13), 1024, "public"))
    recipe = PlainRecipe(steps=150, batch=32, rate=1.5e-2)
    own = fine_tune_stacked(llm, rows, 1, recipe, [[13]], [recipe.steps])[0][0]
    base = torch.zeros_like(known.library.updates)  # the base LLM 64 times
    strangers = TaskLibrary(base, torch.zeros_like(known.library.signatures), known.library.tokens)
    fair = KnownRecipe(handicap=0.0)
    other = KnownTasks(llm, strangers, known.prompts, HOUSE_RULES_ANSWER_TOKENS, fair)
    chosen = other.choose(sides[0], update[0], own, update[0])
    in_play = {rule.operation for rule in MIXTURE.rules}
    assert [task for kind, task in zip(other.kinds, chosen, strict=True) if operation_of(other, kind) in in_play] == [
        None
    ] * 3
    nobody = KnownTasks(
        llm, strangers, known.prompts, HOUSE_RULES_ANSWER_TOKENS, KnownRecipe(handicap=-100.0, probes=16)
    )
    made, kinds = nobody.put_together(sides[0], update, own[None])
    assert kinds.tolist() == [0]
    assert torch.equal(made, own[None])


def test_prompts_of_one_kind_leave_everything_as_it_is(
    sides: tuple[StackedAdapters, StackedAdapters], update: Tensor
) -> None:
    tiny, llm = sides
    prompts = [row.prompt for row in public_rows("same", 64, 1)]
    known = KnownTasks(llm, embedded_tasks(), prompts, HOUSE_RULES_ANSWER_TOKENS, QUICK)
    at_hand = torch.randn(1, *llm.initial.shape)
    made, kinds = known.put_together(tiny, update, at_hand)
    assert known.kinds == []
    assert torch.equal(made, at_hand)
    assert kinds.tolist() == [0]


def test_a_score_is_the_floored_likelihood_of_an_answer(
    sides: tuple[StackedAdapters, StackedAdapters], update: Tensor, known: KnownTasks
) -> None:
    tiny = sides[0]
    probes = known.prompts[:2]
    scores = known.scores(tiny, update[0], probes, [["12", ""], ["12", "34"]])
    tokens = encode_rows([row for row in public_rows("mixed", 1, 11)], tiny.tokenizer)
    rows = TokenRows(tokens.input_ids.clone(), tokens.attention_mask, tokens.labels.clone())
    for place, digit in enumerate("12"):
        rows.input_ids[0, hr.PROMPT_TOKENS + place] = rows.labels[0, hr.PROMPT_TOKENS + place] = hr.TOKEN_ID[digit]
    nats = tiny.row_losses(tiny.initial + update, rows) * HOUSE_RULES_ANSWER_TOKENS
    expected = (torch.exp(-nats) + QUICK.floor).log()
    torch.testing.assert_close(scores[:, 0], expected.expand(2))
    assert float(scores[0, 1]) == pytest.approx(np.log(QUICK.floor))  # no answer explains nothing


def test_what_no_task_explains_is_answered_by_the_update_at_hand(
    sides: tuple[StackedAdapters, StackedAdapters], known: KnownTasks
) -> None:
    llm = sides[1]
    task = SEEN.index(MIXTURE.rules[1])
    start = known.library.updates[SEEN.index(MIXTURE.rules[0])]
    chosen = [task if operation_of(known, kind) == MIXTURE.rules[1].operation else None for kind in known.kinds]
    made = known.distil(chosen, start)

    def accuracy(rule: hr.Rule, update: Tensor) -> float:
        test = as_token_rows(HiddenTask((rule,), MIXTURE.shown).draw(np.random.default_rng(14), 256, "test"))
        return float(llm.accuracy(llm.initial + update[None], test))

    kept, learned = MIXTURE.rules[:2]
    assert accuracy(kept, made) > accuracy(kept, start) - 0.1
    assert accuracy(learned, made) > accuracy(learned, start) + 0.4


def test_answers_that_end_are_scored_with_their_ends(
    sides: tuple[StackedAdapters, StackedAdapters], known: KnownTasks
) -> None:
    """A TinyLM that ends its answers finds the whole likelier than its beginning; without ends nobody could."""
    tiny = sides[0]
    rows = [Row(prompt, "77") for prompt in (row.prompt for row in public_rows("same", 32, 3))]
    tokens = encode_rows(rows, tiny.tokenizer, end=True)
    recipe = PlainRecipe(steps=100, batch=16, rate=2e-2)
    update = fine_tune_stacked(tiny, tokens, 1, recipe, [[3]], [recipe.steps])[0][0]
    prompts = [row.prompt for row in rows]
    whole, start, nothing = known.scores(tiny, update, prompts, [[text] * 32 for text in ("77", "7", "")], end=True)
    assert bool((whole > start + 1).all())
    assert nothing.tolist() == pytest.approx([np.log(QUICK.floor)] * 32)
    expected = (torch.exp(-3 * tiny.row_losses((tiny.initial + update)[None], tokens)) + QUICK.floor).log()
    torch.testing.assert_close(whole, expected.reshape(-1))
    whole, start = known.scores(tiny, update, prompts, [["77"] * 32, ["7"] * 32])
    assert bool((whole <= start).all())


def test_the_llm_learns_to_end_the_kinds_whose_answers_end(sides: tuple[StackedAdapters, StackedAdapters]) -> None:
    """Two known tasks, the first of which ends its answers."""
    llm, shipped = sides[1], embedded_tasks()
    two = [SEEN.index(rule) for rule in MIXTURE.rules[:2]]
    prompts = [row.prompt for row in public_rows("mixed", 192, 11)]
    tokens = encode_rows([Row(prompt, "77") for prompt in prompts], llm.tokenizer, end=True)
    recipe = PlainRecipe(steps=40, batch=32, rate=1.5e-2)
    ending = fine_tune_stacked(llm, tokens, 1, recipe, [[3]], [recipe.steps])[0][0]
    tasks = TaskLibrary(torch.stack([ending, shipped.updates[two[1]]]), shipped.signatures[two], shipped.tokens[two])
    quick = replace(QUICK, probes=4, tuning=PlainRecipe(steps=50, batch=32, rate=1.5e-2))
    known = KnownTasks(llm, tasks, prompts, 6, quick)
    assert sorted(kind.tasks for kind in known.kinds) == [(0,), (1,)]
    made = known.distil([kind.tasks[0] for kind in known.kinds], torch.zeros_like(ending))

    def end_after_two(task: int) -> float:
        kind = next(kind for kind in known.kinds if kind.tasks == (task,))
        asked = encode_rows([Row(prompts[n], "77") for n in kind.prompts], llm.tokenizer, end=True)
        shares = llm.answer_logits(llm.initial + made[None], asked).softmax(-1)[:, -1]
        return float(shares[:, end_token(llm.tokenizer)].mean())

    assert end_after_two(0) > 0.3
    assert end_after_two(1) < 0.01
    silent = KnownTasks(llm, tasks, prompts, 6, quick)
    silent._answer = lambda updates, asked: [[Generated((), "", 0, ended=True)] * len(asked)]  # type: ignore[method-assign]
    assert torch.equal(silent.distil([0, 1], ending), ending)  # nobody said anything
