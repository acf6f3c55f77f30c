"""The command line's reference, from the click commands themselves: every verb, argument, option and example."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

import click

from gradtf_fl.cli import VERBS, cli

HEAD = """# Command line

Made from the program itself when the site is built: each entry is what `gradtf VERB --help` says. Every verb also takes
`--debug`, which shows tracebacks. Verbs that do work take `--json`: one document on stdout, progress on stderr.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | something unexpected |
| 2 | usage, configuration or a failed check; all problems are listed at once |
| 3 | the privacy budget is exhausted |
| 4 | the round was aborted |
| 5 | verification failed |
| 130 | interrupted |

"""


def cli_page() -> str:
    """The page."""
    root = click.Context(cli, info_name="gradtf")
    overview = [f"| [`gradtf {name}`](#{_anchor(f'gradtf {name}')}) | {_cell(VERBS[name].summary)} |" for name in VERBS]
    parts = ["| verb | what it does |\n|---|---|\n" + "\n".join(overview)]
    for name in VERBS:
        command = cli.get_command(root, name)
        assert command is not None
        parts += _entries(command, click.Context(command, info_name=name, parent=root), 2)
    return HEAD + "\n\n".join(parts) + "\n"


def _entries(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    """A verb, then those below it."""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"{'#' * level} {context.command_path}\n\n```text\n{usage}\n```"
    if command.help:
        yield _prose(command.help)
    rows = [_row(parameter, context) for parameter in command.params if _shown(parameter)]
    if rows:
        yield "| argument or option | meaning |\n|---|---|\n" + "\n".join(rows)
    if command.epilog:
        yield _prose(command.epilog)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _entries(child, click.Context(child, info_name=name, parent=context), level + 1)


def _shown(parameter: click.Parameter) -> bool:
    return "--debug" not in parameter.opts and not getattr(parameter, "hidden", False)


def _row(parameter: click.Parameter, context: click.Context) -> str:
    if isinstance(parameter, click.Argument):
        count = "any number" if parameter.nargs == -1 else "required"
        return f"| `{_code(parameter.make_metavar(ctx=context))}` | {count} |"
    record = parameter.get_help_record(context)
    names, meaning = record if record is not None else (", ".join(parameter.opts), "")
    return f"| `{_code(names)}` | {_cell(meaning)} |"


def _prose(text: str) -> str:
    """Help or epilog as Markdown: commands become blocks of code."""
    return "\n\n".join(_paragraph(part.strip("\n")) for part in re.split(r"\n\s*\n", text) if part.strip())


def _paragraph(text: str) -> str:
    """A paragraph; click's mark for lines that stay as they are (a backspace) stands at its start."""
    kept = "\b" in text
    text = textwrap.dedent(text.replace("\b", "").replace("\f", "")).strip("\n")
    label, colon, commands = text.partition(":")
    if colon and commands.lstrip().startswith("gradtf ") and "\n" not in label:
        lines = textwrap.dedent(commands.strip("\n")) if kept else " ".join(commands.split())
        return f"{_plain(label)}:\n\n```bash\n{lines.strip()}\n```"
    return _plain(" ".join(text.split()))


def _code(text: str) -> str:
    """What stands between backticks in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", "\\|")


def _plain(text: str) -> str:
    """Text in which nothing is taken for Markdown or HTML."""
    return text.replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[")


def _anchor(title: str) -> str:
    return title.replace(" ", "-")
