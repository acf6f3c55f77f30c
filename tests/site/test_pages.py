"""README and tutorials cannot rot: what they show is run, what is not run says why, and their English stays plain."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from experiments.demos.guide_output import Stage, differences
from experiments.demos.page_blocks import GUIDE, OWN_MODELS, REPOSITORY, SHORT, blocks
from tests.site.prose import PHRASES, prose, sentences, words

MOST_WORDS = 900
MOST_WORDS_A_SENTENCE = 18.0  # mean over a page
KINDS_TO_RUN = ("console", "python", "sh", "bash")
TUTORIALS = sorted((REPOSITORY / "docs" / "tutorials").glob("*.md"))
README = REPOSITORY / "README.md"
PAGES = sorted(
    [README, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "SECURITY.md", *(REPOSITORY / "docs").rglob("*.md")]
)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
ORDER = (
    *("For whom", "Install", "Two commands", "Ten lines of Python", "What is protected", "Results"),
    *("How a round works", "Documentation", "Cite"),
)
EARLIER = {GUIDE.path, OWN_MODELS.path}
"""Pages with tests of their own, which count the blocks that are not run."""


def run(name: str, *, slow: bool) -> None:
    """Run a page's blocks in one new folder; every difference at once."""
    chosen = [block for block in blocks(SHORT[name].text) if block.runs and (slow or not block.slow)]
    if not chosen:
        pytest.skip("all of its blocks take minutes: the slow test runs them")
    with Stage(SHORT[name]) as stage:
        found = differences(chosen, stage)
    assert not found, "\n\n".join([*found, f"python -m experiments.demos.guide_output {name} writes the output again"])


@pytest.mark.long
@pytest.mark.parametrize("name", SHORT)
def test_blocks_that_take_seconds(name: str) -> None:
    run(name, slow=False)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name, page in SHORT.items() if any(b.slow for b in blocks(page.text))])
def test_every_block(name: str) -> None:
    run(name, slow=True)


def unexplained(text: str) -> list[int]:
    """Lines of blocks that are neither run nor marked with the reason."""
    return [block.line for block in blocks(text) if block.kind in KINDS_TO_RUN and not (block.runs or block.not_run)]


@every_page
def test_a_block_is_run_or_says_why_not(page: Path) -> None:
    text = page.read_text()
    assert unexplained(text) == []
    runs = [block.line for block in blocks(text) if block.runs]
    assert not runs or page in EARLIER or page in {one.path for one in SHORT.values()}, runs
    assert text.count("```") == 2 * len(blocks(text))


def test_a_silent_block_is_found() -> None:
    assert unexplained("```sh\nmake demo\n```\n") == [1]
    assert unexplained("<!-- not run: it takes a day -->\n```sh\nmake demo\n```\n") == []
    assert unexplained("<!-- not run: -->\n```sh\nmake demo\n```\n") == [2]
    assert unexplained("```console\n$ true\n```\n```python\n1\n```\n```toml\n```\n") == []


def test_a_program_is_run_with_the_output_below_it() -> None:
    page = "```python name=a.py\nprint(6 * 7)\n```\n\n```output\n{}\n```\n\n```console\n$ python a.py\n42\n```\n"
    with Stage(SHORT["protocol"]) as stage:
        assert differences([b for b in blocks(page.format(42)) if b.runs], stage) == []
        assert len(differences([b for b in blocks(page.format(41)) if b.runs], stage)) == 1


def test_the_readme_is_short() -> None:
    """Counted as ``wc -w`` counts: everything but fenced blocks and HTML comments, tables and links included."""
    assert len(prose(README.read_text()).split()) <= MOST_WORDS


def test_the_readme_keeps_its_order() -> None:
    titles = re.findall(r"^## (.+)$", README.read_text(), re.MULTILINE)
    assert [title[: len(start)] for title, start in zip(titles, ORDER, strict=True)] == list(ORDER)


def test_the_readmes_program_has_ten_lines() -> None:
    (program,) = [block for block in blocks(README.read_text()) if block.kind == "python"]
    assert len([line for line in program.lines if line]) <= 10


@every_page
def test_sentences_are_short(page: Path) -> None:
    found = [len(words(sentence)) for sentence in sentences(page.read_text())]
    assert len(found) > (20 if page in TUTORIALS else 2)
    assert sum(found) / len(found) <= MOST_WORDS_A_SENTENCE


@every_page
def test_no_foreign_phrase_is_left(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "", prose(page.read_text()))
    assert [found[0] for found in PHRASES.finditer(" ".join(text.split()))] == []


def test_phrases_and_sentences_are_found() -> None:
    assert PHRASES.search("a person is wanted") is not None
    assert PHRASES.search("as it goes on") is not None
    assert PHRASES.search("It stands alongside.") is None
    assert sentences("# No\n\nOne two. Three\nfour five!\n\n- A point\n\n| a | b |\n\n```sh\nx\n```\n") == [
        "One two.",
        "Three four five!",
        "A point",
    ]


def test_the_app_on_the_flower_page_is_the_example() -> None:
    (app,) = [block for block in blocks(SHORT["flower"].text) if block.option("name") == "app.py"]
    example = (REPOSITORY / "experiments" / "examples" / "flower_app.py").read_text().split('"""')[2].strip()
    assert "\n".join(app.lines) == example


def shown_in(table: str) -> dict[str, list[str]]:
    """First cell -> the other cells, without marks."""
    rows = [row.strip("|").split("|") for row in table.splitlines() if re.match(r"\| [*\w]", row)]
    return {cells[0].strip("* "): [cell.strip("* ") for cell in cells[1:]] for cells in rows}


SAME = {
    "TinyLM tuned": "TinyLM tuned (floor)",
    "mean shadow update": "mean",
    "nearest shadow update": "nearest",
    "ridge per block, after PCA": "pca-ridge",
    "Cross-LoRA": "cross-lora",
    "proxy tuning": "proxy-tuning",
    "weak-to-strong": "public-w2s",
    "weak-to-strong on public prompts": "public-w2s",
    "W2S": "w2s",
    "Conf": "conf",
    "VisSup": "vissup",
    "LLM tuned": "LLM tuned (ceiling)",
}
"""What pages call a row of the measured table, where that has another name."""


@pytest.mark.parametrize(
    ("page", "rows", "column"), [("README.md", 8, 1), ("docs/results.md", 15, 0)], ids=["readme", "results"]
)
def test_the_table_of_rivals_is_the_measured_one(page: str, rows: int, column: int) -> None:
    results = (REPOSITORY / "experiments" / "results" / "README.md").read_text()
    measured = shown_in(results.partition("## table1")[2].partition("PGR:")[0])
    text = (REPOSITORY / page).read_text()
    said = shown_in(text[text.index("\n| accuracy |") :].partition("\n\n")[0])
    assert said.pop("accuracy")[column : column + 2] == ["seen rules", "unseen rules"]
    assert len(said) == rows
    for name, cells in said.items():
        figures = [
            " ± ".join(f"{float(part):.3f}".lstrip("0") for part in cell.split(" ± "))
            for cell in measured[SAME.get(name, name)][:2]
        ]
        assert cells[column : column + 2] == figures, name


HOUSE_RULES_COLUMNS = (
    *("tiny_base", "tiny_tuned", "llm_base", "mean_update", "nearest_update", "ridge"),
    *("generated", "llm_ceiling"),
)


def test_the_table_of_house_rules_is_the_measured_one() -> None:
    text = (REPOSITORY / "docs" / "house-rules.md").read_text()
    said = shown_in(text[text.index("\n| accuracy, mean over rules |") :].partition("\n\n")[0])
    measured = json.loads((REPOSITORY / "experiments" / "results" / "grad_transformer.json").read_text())["rows"]
    said.pop("accuracy, mean over rules")
    assert len(said) == 6
    for name, cells in said.items():
        run = re.search(r"epsilon \d", name)
        figures = measured["unseen" if "unseen" in name else "seen"][run[0].replace(" ", "_") if run else "plain"]
        for column, cell in zip(HOUSE_RULES_COLUMNS, cells, strict=True):
            figure = figures.get(f"{column}_five", figures.get(column))
            assert cell == (f"{figure:.3f}".lstrip("0") if figure is not None else ""), (name, column)
