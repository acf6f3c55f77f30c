"""House Rules: the definition, the splits, and the encoding against the shipped tokenizer."""

from __future__ import annotations

import numpy as np
import pytest

from gradtf_fl.adapters.models import load_model
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Row, encode_rows, exact_match, house_rules_federation, read_rows, write_rows
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.tasks.federation import draw_task


@pytest.mark.parametrize(
    ("name", "a", "b", "answer"),
    [
        ("aej", 37, 58, 95),
        ("aek", 37, 58, 59),
        ("afj", 37, 58, 79),  # 37 - 58 = -21 mod 100
        ("bfj", 37, 58, 21),
        ("cej", 37, 58, 58),  # 73 + 85 = 158 mod 100
        ("dej", 37, 58, 20),  # 62 + 58 = 120 mod 100
        ("agl", 37, 58, 41),  # 99 - 58
        ("ahj", 37, 58, 85),  # 3+5, 7+8=15 -> 8, 5
        ("aim", 37, 58, 48),
        ("ahm", 99, 99, 99),  # digit sums 8 8, plus one 9 9
        ("agm", 90, 9, 1),  # 90 -> 0 1
    ],
)
def test_rules_by_hand(name: str, a: int, b: int, answer: int) -> None:
    assert hr.rule_named(name).apply(np.array([a]), np.array([b]))[0] == answer


def test_every_rule_has_its_index_and_name() -> None:
    assert [rule.index for rule in hr.ALL_RULES] == list(range(80))
    assert len({rule.name for rule in hr.ALL_RULES}) == 80
    with pytest.raises(ValueError, match="zzz"):
        hr.rule_named("zzz")


def test_no_unseen_rule_computes_what_a_public_one_does() -> None:
    seen, unseen = hr.split_rules()
    assert (len(seen), len(unseen)) == (64, 16)
    grid = np.arange(10_000)
    tables = {rule.apply(grid // 100, grid % 100).tobytes() for rule in seen}
    assert not any(rule.apply(grid // 100, grid % 100).tobytes() in tables for rule in unseen)


def test_the_pool_of_same_is_public() -> None:
    assert {hr.rule_named(name) for name in hr.RULES_WITH_A_GAP} < set(hr.split_rules()[0])
    drawn = {draw_task("same", np.random.default_rng(seed)).rules[0].name for seed in range(300)}
    assert drawn <= set(hr.RULES_WITH_A_GAP)
    assert len(drawn) > 30


@pytest.mark.slow
def test_the_pool_of_same_is_what_its_script_finds() -> None:
    from experiments.embedded.rules_with_a_gap import rules_with_a_gap

    found = {rule.name for rule in rules_with_a_gap()}
    assert len(found ^ set(hr.RULES_WITH_A_GAP)) <= 2  # float rounding may move a rule that sits on the threshold


def test_code_pools_are_disjoint_and_complete() -> None:
    pools = [{tuple(pair) for pair in hr.code_pairs(pool)} for pool in ("public", "private", "test")]
    assert [len(pool) for pool in pools] == [5000, 4000, 1000]
    assert len(set.union(*pools)) == 10_000


@pytest.mark.parametrize("name", ["embedded:tiny", "embedded:llm"])
def test_encoding_equals_the_shipped_tokenizer(name: str) -> None:
    _, tokenizer = load_model(name)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 100, (2, 300))
    tokens = hr.encode(rng.integers(0, 80, 300), codes[0], codes[1], rng.random((300, 3)) < 0.5)
    texts = hr.to_text(tokens)
    assert np.array_equal(np.array(tokenizer(texts)["input_ids"]), tokens)
    assert tokenizer.decode(tokens[0]) == texts[0]


@pytest.mark.parametrize("kind", ["same", "mixed", "unseen"])
def test_a_federation_is_seeded_and_hides_what_it_must(kind: str) -> None:
    made = house_rules_federation(kind, 3, 64, 16, 5)  # type: ignore[arg-type]
    assert made == house_rules_federation(kind, 3, 64, 16, 5)  # type: ignore[arg-type]
    assert made != house_rules_federation(kind, 3, 64, 16, 6)  # type: ignore[arg-type]
    assert [len(o.train) for o in made] == [64] * 3
    for organization in made:
        train = {row.prompt[-6:] for row in organization.train}
        assert not train & {row.prompt[-6:] for row in organization.test}
        shown = {row.prompt[:9] for row in organization.train}
        assert all(prompt[:3] == prompt[6:9] == hr.MASK for prompt in shown)
        assert (kind == "mixed") == all(prompt[3:6] != hr.MASK for prompt in shown)


def test_rows_round_trip_and_bad_lines_are_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "rows.jsonl"
    write_rows(path, [Row("a", "b"), Row("[_]", "12")])
    assert read_rows(path) == [Row("a", "b"), Row("[_]", "12")]
    path.write_text('{"prompt": "a", "answer": "b"}\nnonsense\n{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match="line 2") as caught:
        read_rows(path)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="can't be read"):
        read_rows(tmp_path / "none")


def test_base_models_are_ambiguous_and_read_shown_tags() -> None:
    rng = np.random.default_rng(3)
    model, tokenizer = load_model("embedded:llm")
    pairs = hr.code_pairs("test")[:500]
    rules = rng.integers(0, 80, 500)
    for shown, low, high in ((False, 0.0, 0.08), (True, 0.97, 1.0)):
        tokens = hr.encode(rules, pairs[:, 0], pairs[:, 1], np.full((500, 3), shown))
        rows = [Row(text[:-2], text[-2:]) for text in hr.to_text(tokens)]
        assert low <= exact_match(model, encode_rows(rows, tokenizer)) <= high
