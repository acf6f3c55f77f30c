"""``python -m experiments.demos.guide_output PAGE``: run what a page shows, write the output into it.

What pages show is never typed: the operator's guide, the page on own models, and every page of `SHORT`. A block that
starts with ```console holds commands after ``$ `` and, below each, what it printed. A block that starts with ```python
is a program; an ```output block right after it holds what it printed. All of them are run, in order, in one new folder.
In the guide three organizations and the server stand side by side on loopback. Words after the kind say how:
``deployment`` (starts or needs real Flower processes), ``slow`` (takes minutes), ``exit=2`` (of the block's last
command), ``until=WORDS_WITH_UNDERLINES`` (what a command that ends with ``&`` has to print before the next one),
``name=app.py`` (a program is also written to that file). A shown line ``...`` stands for any lines. Blocks of any other
kind are not run, nor are those below a comment ``<!-- not run: the reason -->``.

Tests run the same and compare, with `masked`, what is printed now: `tests/deployment/test_guide.py`,
`tests/experiments/test_own_models_page.py`, `tests/site/test_pages.py`.
"""

from __future__ import annotations

import argparse
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from experiments.demos.page_blocks import ANY, GUIDE, PAGES, REPOSITORY, Block, Command, Page, blocks, masked, matches
from gradtf_fl.deployment import environment, free_port
from gradtf_fl.files import PUBLIC, replace_file

SHOWN_FOLDER, SHOWN_PACKAGE = "/srv/gradtf", "/opt/gradtf"
ADDRESS, LISTEN, HEALTH = "fl.example:9092", "0.0.0.0:9092", ("9093", "9094")
COLUMNS, SECONDS, ENDING_SECONDS = "118", 600.0, 150.0


SHARED = REPOSITORY.parent / "shared"


class Stage:
    """A folder in which a page's commands run. Names of the page stand for this machine's, and back.

    The folder's path is as long as the one in the page, so that tables break their lines at the same places.

    Args:
        page: whose commands.
        shared: where the folders are that it links to.
    """

    def __init__(self, page: Page = GUIDE, shared: Path = SHARED) -> None:
        self.root = _folder_as_long_as(SHOWN_FOLDER)
        for name in page.linked:
            (self.root / name).symlink_to(shared.absolute() / name)
        self._fingerprint = ""
        self._port = str(free_port())
        self._health = tuple(str(free_port()) for _ in HEALTH)
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._environment = environment(self.root / "home") | {
            "COLUMNS": COLUMNS,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "NO_COLOR": "1",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, _ in self._running:
            process.send_signal(signal.SIGTERM)
        for process, _ in self._running:
            try:
                process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def run(self, command: Command, until: str = "") -> tuple[int | None, list[str]]:
        """Exit code (None while it goes on running) and printed lines, in the page's names."""
        text = self._real(command.text)
        if command.background:
            code, said = self._start(text.rstrip().removesuffix("&"), until.replace("_", " "))
        else:
            ended = self._ended()
            done = subprocess.run(
                ["bash", "-c", text],
                cwd=self.root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
            )
            code, said = done.returncode, done.stdout.decode(errors="replace")
            if text.startswith("kill "):
                self._wait_for_an_end(ended)
        if found := re.search(r"invitation \S+: fingerprint ([a-z2-7 ]+)$", said, re.MULTILINE):
            self._fingerprint = found[1].strip()
        return code, [line.rstrip() for line in self._shown(said).splitlines()]

    def typed(self, command: Command) -> str:
        """The command as the page should show it: with the fingerprint of this run."""
        if not self._fingerprint:
            return command.text
        return re.sub(r"--fingerprint '[^']*'", f"--fingerprint '{self._fingerprint}'", command.text)

    def _start(self, text: str, until: str) -> tuple[int | None, str]:
        log = self.root / f"background-{len(self._running)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {text}"],
                cwd=self.root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append((process, log))
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            code, said = process.poll(), log.read_text(errors="replace")
            for number, line in enumerate(lines := said.splitlines(keepends=True), 1):
                if until in line and line.endswith("\n"):
                    return None, "".join(lines[:number])
            if code is not None:
                return code, said
            time.sleep(0.2)
        raise TimeoutError(f"{text}: did not print {until!r} in {SECONDS:g} s, but: {log.read_text()}")

    def _ended(self) -> int:
        return sum(process.poll() is not None for process, _ in self._running)

    def _wait_for_an_end(self, before: int) -> None:
        """After a ``kill``: until one more of the background commands is gone."""
        end = time.monotonic() + ENDING_SECONDS
        while self._ended() <= before and time.monotonic() < end:
            time.sleep(0.2)

    def _real(self, text: str) -> str:
        if self._fingerprint:
            text = re.sub(r"--fingerprint '[^']*'", f"--fingerprint '{self._fingerprint}'", text)
        for shown, real in ((ADDRESS, f"127.0.0.1:{self._port}"), (LISTEN, f"127.0.0.1:{self._port}")):
            text = text.replace(shown, real)
        for shown, real in zip(HEALTH, self._health, strict=True):
            text = text.replace(shown, real)
        return text

    def _shown(self, said: str) -> str:
        said = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", said)
        said = said.replace(f"listening on 127.0.0.1:{self._port}", f"listening on {LISTEN}")
        said = said.replace(f"127.0.0.1:{self._port}", ADDRESS)
        for shown, real in zip(HEALTH, self._health, strict=True):
            said = said.replace(f"127.0.0.1:{real}", f"127.0.0.1:{shown}")
        return said.replace(str(self.root), SHOWN_FOLDER).replace(str(REPOSITORY), SHOWN_PACKAGE)


def _folder_as_long_as(shown: str) -> Path:
    """A new folder (0700) whose path has as many letters as ``shown``, where the system's folder is short enough."""
    parent = tempfile.gettempdir()
    letters = max(6, len(shown) - len(parent) - 1)
    while True:
        folder = Path(parent) / ("g" + secrets.token_hex(letters))[:letters]
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder


@dataclass(frozen=True)
class Rewritten:
    """New lines of the block at ``line``, which had ``length``."""

    line: int
    length: int
    lines: list[str]


def rewritten(page: str, changes: Iterable[Rewritten]) -> str:
    """The page with new text in its blocks."""
    lines = page.splitlines()
    for change in sorted(changes, key=lambda change: change.line, reverse=True):
        lines[change.line : change.line + change.length] = change.lines
    return "\n".join(lines) + "\n"


def outputs(chosen: Iterable[Block], stage: Stage) -> Iterator[tuple[Block, list[tuple[Command, list[str]]]]]:
    """Run blocks, one after the other: each with what its commands printed.

    Raises:
        ValueError: a command ended with another exit code than the page says.
    """
    for block in chosen:
        found = []
        for number, command in enumerate(commands := block.commands, 1):
            print(f"$ {command.text}", file=sys.stderr, flush=True)
            code, said = stage.run(command, block.option("until"))
            expected = int(block.option("exit", "0")) if number == len(commands) else 0
            if code not in (None, expected):
                raise ValueError(
                    f"line {block.line}: {command.text}: exit code {code}, not {expected}:\n" + "\n".join(said)
                )
            found.append((command, said))
        yield block, found


def run_all(page: str, stage: Stage, slow: bool = True) -> Iterator[Rewritten]:
    """Run the blocks that are run; the new text of those that hold output.

    Args:
        slow: also run what needs real Flower processes, or minutes.
    """
    chosen = [block for block in blocks(page) if block.runs and (slow or not block.slow)]
    for block, found in outputs(chosen, stage):
        lines: list[str] = []
        for command, said in found:
            if block.kind == "console":
                lines += f"$ {stage.typed(command)}".splitlines()
            lines += _abridged(command.shown, said)
        if block.kind == "console" or block.output:
            yield Rewritten(block.shown.line, len(block.shown.lines), lines)


def differences(chosen: Iterable[Block], stage: Stage) -> list[str]:
    """Run blocks: every difference between what they print and what the page shows."""
    differing = []
    for block, found in outputs(chosen, stage):
        for command, said in found:
            if not matches(command.shown, said, command.background):
                shown, real = ("\n".join(masked(lines)) for lines in (command.shown, said))
                differing.append(f"line {block.line}: {command.text}\n-- shown\n{shown}\n-- real\n{real}")
    return differing


def _abridged(shown: Sequence[str], said: list[str]) -> list[str]:
    """``said``, with ``...`` for what the page leaves out: of a shown ``...``, the lines around it are kept."""
    while said and not said[-1]:
        said.pop()
    if ANY not in shown:
        return said
    first = shown.index(ANY)
    after = len(shown) - first - 1
    return [*said[:first], ANY, *(said[len(said) - after :] if after else [])]


def main() -> None:
    """Rewrite a page in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", choices=PAGES, nargs="?", default="guide")
    parser.add_argument("--shared", type=Path, default=SHARED, help="Folder with models/ and data/, for own-models.")
    parser.add_argument("--fast", action="store_true", help="Leave blocks alone that need Flower processes or minutes.")
    given = parser.parse_args()
    page, done = PAGES[given.page], list[Rewritten]()
    text = page.text
    try:
        with Stage(page, given.shared) as stage:
            for change in run_all(text, stage, not given.fast):
                done.append(change)
    finally:  # a command that fails does not undo the others' output
        replace_file(page.path, rewritten(text, done).encode(), PUBLIC)
        print(f"{page.path}: {len(done)} blocks written", file=sys.stderr)


if __name__ == "__main__":
    main()
