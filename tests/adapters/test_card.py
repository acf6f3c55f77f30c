"""The model card of an adapter folder: what a hub reads of it, what it says, and that no hash depends on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard as HubCard

from gradtf_fl.adapters import AdapterSpec, add_results, load_adapter, save_adapter, state_hash
from gradtf_fl.adapters.card import UNKNOWN, UNSAID, ModelCard, base_license, code
from gradtf_fl.adapters.models import EMBEDDED
from gradtf_fl.reports import federation_card, signed_rows
from gradtf_fl.round_messages import TrainingPlan

STEM = "base_model.model.model.layers.0.self_attn.q_proj"
STATE = {f"{STEM}.lora_A.weight": torch.ones(2, 4), f"{STEM}.lora_B.weight": torch.zeros(4, 2)}
SPEC = AdapterSpec(targets=("q_proj",))
PLAN = TrainingPlan(8.0, 1e-5, 3, 50, 64, 0.5, 0.01, SPEC.canonical(), "0" * 64, "1" * 64)
HOSTILE = "x` | [a](http://evil.test) | <script>\n# Epsilon\n---\nlicense: none\x1b[2J"


def written(folder: Path, base: str = "org/base", card: ModelCard = UNKNOWN, spec: AdapterSpec = SPEC) -> Any:
    save_adapter(folder, STATE, spec, base, card)
    return HubCard.load(folder / "README.md")


def own_base(folder: Path, card: str = "", config: dict[str, Any] | None = None) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or {}))
    if card:
        (folder / "README.md").write_text(card)
    return str(folder)


def test_a_hub_reads_base_library_and_tags(tmp_path: Path) -> None:
    data = written(tmp_path / "adapter").data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("org/base", "peft", "text-generation")
    assert data.license is None
    assert {"lora", "base_model:adapter:org/base", "differential-privacy"} <= set(data.tags)


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_the_embedded_base_has_a_licence_and_no_hub_name(name: str, tmp_path: Path) -> None:
    card = written(tmp_path / "adapter", str(EMBEDDED[name]))
    assert (card.data.license, card.data.base_model) == ("apache-2.0", None)
    assert f"| Base model | `{name}` |" in card.text
    assert str(tmp_path) not in card.content
    assert str(EMBEDDED[name]) not in card.content


@pytest.mark.parametrize(
    ("card", "config", "licence"),
    [
        ("---\nlicense: mit\n---\n# Base\n", {}, "mit"),
        ("", {"license": "llama3.1"}, "llama3.1"),
        ("---\nlicense: mit\n---\n", {"license": "other"}, "mit"),
        ("# no front matter\nlicense: mit\n", {}, ""),
        ("---\nlicense: [mit, gpl]\n---\n", {}, ""),
        ("---\nlicense: {\n---\n", {}, ""),
        ('---\nlicense: "mit | x"\n---\n', {}, ""),
        ("---\n- a list\n---\n", {}, ""),
        ("", {}, ""),
    ],
)
def test_the_licence_is_what_the_base_states(card: str, config: dict[str, Any], licence: str, tmp_path: Path) -> None:
    assert base_license(own_base(tmp_path / "base", card, config)) == licence


def test_a_base_that_is_not_here_has_no_known_licence(tmp_path: Path) -> None:
    assert base_license(str(tmp_path / "missing")) == ""
    assert written(tmp_path / "adapter", str(tmp_path / "missing")).data.license is None


def test_a_card_that_knows_nothing_says_so(tmp_path: Path) -> None:
    text = written(tmp_path / "adapter").text
    assert f"## Privacy\n\n{UNSAID}\n" in text
    assert f"## Results\n\n{UNSAID}\n" in text
    assert state_hash(STATE).hex() in text
    assert "Neither covers this page." in text


def test_an_epsilon_stands_with_all_that_gives_it_a_meaning(tmp_path: Path) -> None:
    signed = signed_rows("a" * 64, "b" * 128, "c" * 64)
    text = written(tmp_path / "adapter", card=federation_card("run", 2, PLAN, simulated=False, signed=signed)).text
    privacy = text.partition("## Privacy")[2].partition("## What this does not cover")[0]
    rows = [line.split("|")[1].strip() for line in privacy.splitlines() if line.startswith("| ") and line != "| | |"]
    assert rows == ["Epsilon", "Unit", "Adjacency", "Delta", "Sampler", "Accountant", "Noise generator"]
    assert "at most 8 in all 3 rounds of the run, per organization" in privacy
    assert "| Round | 2 of 3 |" in text
    for figure in ("a" * 64, "b" * 128, "c" * 64):
        assert figure in text.partition("## Hash and signature")[2]


def test_a_simulation_says_that_it_protects_nobody(tmp_path: Path) -> None:
    text = written(tmp_path / "adapter", card=federation_card("run", 1, PLAN, simulated=True)).text
    assert "replayable from a seed" in text
    assert "this was a simulation" in text
    assert "this was a simulation" not in federation_card("run", 1, PLAN, simulated=False).text(SPEC, "org/base", "")


def test_without_a_plan_no_epsilon_is_claimed() -> None:
    text = federation_card("run", 4, None, simulated=False).text(SPEC, "org/base", "")
    assert "| Round | 4 |" in text
    assert "| Epsilon |" not in text


def test_a_hostile_run_id_stays_in_its_cell(tmp_path: Path) -> None:
    """A server names the run: one cell of code, no link, tag, row, heading or metadata of its own."""
    card = written(tmp_path / "adapter", card=federation_card(HOSTILE, 1, PLAN, simulated=False))
    line = next(line for line in card.text.splitlines() if line.startswith("| Run |"))
    assert line == f"| Run | {code(HOSTILE)} |"
    assert (line.count("|"), line.count("`")) == (3, 2)
    assert "\x1b" not in card.content
    assert card.text.count("# Epsilon") == 1  # inside that cell
    assert card.data.license is None
    assert card.data.library_name == "peft"


def test_hostile_names_of_a_base_stay_in_their_place(tmp_path: Path) -> None:
    base = own_base(tmp_path / "ba`se | <b>")
    card = written(tmp_path / "adapter", base)
    assert "| Base model | `ba'se / <b>` |" in card.text
    assert card.data.base_model is None


def test_results_replace_only_their_section(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    before = written(folder, card=federation_card("run", 1, PLAN, simulated=False)).content
    add_results(folder, [("Exact match", "0.5")])
    once = (folder / "README.md").read_text()
    assert "## Results\n\n| | |\n|---|---|\n| Exact match | 0.5 |\n\n## Hash and signature\n" in once
    assert once.replace("| | |\n|---|---|\n| Exact match | 0.5 |", UNSAID) == before
    add_results(folder, [("Exact match", "0.75")])
    assert (folder / "README.md").read_text() == once.replace("0.5 |", "0.75 |")


def test_results_make_no_card_where_there_is_none(tmp_path: Path) -> None:
    add_results(tmp_path, [("Exact match", "0.5")])
    assert list(tmp_path.iterdir()) == []


def test_no_hash_depends_on_the_card(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    written(folder)
    about = (folder / "gradtf.json").read_bytes()
    written(folder, card=federation_card("run", 1, PLAN, simulated=False))
    assert (folder / "gradtf.json").read_bytes() == about
    (folder / "README.md").unlink()
    state, spec, base = load_adapter(folder)
    assert (state_hash(state), spec, base) == (state_hash(STATE), SPEC, "org/base")


def test_folder_and_card_appear_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that can't be made leaves the old folder whole, and no new one anywhere."""
    folder = tmp_path / "adapter"
    written(folder, card=ModelCard(title="Old"))

    def fails(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ModelCard, "text", fails)
    for place in (folder, tmp_path / "new"):
        with pytest.raises(OSError, match="No space"):
            save_adapter(place, STATE, SPEC, "org/base")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert HubCard.load(folder / "README.md").text.startswith("\n# Old\n")


@pytest.mark.parametrize("kind", ["lora-xs", "full"])
def test_other_kinds_say_what_peft_gets(kind: str, tmp_path: Path) -> None:
    text = ModelCard().text(AdapterSpec(targets=("q_proj",), kind=kind), "org/base", "")
    assert f"kind `{kind}`" in text
    assert "holds its plain LoRA form" in text
