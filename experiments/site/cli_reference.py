"""The command line's reference, from the click commands themselves: every verb, argument, option and example."""

from __future__ import annotations

from collections.abc import Iterator

import click

from gradtf_fl.cli.main import VERBS, cli

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
    yield from (_epilog(part) for part in (command.epilog or "").split("\n\n") if part.strip())
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _entries(child, click.Context(child, info_name=name, parent=context), level + 1)


def _shown(parameter: click.Parameter) -> bool:
    return "--debug" not in parameter.opts and not getattr(parameter, "hidden", False)


def _row(parameter: click.Parameter, context: click.Context) -> str:
    if isinstance(parameter, click.Argument):
        return f"| `{parameter.make_metavar(ctx=context)}` | {'any number' if parameter.nargs == -1 else 'required'} |"
    record = parameter.get_help_record(context)
    names, meaning = record if record is not None else (", ".join(parameter.opts), "")
    return f"| `{_cell(names)}` | {_cell(meaning)} |"


def _prose(text: str) -> str:
    """Help as Markdown: click's marks for unwrapped paragraphs are taken off."""
    paragraphs = text.replace("\b\n", "").replace("\f", "").split("\n\n")
    return "\n\n".join(_plain(" ".join(paragraph.split())) for paragraph in paragraphs)


def _epilog(text: str) -> str:
    line = " ".join(text.split())
    label, colon, command = line.partition(": gradtf ")
    return f"{_plain(label)}:\n\n```bash\ngradtf {command}\n```" if colon else _plain(line)


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", "\\|")


def _plain(text: str) -> str:
    """Text in which nothing is taken for Markdown or HTML."""
    return text.replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[")


def _anchor(title: str) -> str:
    return title.replace(" ", "-")
