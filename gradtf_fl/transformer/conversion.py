"""One TinyLM adapter folder in, one LLM adapter folder out: what a round does with the global update, on files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtf_fl.adapters import (
    AdaptedModel,
    ModelCard,
    Place,
    base_label,
    check_adapter,
    check_model,
    code,
    load_adapter,
    model_folder,
    save_adapter,
    state_hash,
    update_vector,
)
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import read_prompts
from gradtf_fl.transformer.checkpoint import GradTransformer, embedded_checkpoint
from gradtf_fl.transformer.known_tasks import embedded_tasks
from gradtf_fl.transformer.refinement import RefiningGenerator


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote, and how it came to be.

    Attributes:
        out: the new PEFT folder.
        base_model: name of the LLM that it belongs to.
        sha256: of the adapter's values (hex), see `gradtf_fl.adapters.state_hash`.
        transformer_sha256: of the Grad-Transformer's file (hex).
        refinement: how the refinement went (`Refined.summary`); None without prompts.
        assumed_seed: seed of the shared initial adapter that training was assumed to start from, because the TinyLM's
            folder has no gradtf.json; None where the folder says it.
    """

    out: Path
    base_model: str
    sha256: str
    transformer_sha256: str
    refinement: Mapping[str, Any] | None
    assumed_seed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The document of ``gradtf generate --json``."""
        return {
            "out": str(self.out),
            "base_model": self.base_model,
            "sha256": self.sha256,
            "transformer_sha256": self.transformer_sha256,
            "refinement": self.refinement,
        }


def convert(
    update: str | Path,
    out: str | Path,
    *,
    transformer: str | Path = "embedded",
    prompts: str | Path | None = None,
    answer_tokens: int = 32,
    place: Place | None = None,
) -> Conversion:
    """Turn a fine-tuned TinyLM adapter into an adapter for the LLM, without the data it was trained on.

    U = adapter - shared initial adapter; the LLM's initial adapter + generate(U) is written to ``out``, a folder
    that plain ``PeftModel.from_pretrained`` loads.

    >>> from tempfile import mkdtemp
    >>> from gradtf_fl import AdapterSpec, convert, initial_state, load_model, save_adapter
    >>> folder, spec = mkdtemp(), AdapterSpec()
    >>> state = initial_state(load_model("embedded:tiny")[0], spec)  # where fine-tuning starts: U = 0
    >>> save_adapter(f"{folder}/tiny", state, spec, "embedded:tiny")
    >>> made = convert(f"{folder}/tiny", f"{folder}/llm")
    >>> made.base_model
    'embedded:llm'
    >>> sorted(path.name for path in made.out.iterdir())[:3]
    ['README.md', 'adapter_config.json', 'adapter_model.safetensors']

    Args:
        update: PEFT folder of the TinyLM adapter.
        out: new PEFT folder.
        transformer: Grad-Transformer checkpoint; "embedded" is the one that ships with the package.
        prompts: JSONL file of objects with a "prompt", public prompts of the same task: the tuned TinyLM answers them,
            and the LLM update is refined on its answers.
        answer_tokens: maximum length of an answer, in TinyLM tokens.
        place: where the Grad-Transformer and, with prompts, both models compute; None: on the CPU, in float32.

    Raises:
        ConfigError: every path that is missing or occupied at once; an adapter or a model that the Grad-Transformer
            was not trained for.
        CorruptFile: a damaged adapter or checkpoint.
    """
    update, out = Path(update), Path(out)
    _check_paths(update, transformer, out, prompts)
    embedded = transformer == "embedded"
    grad = GradTransformer.load(embedded_checkpoint() if embedded else transformer)
    if place is not None:
        grad.model.to(place.device)
    source, target = grad.source, grad.target
    state, spec, base = load_adapter(update)
    check_adapter(f"update {update}", base, spec, source)
    for space in (source, target):
        check_model(f"transformer {transformer}", space)
    moved = update_vector(source.layout, state, AdaptedModel.shapes(source.model, source.spec).initial)
    llm = AdaptedModel.shapes(target.model, target.spec)
    refinement = None
    if prompts is None:
        values = grad.generate(moved)
    else:
        known = embedded_tasks() if embedded else None
        found = RefiningGenerator(grad, read_prompts(prompts), answer_tokens, known=known, place=place).refined(moved)
        values = found.updates[0].numpy()
        refinement = found.summary()
    generated = llm.state_at(values)
    save_adapter(out, generated, target.spec, model_folder(target.model), _card(grad, base, state_hash(state).hex()))
    assumed = None if (update / "gradtf.json").is_file() else source.spec.seed
    return Conversion(out, target.model, state_hash(generated).hex(), grad.sha256, refinement, assumed)


def _card(grad: GradTransformer, tiny: str, update_sha256: str) -> ModelCard:
    """What is known of an adapter that came from another adapter."""
    return ModelCard(
        title="LLM adapter generated from a TinyLM adapter",
        origin=[
            ("Made by", "`gradtf generate`: a Grad-Transformer, without the data that the TinyLM was trained on"),
            ("TinyLM", code(base_label(tiny))),
            ("TinyLM adapter, values (SHA-256)", code(update_sha256)),
            ("Grad-Transformer (SHA-256)", code(grad.sha256)),
            ("Base model's files (SHA-256)", code(grad.target.model_sha256)),
        ],
        limits=[
            "How the TinyLM adapter was trained, and so any epsilon: see its card. Where that training was private, "
            "so is this adapter, which was computed from that one and public data alone.",
            "The public rows that the Grad-Transformer was trained on.",
        ],
    )


def _check_paths(update: Path, transformer: str | Path, out: Path, prompts: str | Path | None) -> None:
    problems = []
    if not update.is_dir():
        problems.append(f"update {update}: no such folder")
    elif not (update / "adapter_config.json").is_file():
        problems.append(f"update {update}: no PEFT adapter in it (adapter_config.json is missing)")
    if transformer != "embedded" and not Path(transformer).is_file():
        problems.append(f"transformer {transformer}: no such file")
    if prompts is not None and not Path(prompts).exists():
        problems.append(f"prompts {prompts}: no such file")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"out {out}: exists and is not an empty folder")
    if problems:
        raise ConfigError(problems)
