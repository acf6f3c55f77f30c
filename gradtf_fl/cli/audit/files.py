"""What the ``gradtf audit`` verbs share: which ledgers are named, reading all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.file_names import LEDGER
from gradtf_fl.reports import WorkProgress

if TYPE_CHECKING:
    from gradtf_fl.privacy import AdvertisedHeads

MANY = 8
"""Ledgers from which on several processes read them and a progress bar is shown."""
Command = TypeVar("Command", bound=Callable[..., Any])
Result = TypeVar("Result")


def ledger_options(command: Command) -> Command:
    """``--ledger PATH``, repeatable, and further paths after it, as a shell expands a pattern."""
    command = click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path))(command)
    return click.option(
        "--ledger",
        "ledgers",
        multiple=True,
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="A ledger.sqlite, a folder with one, or an export. Repeatable; further paths may follow.",
    )(command)


def compared_options(command: Command) -> Command:
    """``--public-key``, ``--head`` and ``--heads``: what a ledger is compared with; see `compared_with`."""
    command = click.option(
        "--heads",
        "heads_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Many of them: lines of ORGANIZATION HEX, or what --json printed earlier.",
    )(command)
    command = click.option(
        "--head",
        metavar="HEX",
        callback=_head,
        help="A head once announced in a signed advert; it must be on the chain.",
    )(command)
    return click.option(
        "--public-key",
        "keys",
        multiple=True,
        metavar="HEX",
        callback=_keys,
        help="Key the ledger must be signed with.",
    )(command)


def compared_with(files: list[Path], head: bytes | None, heads_file: Path | None) -> AdvertisedHeads:
    """The announced heads that the options name.

    Raises:
        ConfigError: the file cannot be read, or a head without an organization is named for several ledgers.
    """
    from gradtf_fl.privacy import AdvertisedHeads, Announcement, read_heads

    known = [Announcement("", head)] if head is not None else []
    known += read_heads(heads_file).announcements if heads_file is not None else ()
    advertised = AdvertisedHeads(tuple(known))
    if advertised.names_nobody and len(files) > 1:
        raise ConfigError("a head without an organization belongs to one ledger; verify them one at a time")
    return advertised


def _keys(_: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(_bytes32(parameter.opts[0], text) for text in texts)


def _head(_: click.Context, parameter: click.Parameter, text: str | None) -> bytes | None:
    return None if text is None else _bytes32(parameter.opts[0], text)


def _bytes32(option: str, text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 32:
        raise ConfigError(f"{option} {text}: expected 64 hexadecimal digits")
    return value


def ledger_files(ledgers: tuple[Path, ...], paths: tuple[Path, ...]) -> list[Path]:
    """The named ledger files, each once; a folder stands for the ledger in it."""
    named = [ledger_file(path) for path in (*ledgers, *paths)]
    if not named:
        raise click.UsageError("name at least one ledger: --ledger PATH")
    return list(dict.fromkeys(named))


def ledger_file(path: Path) -> Path:
    """A folder stands for the ledger in it."""
    return path / LEDGER if path.is_dir() else path


def read_each(
    title: str,
    files: list[Path],
    read: Callable[[Path], Result],
    meanwhile: Callable[[], object] = lambda: None,
    damaged: list[str] | None = None,
) -> list[Result]:
    """``read`` for every file; all unreadable ones are named at once.

    Many files are read by several processes, and a progress bar is shown.

    Args:
        read: picklable, raises nothing but `ConfigError` and `VerificationFailed`.
        meanwhile: called once while the processes are at work.
        damaged: takes what is wrong with ledgers that did not verify, in place of an error.
    """
    stops = damaged is None
    damaged = [] if damaged is None else damaged
    found: list[Result] = []
    unusable: list[str] = []
    with WorkProgress(title) as progress, _outcomes(files, read) as outcomes:
        meanwhile()
        for done, (path, outcome) in enumerate(zip(files, outcomes, strict=True)):
            if len(files) >= MANY:
                progress.show(path.parent.name, done, len(files))
            if isinstance(outcome, ConfigError):
                unusable.extend(outcome.problems)
            elif isinstance(outcome, VerificationFailed):
                damaged.extend(outcome.problems)
            else:
                found.append(outcome)
    if damaged and (stops or unusable):
        raise VerificationFailed([*damaged, *unusable])
    if unusable:
        raise ConfigError(unusable)
    return found


@contextmanager
def _outcomes(
    files: list[Path], read: Callable[[Path], Result]
) -> Iterator[Iterator[Result | ConfigError | VerificationFailed]]:
    """What `read` returns or raises, in the order of ``files``."""
    attempt = partial(_attempt, read)
    if len(files) < MANY:
        yield map(attempt, files)
        return
    workers = min(os.cpu_count() or 1, len(files))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield pool.map(attempt, files)


def _attempt(read: Callable[[Path], Result], path: Path) -> Result | ConfigError | VerificationFailed:
    try:
        return read(path)
    except (ConfigError, VerificationFailed) as error:
        return error
