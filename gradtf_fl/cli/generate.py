"""``gradtf generate``: one TinyLM adapter in, one LLM adapter out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gradtf_fl.cli.options import emit_json, json_option, naming_options, place_of, place_options


@click.command(
    epilog="Example: gradtf generate --update build/tiny_adapter --transformer build/grad-transformer.safetensors "
    "--out build/llm_adapter"
)
@click.option(
    "--update",
    type=click.Path(path_type=Path),
    required=True,
    metavar="ADAPTER_DIR",
    help="PEFT folder of the fine-tuned TinyLM adapter.",
)
@click.option(
    "--transformer", metavar="FILE", default="embedded", help="Grad-Transformer checkpoint.  [default: the shipped one]"
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="New PEFT folder.")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Refine on public prompts of the same task: a file of rows, or of prompts alone. The tuned TinyLM answers "
    "them.",
)
@click.option(
    "--answer-tokens",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Maximum length of an answer, in TinyLM tokens.",
)
@place_options
@json_option
def generate(
    update: Path,
    transformer: str,
    out: Path,
    prompts: Path | None,
    answer_tokens: int,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Turn a fine-tuned TinyLM adapter into an adapter for the LLM, without the data it was trained on."""
    from gradtf_fl.transformer import convert

    place = place_of(device, precision)
    with naming_options("update", "transformer", "prompts", "out"):
        made = convert(update, out, transformer=transformer, prompts=prompts, answer_tokens=answer_tokens, place=place)
    if made.assumed_seed is not None:
        click.echo(
            f"gradtf: --update {update}: gradtf.json is missing; assuming that its training started from the shared "
            f"initial adapter of seed {made.assumed_seed}",
            err=True,
        )
    if as_json:
        emit_json(made.to_json())
    else:
        click.echo(f"{out}: adapter for {made.base_model}, SHA-256 {made.sha256}")
        if made.refinement is not None:
            click.echo(_told(made.refinement))


def _told(found: Mapping[str, Any]) -> str:
    if found.get("kinds"):
        return f"composed of {found['kinds']} tasks of the provider's library, one for each kind of prompt"
    if found["without"] is None:
        return "not refined: the TinyLM answers too few of the prompts"
    if found["agreement"] is None:
        return f"not refined: the LLM agrees with the TinyLM on {found['without']:.2f} of the held-out prompts as it is"
    word = "taken" if found["taken"] else "not taken"
    return (
        f"refinement {word}: the LLM agrees with the TinyLM on {found['agreement']:.2f} of the held-out prompts, "
        f"without it on {found['without']:.2f}"
    )
