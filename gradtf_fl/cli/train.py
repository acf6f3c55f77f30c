"""``gradtf train``: the provider's second phase, tuples -> Grad-Transformer checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from gradtf_fl.cli.options import (
    chosen,
    config_option,
    configured,
    emit_json,
    json_option,
    place_given,
    place_of,
    place_options,
)
from gradtf_fl.transformer import SIZES, Backbone, Objective


@click.command(
    epilog="Example: gradtf train --tuples build/tuples --out build/grad-transformer.safetensors\n\n"
    "Example: gradtf train --config my-project/federation.toml"
)
@click.option(
    "--tuples",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Tuple store of gradtf curate.  [default: --config's]",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Checkpoint to write.  [default: --config's]"
)
@config_option
@click.option("--objective", type=click.Choice(get_args(Objective)), help="What is minimised.  [default: functional]")
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps.")
@click.option("--groups", type=click.IntRange(min=1), help="Shadow federations in a batch.")
@click.option("--rows", type=click.IntRange(min=1), help="Public rows per federation.")
@click.option("--rate", type=click.FloatRange(0, 1, min_open=True), help="Learning rate.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of initial weights and batches.  [default: 0]")
@click.option(
    "--backbone",
    metavar="SIZE|PATH|ID",
    help=f"Transformer: {', '.join(SIZES)} from scratch, or T5 weights from a folder or hub id (Flan-T5).  "
    "[default: a small one for the embedded pair]",
)
@click.option("--partition", metavar="NAME", help="How updates are cut into tokens.  [default: block]")
@click.option(
    "--validate-every",
    type=click.IntRange(min=0),
    metavar="STEPS",
    help="Hold out a tenth of the shadow federations, generate from them at these steps, keep the best weights.  "
    "[default: 0, never]",
)
@click.option("--patience", type=click.IntRange(min=1), help="Validations without a better one before the end.")
@place_options
@click.option(
    "--controls",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also fit mean, nearest and ridge on the store's pairs and write them here.",
)
@json_option
def train(
    tuples: Path | None,
    out: Path | None,
    config_file: Path | None,
    controls: Path | None,
    backbone: str | None,
    device: str,
    precision: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a Grad-Transformer on a tuple store. A killed run resumes from OUT.training.

    On several GPUs: torchrun --nproc-per-node N -m gradtf_fl.cli.main train --device cuda ...
    """
    from gradtf_fl.errors import ConfigError
    from gradtf_fl.transformer import Processes, TrainConfig, train_grad_transformer

    config = TrainConfig(device=device)
    if config_file is not None:
        from gradtf_fl.preparation import ProviderWork

        work = ProviderWork.of(configured(config_file, place_given({"device": device, "precision": precision})))
        config, precision = work.training, work.training.precision
        tuples, out, controls = tuples or work.tuples, out or work.checkpoint, controls or work.controls
    if tuples is None or out is None:
        missing = [name for name, path in (("tuples", tuples), ("out", out)) if path is None]
        raise ConfigError([f"--{name}: required without --config" for name in missing])
    if not tuples.is_dir():
        raise ConfigError(f"--tuples {tuples}: no such folder; `gradtf curate` makes one")
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; expected a file name")

    from gradtf_fl.reports import WorkProgress

    place = place_of(config.device, precision)
    config = replace(config, precision=place.precision, **chosen(given))
    if backbone is not None:
        config = replace(config, backbone=Backbone.named(backbone))
    out.parent.mkdir(parents=True, exist_ok=True)
    with WorkProgress("train") as progress:
        trained = train_grad_transformer(
            config, tuples, out, lambda done, total, loss: progress.show(f"loss {loss:.3f}", done, total)
        )
    if not Processes.launched().is_first:
        return
    if controls is not None:
        from gradtf_fl.baselines import Controls

        controls.parent.mkdir(parents=True, exist_ok=True)
        Controls.fit_on_store(tuples).save(controls)
    document = {"out": str(out), "sha256": trained.sha256, "objective": config.objective, "steps": config.steps}
    if as_json:
        emit_json(document)
    else:
        click.echo(f"{out}: Grad-Transformer, SHA-256 {trained.sha256}")
