"""Options that several verbs share, and how they become a checked configuration."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from gradtf_fl.adapters import Place
    from gradtf_fl.config import SimulationConfig

LEAST_COLUMNS = 80
F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """``--json``: one JSON document on stdout, nothing else there."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout; progress on stderr.")(
        command
    )


def device_option(command: F) -> F:
    """``--device``: where models compute."""
    return click.option(
        "--device",
        metavar="NAME",
        default="cpu",
        show_default=True,
        help="Where to compute: auto, cpu, cuda, cuda:N, mps, spread (a large model on all CUDA devices).",
    )(command)


def place_options(command: F) -> F:
    """``--device`` and ``--precision``: where models compute, and how exactly; `place_of` is what they mean."""
    return device_option(
        click.option(
            "--precision",
            type=click.Choice(["auto", "float32", "bf16"]),
            default="auto",
            show_default=True,
            help="Precision of frozen weights; auto: bf16 on a CUDA device that has it.",
        )(command)
    )


def place_of(device: str, precision: str = "float32") -> Place:
    """The place that the options ask for; ConfigError names them."""
    from gradtf_fl.adapters import Place

    with naming_options("device", "precision"):
        return Place.find(device, precision)


def place_given(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``--device`` and ``--precision`` that stand on the command line, by their keys in a project."""
    source = click.get_current_context().get_parameter_source
    return {
        f"compute.{name}": given[name]
        for name in ("device", "precision")
        if source(name) is click.core.ParameterSource.COMMANDLINE
    }


def row_form_options(command: F) -> F:
    """``--format``, ``--prompt``, ``--answer`` and ``--window``: how files of rows are read."""
    formats = ["auto", "prompt-answer", "instruction", "messages", "columns", "text"]
    for option in (
        click.option("--window", type=click.IntRange(min=8), metavar="N", help="Text: characters of a window."),
        click.option("--answer", metavar="T", help="Columns: template of an answer."),
        click.option("--prompt", metavar="T", help="Columns: template of a prompt, fields in braces."),
        click.option(
            "--format", "row_format", type=click.Choice(formats), help="Form of the rows.  [default: auto, first row]"
        ),
    ):
        command = option(command)
    return command


def config_option(command: F) -> F:
    """``--config federation.toml``: values for options that are not given."""
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The project's file, from gradtf init.",
    )(command)


def emit_json(document: Mapping[str, Any]) -> None:
    """Print ``document`` on stdout; NaN and infinity are refused (they are not JSON)."""
    click.echo(json.dumps(document, indent=1, allow_nan=False))


def asks() -> bool:
    """Whether somebody sits before standard input; it may be closed altogether."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def console() -> Console:
    """For tables on stdout. On a narrower terminal lines wrap, and no column of figures is cut down to nothing."""
    from rich.console import Console

    found = Console()
    return found if found.width >= LEAST_COLUMNS else Console(width=LEAST_COLUMNS)


def configured(config_file: Path | None, given: Mapping[str, Any]) -> SimulationConfig:
    """The project of ``--config``, or the embedded one, overlaid with the options ``given`` (None and () mean "not
    given").

    Raises:
        ConfigError: every problem at once, each named by its option or by file and key.
    """
    from gradtf_fl.config import read_project

    options = {name: value for name, value in given.items() if value is not None and value != ()}
    return read_project(config_file, options)


def chosen(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given (click passes None for the others)."""
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def naming_options(*arguments: str) -> Iterator[None]:
    """Around a library call: problems that begin with the name of one of its ``arguments`` name the option instead."""
    try:
        yield
    except ConfigError as error:
        words = tuple(f"{argument} " for argument in arguments)
        problems = [f"--{problem}" if problem.startswith(words) else problem for problem in error.problems]
        raise type(error)(problems) from error
