"""The experiment's own arithmetic: the exact divergence of a rule's rows, gaps, and the figure's words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.paper.bound_against_gap import CAP, by_rule, difference, line, rule_divergence
from experiments.paper.bound_figure import caption, figure
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.theory import InformationBound

PUBLISHED = Path(__file__).parents[2] / "experiments" / "results" / "bound_against_gap.json"


def published() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(PUBLISHED.read_text())
    return document


def test_divergence_of_a_rule_counts_the_public_rules_that_agree() -> None:
    public, held_out = hr.split_rules()
    rule = public[0]
    expected = []
    for a, b in hr.code_pairs("test")[:100]:
        one = np.array([a]), np.array([b])
        agreeing = sum(int(other.apply(*one)[0] == rule.apply(*one)[0]) for other in public)
        expected.append(math.log(64 / agreeing))
    assert rule_divergence(rule) == pytest.approx(float(np.mean(expected)), abs=0.25)
    assert 0 < rule_divergence(rule) < math.log(64)
    assert any(math.isinf(rule_divergence(other)) for other in held_out)


def test_gap_is_the_absolute_mean_over_rules() -> None:
    losses = {"tuned_on": [1.0, 2.0, 3.0], "fresh": [0.5, 2.0, 2.0]}
    gaps = difference(losses, "fresh")
    assert gaps == [-0.5, 0.0, -1.0]
    gap, (low, high) = by_rule(gaps)
    assert gap == 0.5
    assert (low + high) / 2 == pytest.approx(-0.5)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(3))


def test_an_infinite_bound_is_no_number_in_json() -> None:
    one = line("x", "plain", math.inf, [1.0, 2.0], InformationBound(3.0, "because"), math.inf)
    assert (one.bound, one.divergence, one.information) == (None, None, 3.0)


def test_no_published_bound_is_below_its_gap() -> None:
    """Within what 16 rules can show: the interval's end nearest to zero is not above the bound."""
    lines = published()["lines"]
    assert len(lines) == 13
    for one in lines:
        nearest = 0.0 if one["interval"][0] < 0 < one["interval"][1] else min(map(abs, one["interval"]))
        assert one["bound"] is None or nearest <= one["bound"]
        assert one["gap"] <= CAP


def test_the_figure_says_what_is_vacuous(tmp_path: Path) -> None:
    document = published()
    words = caption(document)
    vacuous = sum(one["bound"] is None or one["bound"] >= document["loss"]["clipped_at"] for one in document["lines"])
    assert words.startswith(f"{vacuous} of 13 bounds are vacuous: above 4.61")
    assert document["caption"] == words
    figure(document, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
