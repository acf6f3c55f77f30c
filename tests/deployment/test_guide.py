"""docs/operator-guide.md cannot rot: its commands are run, in order, and what they print is what it shows.

The fast test leaves out the blocks marked ``deployment``; the slow one runs all of them, with real Flower processes.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from experiments.demos.guide_output import Stage, differences, run_all
from experiments.demos.page_blocks import ANY, GUIDE, REPOSITORY, Block, blocks, masked, matches
from gradtf_fl.round_messages import Refusal

TEXT = GUIDE.text
BLOCKS = blocks(TEXT)

# Blocks that no test runs: the diagram, the installation, the tracker's table of server.toml, two systemd units
NOT_RUN = {"text": 1, "sh": 1, "toml": 2, "ini": 2}


def run(chosen: list[Block]) -> None:
    """Run them in one folder; every difference at once."""
    with Stage() as stage:
        found = differences(chosen, stage)
    assert not found, "\n\n".join([*found, "python -m experiments.demos.guide_output writes the output again"])


def test_commands_without_flower() -> None:
    chosen = [block for block in BLOCKS if block.kind == "console" and not block.slow]
    assert sum(len(block.commands) for block in chosen) >= 15
    run(chosen)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command() -> None:
    run([block for block in BLOCKS if block.kind == "console"])


def test_no_block_is_left_out_silently() -> None:
    assert Counter(block.kind for block in BLOCKS if block.kind != "console") == NOT_RUN
    known = re.compile(r"deployment|exit=\d+|until=\S+")
    assert all(known.fullmatch(option) for block in BLOCKS if block.kind == "console" for option in block.options)
    for block in BLOCKS:
        if block.kind != "console":
            assert not [line for line in block.lines if line.startswith("$ ")], f"line {block.line}"
    assert TEXT.count("```") == 2 * len(BLOCKS)


def test_systemd_units_start_commands_that_are_run() -> None:
    """Units are not run here; the command in each is one that the page's console blocks run, too."""
    typed = [command.text for block in BLOCKS if block.kind == "console" for command in block.commands]
    for block in BLOCKS:
        if block.kind == "ini":
            (start,) = [line for line in block.lines if line.startswith("ExecStart=")]
            verb = start.partition("/bin/")[2]
            words = verb.split()
            assert any(all(word in text.split() for word in words[:4]) for text in typed), verb
            assert "Restart=always" in block.lines
            assert "KillMode=mixed" in block.lines


def test_messages_in_the_troubleshooting_tables_exist() -> None:
    """Words in the first column are what the programs say, or a refusal's code."""
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("gradtf_fl", "clients", "strategies")
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
    )
    source = re.sub(r'"\s*\n\s*f?"', "", source).replace("`", "")
    rows = [line for line in TEXT.partition("## Troubleshooting")[2].splitlines() if line.startswith("| `")]
    assert len(rows) > 20
    for row in rows:
        (quoted, *_) = re.findall(r"`([^`]+)`", row.split(" | ")[0])
        if quoted.startswith(("gradtf ", "org ")):
            continue  # a command
        for piece in re.split(r"\s*…\s*|[()]", quoted):
            assert piece.strip() in source, piece
    assert all(f"| `{code}` |" in TEXT for code in Refusal)


def test_links_lead_somewhere() -> None:
    def anchors(page: str) -> set[str]:
        titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
        return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}

    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        name, _, anchor = target.partition("#")
        page = GUIDE.path.parent / name if name else GUIDE.path
        assert page.is_file(), target
        assert not anchor or anchor in anchors(page.read_text(encoding="utf-8")), target


def test_masks_hide_what_changes_and_nothing_else() -> None:
    left = ["round 1.0 completed: 3 joined, 26.2 s", "│ free disk │ 77.3 GB", "fingerprint " + " ".join(["7a2b"] * 13)]
    right = ["round 1.1 completed: 3 joined, 7 s", "┃  free disk ┃ 1.1 GB", "fingerprint " + " ".join(["xyzz"] * 13)]
    assert masked(left) == masked(right)
    assert masked(["3 joined"]) != masked(["2 joined"])
    assert masked(["fail │ clock"]) != masked(["ok │ clock"])


def test_matches_follows_dots_and_the_background() -> None:
    assert matches(["a", ANY, "d"], ["a", "b", "c", "d"])
    assert matches([ANY], [])
    assert not matches(["a", ANY, "a"], ["a"])
    assert not matches(["a", ANY, "c"], ["a", "b", "d"])
    assert not matches(["a"], ["a", "b"])
    assert matches(["a", ANY, "c"], ["a", "b", "c"], background=True)
    assert not matches(["c", "a"], ["a", "b", "c"], background=True)


def test_blocks_are_read_as_they_stand() -> None:
    page = (
        "x\n```console deployment until=a_b\n$ one \\\n  two\nout\n$ cat <<'END'\n$\nb\nEND\nout\n$ three &\n```\n"
        "```text\n$\n```\n"
    )
    console, text = blocks(page)
    assert console.slow
    assert console.option("until") == "a_b"
    assert [(c.text, c.shown, c.background) for c in console.commands] == [
        ("one \\\n  two", ("out",), False),
        ("cat <<'END'\n$\nb\nEND", ("out",), False),
        ("three &", (), True),
    ]
    assert (text.kind, text.line) == ("text", 13)


def test_regenerating_keeps_what_is_left_out() -> None:
    page = "```console exit=3\n$ printf 'a\\nb\\nc\\n'\nold\n...\n$ exit 3\n```\n"
    with Stage() as stage:
        (block,) = run_all(page, stage)
        assert block.lines == ["$ printf 'a\\nb\\nc\\n'", "a", ANY, "$ exit 3"]
        with pytest.raises(ValueError, match="exit code 0, not 1"):
            list(run_all("```console exit=1\n$ true\n```\n", stage))
