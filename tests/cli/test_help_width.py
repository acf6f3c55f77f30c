"""Every help page fits a terminal of 80 columns, and every verb has a line that is not cut off."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from gradtf_fl.cli.main import VERBS, cli

COLUMNS, LONGEST = 80, 45


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        yield (*path, name)
        if isinstance(found, click.Group):
            yield from commands(found, *path, name)


ALL = list(commands(cli))


def find(path: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    return command


@pytest.mark.parametrize("path", [(), *ALL], ids=" ".join)
def test_help_fits_a_terminal(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*path, "--help"], terminal_width=COLUMNS)
    assert shown.exit_code == 0
    assert [line for line in shown.output.splitlines() if len(line) > COLUMNS] == []
    command = find(path)
    if isinstance(command, click.Group):
        listed = shown.output.partition("Commands:" if path else "Verbs:")[2]
        assert "..." not in listed
        assert all(f"  {name}  " in listed for name in command.list_commands(click.Context(command)))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_verb_has_a_short_line(path: tuple[str, ...]) -> None:
    line = VERBS[path[0]].summary if len(path) == 1 else find(path).short_help
    assert line
    assert len(line) <= LONGEST
    assert line[0].isupper()
    assert line.endswith(".")
