"""``gradtf generate``: one TinyLM adapter in, one LLM adapter out."""

from __future__ import annotations

from pathlib import Path

import click

from gradtf_fl.cli.options import emit_json, json_option


@click.command(
    epilog="Example: gradtf generate --update build/tiny_adapter --transformer build/transformer.safetensors "
    "--out build/llm_adapter"
)
@click.option(
    "--update", type=click.Path(path_type=Path), required=True, metavar="ADAPTER_DIR", help="PEFT folder."
)
@click.option("--transformer", metavar="FILE", default="embedded", help="Grad-Transformer checkpoint.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="New PEFT folder.")
@json_option
def generate(update: Path, transformer: str, out: Path, as_json: bool) -> None:
    """Turn a fine-tuned TinyLM adapter into an adapter for the LLM, without the data it was trained on."""
    from gradtf_fl.errors import ConfigError

    problems = []
    if not update.is_dir():
        problems.append(f"--update {update}: no such folder")
    elif not (update / "adapter_config.json").is_file():
        problems.append(f"--update {update}: no PEFT adapter in it (adapter_config.json is missing)")
    if transformer != "embedded" and not Path(transformer).exists():
        problems.append(f"--transformer {transformer}: no such file")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"--out {out}: exists and is not an empty folder")
    if problems:
        raise ConfigError(problems)

    from gradtf_fl.transformer.conversion import convert_adapter

    made = convert_adapter(update, transformer, out)
    if as_json:
        emit_json(made)
    else:
        click.echo(f"{out}: adapter for {made['base_model']} (SHA-256 {made['sha256']})")
