"""``gradtf generate``: one TinyLM adapter in, one LLM adapter out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gradtf_fl.cli.options import emit_json, json_option


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
    help='Refine on public prompts of the same task: JSONL of objects with a "prompt". The tuned TinyLM answers them.',
)
@click.option("--answer-tokens", type=click.IntRange(min=1), default=32, show_default=True, help="Of an answer.")
@json_option
def generate(
    update: Path, transformer: str, out: Path, prompts: Path | None, answer_tokens: int, as_json: bool
) -> None:
    """Turn a fine-tuned TinyLM adapter into an adapter for the LLM, without the data it was trained on."""
    _check_paths(update, transformer, out, prompts)
    made = _convert(update, transformer, out, prompts, answer_tokens)
    if as_json:
        emit_json(made)
    else:
        click.echo(f"{out}: adapter for {made['base_model']}, SHA-256 {made['sha256']}")
        if (found := made["refinement"]) is not None:
            click.echo(_told(found))


def _told(found: Mapping[str, Any]) -> str:
    if found.get("kinds"):
        return f"put together from {found['kinds']} tasks that the provider knows, one for each kind of prompt"
    if found["without"] is None:
        return "not refined: the TinyLM answers too few of the prompts"
    if found["agreement"] is None:
        return f"not refined: the LLM agrees with the TinyLM on {found['without']:.2f} of the held-out prompts as it is"
    word = "taken" if found["taken"] else "not taken"
    return (
        f"refinement {word}: the LLM agrees with the TinyLM on {found['agreement']:.2f} of the held-out prompts, "
        f"without it on {found['without']:.2f}"
    )


def _check_paths(update: Path, transformer: str, out: Path, prompts: Path | None) -> None:
    from gradtf_fl.errors import ConfigError

    problems = []
    if not update.is_dir():
        problems.append(f"--update {update}: no such folder")
    elif not (update / "adapter_config.json").is_file():
        problems.append(f"--update {update}: no PEFT adapter in it (adapter_config.json is missing)")
    if transformer != "embedded" and not Path(transformer).is_file():
        problems.append(f"--transformer {transformer}: no such file")
    if prompts is not None and not prompts.is_file():
        problems.append(f"--prompts {prompts}: no such file")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"--out {out}: exists and is not an empty folder")
    if problems:
        raise ConfigError(problems)


def _convert(update: Path, transformer: str, out: Path, prompts: Path | None, answer_tokens: int) -> dict[str, Any]:
    """U = adapter - shared initial adapter; the LLM's initial adapter + generate(U) is written to ``out``."""
    from gradtf_fl.adapters import (
        apply_update,
        initial_state,
        load_adapter,
        load_model,
        model_folder,
        save_adapter,
        state_hash,
        update_vector,
    )
    from gradtf_fl.cli.base_model import check_adapter_of, check_side
    from gradtf_fl.tasks import read_prompts
    from gradtf_fl.transformer import GradTransformer, RefiningGenerator, embedded_checkpoint, embedded_tasks

    grad = GradTransformer.load(embedded_checkpoint() if transformer == "embedded" else transformer)
    source, target = grad.source, grad.target
    state, spec, base = load_adapter(update)
    check_adapter_of(f"--update {update}", base, spec, source)
    for side in (source, target):
        check_side(f"--transformer {transformer}", side)
    if not (update / "gradtf.json").is_file():
        click.echo(
            f"gradtf: --update {update}: gradtf.json is missing; assuming that its training started from the shared "
            f"initial adapter of seed {source.spec.seed}",
            err=True,
        )
    moved = update_vector(source.layout, state, initial_state(load_model(source.model)[0], source.spec))
    initial = initial_state(load_model(target.model)[0], target.spec)
    refinement = None
    if prompts is None:
        values = grad.generate(moved)
    else:
        known = embedded_tasks() if transformer == "embedded" else None
        found = RefiningGenerator(grad, read_prompts(prompts), answer_tokens, known=known).refined(moved)
        values = found.updates[0].numpy()
        refinement = found.summary()
    generated = apply_update(target.layout, initial, values)
    save_adapter(out, generated, target.spec, model_folder(target.model))
    return {
        "out": str(out),
        "base_model": target.model,
        "sha256": state_hash(generated).hex(),
        "transformer_sha256": grad.sha256,
        "refinement": refinement,
    }
