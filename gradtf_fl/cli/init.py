"""``gradtf init``: a project's file, with a comment for every key."""

from __future__ import annotations

from pathlib import Path

import click

from gradtf_fl.cli.options import emit_json, json_option
from gradtf_fl.errors import ConfigError


@click.command(epilog="Example: gradtf init my-project --tiny ./SmolLM2-135M --llm ./SmolLM2-1.7B --task rows.jsonl")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--task",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Rows: a file, a folder with train and test files, a data set of the paper or of the hub. Repeatable.  "
    "[default: house-rules, which is embedded]",
)
@click.option("--tiny", metavar="M", help="TinyLM: a folder or hub id.  [default: embedded:tiny]")
@click.option("--llm", metavar="M", help="LLM: a folder or hub id.  [default: embedded:llm]")
@click.option(
    "--prompt",
    metavar="TEMPLATE",
    help='Rows with own columns: template of a prompt, "{title}\\n{body}\\n".',
)
@click.option("--answer", metavar="TEMPLATE", help="Template of an answer, in the same form.")
@json_option
def init(
    folder: Path,
    sources: tuple[str, ...],
    tiny: str | None,
    llm: str | None,
    prompt: str | None,
    answer: str | None,
    as_json: bool,
) -> None:
    """Write DIR/federation.toml: one commented file that check, prepare, simulate and server init read."""
    from gradtf_fl.preparation import make_project

    if (prompt is None) != (answer is None):
        raise ConfigError(f"--{'answer' if answer is None else 'prompt'}: missing; columns need both templates")
    templates = None if prompt is None or answer is None else (_typed(prompt), _typed(answer))
    made = make_project(folder, sources, tiny, llm, templates)
    own = bool(sources) and sources != ("house-rules",)
    if as_json:
        return emit_json({"file": str(made.path), "notes": list(made.notes)})
    for note in made.notes:
        click.echo(f"  {note}")
    click.echo(f"wrote {made.path}")
    verbs = ("check", "prepare", "simulate") if own else ("check", "simulate")
    click.echo("Next:\n" + "\n".join(f"  gradtf {verb} --config {made.path}" for verb in verbs))


def _typed(template: str) -> str:
    """A template as it was typed in a shell: there a line end is two letters."""
    return template.replace("\\n", "\n")
