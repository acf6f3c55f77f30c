"""The blocks of a page: which are run, what they show, and whether that is what a run prints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ANY = "..."


@dataclass(frozen=True)
class Page:
    """A page whose commands are run.

    Attributes:
        path: its file.
        linked: folders of the shared folder that stand, as links, where its commands run.
    """

    path: Path
    linked: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What it says."""
        return self.path.read_text(encoding="utf-8")


GUIDE = Page(REPOSITORY / "docs" / "operator-guide.md")
OWN_MODELS = Page(REPOSITORY / "docs" / "own-models-and-data.md", ("models", "data"))
SHORT = {
    name: Page(REPOSITORY / path)
    for name, path in {
        "readme": "README.md",
        "quickstart": "docs/quickstart.md",
        "researcher": "docs/tutorials/researcher.md",
        "provider": "docs/tutorials/provider.md",
        "operator": "docs/tutorials/operator.md",
        "auditor": "docs/tutorials/auditor.md",
        "flower": "docs/tutorials/flower.md",
        "protocol": "docs/protocol.md",
    }.items()
}
PAGES = {"guide": GUIDE, "own-models": OWN_MODELS, **SHORT}
PROGRAM = "program.py"
NOT_RUN = re.compile(r"<!-- not run: (\S.*\S) -->$")


@dataclass(frozen=True)
class Command:
    """One command (continued lines joined as they stand) and the lines shown below it."""

    text: str
    shown: tuple[str, ...]

    @property
    def background(self) -> bool:
        """Whether it goes on running."""
        return self.text.rstrip().endswith("&")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        kind: what stands right after the fence.
        options: the words behind that.
        line: number of the line after its fence.
        lines: its text.
        not_run: the reason why it is not run; empty without one.
        output: the block right after a program, with what it printed.
    """

    kind: str
    options: tuple[str, ...]
    line: int
    lines: tuple[str, ...]
    not_run: str = ""
    output: Block | None = None

    @property
    def runs(self) -> bool:
        """Whether it is run."""
        return self.kind in ("console", "python") and not self.not_run

    @property
    def shown(self) -> Block:
        """The block that holds the output: a program's own, else this one."""
        return self.output or self

    @property
    def slow(self) -> bool:
        """Whether it needs real Flower processes, or minutes."""
        return "deployment" in self.options or "slow" in self.options

    def option(self, name: str, default: str = "") -> str:
        """The value of ``name=value`` after the block's kind."""
        return next((o.partition("=")[2] for o in self.options if o.startswith(name + "=")), default)

    @property
    def commands(self) -> list[Command]:
        """Those of a console block; of a program, what writes and starts it."""
        if self.kind == "python":
            name = self.option("name", PROGRAM)
            text = "\n".join((f"cat > {name} <<'END'", *self.lines, "END", f"python {name}"))
            return [Command(text, self.output.lines if self.output else (ANY,))]
        found: list[tuple[list[str], list[str]]] = []
        for line in self.lines:
            if line.startswith("$ "):
                found.append(([line[2:]], []))
            elif found and not found[-1][1] and _continues(found[-1][0]):
                found[-1][0].append(line)
            elif found:
                found[-1][1].append(line)
            else:
                raise ValueError(f"line {self.line}: a console block begins with a command")
        return [Command("\n".join(text), tuple(shown)) for text, shown in found]


def _continues(lines: list[str]) -> bool:
    """Whether a command goes on in the next line: after a backslash, or in a here-document."""
    here = re.search(r"<<\s*'?(\w+)'?", lines[0])
    return here[1] not in lines[1:] if here else lines[-1].endswith("\\")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    lines = page.splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        kind, *options = lines[start][3:].split() or [""]
        reason = NOT_RUN.match(lines[start - 1]) if start else None
        block = Block(kind, tuple(options), start + 1, tuple(lines[start + 1 : number]), reason[1] if reason else "")
        if kind == "output" and found and found[-1].kind == "python":
            found[-1] = replace(found[-1], output=block)
        found.append(block)
        start = None
    return found


# what changes from run to run -> what stands for it in a comparison
MASKS = (
    (r"\b[a-z2-7]{4}( [a-z2-7]{4}){12}\b", "<fingerprint>"),
    (r"\b[0-9A-F]{2}(:[0-9A-F]{2}){31}\b", "<sha256>"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+\d\d:\d\d| UTC)?", "<time>"),
    (r"\d{4}-\d\d-\d\d", "<date>"),
    (r"\b[0-9a-f]{8,}\b", "<hex>"),
    (r"\b\d+(\.\d+)? (s|min|h|d)( \d+ (s|min|h))?(?![a-z])", "<seconds>"),
    (r"\b\d+ days\b", "<days>"),
    (r"\b\d+(\.\d+)? [GMk]?B\b", "<size>"),
    (r'"stage": "(train\.[a-z]+|evaluate\.adapter)?"', '"stage": <stage>'),
    (r'"cause": "[^"]*"', '"cause": <cause>'),
    (r'("[a-z_]*(?:pid|_s|seconds|served|attempts|restarts)[a-z_]*": )[0-9.]+', r"\1<number>"),
    (r"\bround (\d+)\.\d+ ", r"round \1.<attempt> "),
    (r"\b\d{1,3}(,\d{3})+\b", "<number>"),
    (r"(?<![\w.])-?\d+\.\d+(e-?\d+)?\b", "<number>"),
    (r"(\w+|nearest shadow update|mean update|library \([^)]*\)) reaches <number>", "<another way> reaches <number>"),
)


def masked(lines: Sequence[str]) -> list[str]:
    """Lines without what changes from run to run, blanks and a table's rules."""
    found = []
    for line in lines:
        for pattern, name in MASKS:
            line = re.sub(pattern, name, line)
        line = " ".join(re.sub(r"[\u2500-\u257f]+", " ", line).split())
        if line:
            found.append(line)
    return found


def matches(shown: Sequence[str], said: Sequence[str], background: bool = False) -> bool:
    """Whether ``said`` is what the page shows, but for what `masked` hides and for ``...``.

    Args:
        background: the command goes on running: every shown line must have come by now, others may have too.
    """
    wanted, real = masked(shown), masked(said)
    if background:
        rest = iter(real)
        return all(any(line == other for other in rest) for line in wanted if line != ANY)
    if ANY not in wanted:
        return wanted == real
    first = wanted.index(ANY)
    after = wanted[first + 1 :]
    return (
        len(real) >= len(wanted) - 1
        and wanted[:first] == real[:first]
        and after == (real[len(real) - len(after) :] if after else [])
    )
