"""``gradtf curate``: the provider's first phase, public data -> update-vector tuples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from gradtf_fl.cli.options import chosen, emit_json, json_option


@click.command(epilog="Example: gradtf curate --out build/tuples --seed 0")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Tuple store to fill.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of shadow sets and training.  [default: 0]")
@click.option("--tiny", metavar="M", help="TinyLM.  [default: embedded:tiny]")
@click.option("--llm", metavar="M", help="LLM.  [default: embedded:llm]")
@click.option("--rules", type=click.IntRange(3, 64), help="Public rules used; fewer make a trial.  [default: 64]")
@click.option("--rows", type=click.IntRange(min=64), help="Rows in a shadow set.  [default: 1024]")
@click.option("--single-groups", type=click.IntRange(min=1), help="DP shadow federations for each rule.")
@click.option("--extra-singles", type=click.IntRange(min=0), help="More of one member for each rule, at epsilon 1.")
@click.option("--mixture-groups", type=click.IntRange(min=0), help="DP shadow federations on mixtures.")
@click.option("--plain-singles", type=click.IntRange(min=1), help="Plain TinyLM shadow sets for each rule.")
@click.option("--plain-mixtures", type=click.IntRange(min=0), help="Plain TinyLM shadow sets on mixtures.")
@click.option("--pair-singles", type=click.IntRange(min=1), help="Shadow sets of both models for each rule.")
@click.option("--pair-mixtures", type=click.IntRange(min=0), help="Shadow sets of both models on mixtures.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes, one thread each.  [default: one per core]")
@json_option
def curate(out: Path, workers: int | None, as_json: bool, **given: Any) -> None:
    """Fine-tune on public shadow sets and store the update vectors: TinyLM alone, and pairs with the LLM's.

    A killed run resumes: shards that are there are verified and kept.
    """
    from gradtf_fl.cli.progress import WorkProgress
    from gradtf_fl.curation import CurationConfig
    from gradtf_fl.curation import curate as run

    config = replace(CurationConfig(), **chosen(given))
    with WorkProgress("curate") as progress:
        store = run(config, out, progress.show, workers)
    document = {"out": str(out), "shards": len(store.names), "header": store.header}
    if as_json:
        emit_json(document)
    else:
        click.echo(f"{out}: {len(store.names)} shards; next: gradtf train --tuples {out}")
