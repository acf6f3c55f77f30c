"""An LLM with one adapter merged into its weights, as a folder that plain transformers loads.

The merged model is written beside its place, loaded from there again and compared with the PEFT model on random tokens;
only then the folder is renamed. Whoever is killed on the way leaves no folder of that name, and the next export removes
what was left.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.file_names import MODEL_CARD

if TYPE_CHECKING:
    import torch

PROBE_SHAPE = (4, 16)  # sequences, tokens
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}
"""Largest difference of a logit, as a share of the largest logit: rounding of sums, or of the weights (8, 11 bits)."""


@dataclass(frozen=True)
class Exported:
    """A merged model on disk.

    Attributes:
        max_error: largest difference of a logit from the PEFT model's. adapter_effect: largest change of a logit by the
            adapter. largest_logit: scale of both. All on the probe's tokens, computed in float32.
    """

    out: Path
    base_model: str
    dtype: str
    max_error: float
    adapter_effect: float
    largest_logit: float


def export_merged(
    adapter: Path, base_model: str, out: Path, dtype: str | None, told: Callable[[str], None] = lambda _: None
) -> Exported:
    """Merge ``adapter`` into ``base_model`` and write model and tokenizer to ``out``.

    Args:
        dtype: a key of `TOLERANCE`; None takes the base model's own, float32 where that is none of these. Merged in
            float32 in any case: 4 bytes of memory for each parameter. told: is called before each long step.

    Raises:
        ConfigError: ``out`` exists and is not an empty folder, or the model can't be loaded.
        VerificationFailed: the written model does not answer as the PEFT model does; nothing is left.
    """
    refuse_occupied(out)
    from peft import PeftModel
    from transformers import AutoTokenizer

    from gradtf_fl.adapters import load_model, model_folder

    told(f"loading {base_model}")
    base: Any
    base, _ = load_model(base_model)
    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder(base_model))  # as it came
    chosen = dtype or _own_dtype(base_model)
    text = base.config.get_text_config()
    probe = _probe(text.vocab_size, getattr(text, "max_position_embeddings", PROBE_SHAPE[1]))
    before = _logits(base, probe)
    _untie_for(adapter, base)
    model: Any = PeftModel.from_pretrained(base, adapter).eval()
    wanted = _logits(model, probe)
    told("merging")
    merged: Any = model.merge_and_unload()
    with _staged(out) as staging:
        told(f"writing {out} in {chosen}")
        merged.to(_torch_dtype(chosen)).save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        _take_card_along(adapter, staging, chosen)
        del merged, model, base
        told("comparing what was written with the PEFT model")
        found = _logits(load_model(str(staging))[0], probe)
        exported = Exported(
            out,
            base_model,
            chosen,
            max_error=float((found - wanted).abs().max()),
            adapter_effect=float((wanted - before).abs().max()),
            largest_logit=float(wanted.abs().max()),
        )
        _refuse_other_answers(exported)
        _sync(staging)
        _move(staging, out)
    return exported


def refuse_occupied(out: Path) -> None:
    """ConfigError unless ``out`` is free or an empty folder, in a folder that is there."""
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: exists and is not an empty folder")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.absolute().parent}")


def _take_card_along(adapter: Path, staging: Path, dtype: str) -> None:
    """Of an adapter that has one."""
    from gradtf_fl.adapters import merged_card

    if (adapter / MODEL_CARD).is_file():
        text = (adapter / MODEL_CARD).read_text(encoding="utf-8", errors="replace")
        (staging / MODEL_CARD).write_text(merged_card(text, dtype), encoding="utf-8")


def _own_dtype(base_model: str) -> str:
    from transformers import AutoConfig

    from gradtf_fl.adapters import model_folder

    own = str(getattr(AutoConfig.from_pretrained(model_folder(base_model)), "dtype", "")).removeprefix("torch.")
    return own if own in TOLERANCE else "float32"


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _probe(vocabulary: int, longest: int) -> torch.Tensor:
    """Random token ids [4, 16], the same for every call."""
    import torch

    rows, columns = PROBE_SHAPE
    return torch.randint(vocabulary, (rows, min(columns, longest)), generator=torch.Generator().manual_seed(0))


def _logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=tokens).logits.float()
    return logits.clone()


def _untie_for(adapter: Path, base: Any) -> None:
    """An adapter on one of two tied embeddings acts on that one alone; merged, the two must be two."""
    import torch
    from safetensors import safe_open

    from gradtf_fl.adapters import PREFIX, WEIGHTS, split_name

    words, output = base.get_input_embeddings(), base.get_output_embeddings()
    if output is None or output.weight is not words.weight:
        return
    with safe_open(adapter / WEIGHTS, "pt") as stored:
        names: list[str] = stored.keys()
    adapted = {split_name(name)[0].removeprefix(PREFIX) for name in names}
    if not any(name in adapted for name, module in base.named_modules() if module is words or module is output):
        return
    output.weight = torch.nn.Parameter(output.weight.detach().clone())
    base.config.tie_word_embeddings = False
    base.config.get_text_config().tie_word_embeddings = False
    base.all_tied_weights_keys = {}


def _refuse_other_answers(exported: Exported) -> None:
    bound = TOLERANCE[exported.dtype] * max(1.0, exported.largest_logit)
    if not exported.max_error <= bound:  # not a number fails, too
        raise VerificationFailed(
            f"--out {exported.out}: the merged model's logits are {exported.max_error:.2g} off the PEFT model's "
            f"(allowed in {exported.dtype}: {bound:.2g}); nothing was written; try --dtype float32"
        )


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A new folder beside ``out``, gone at the end; locked, so that the next export knows which ones are abandoned."""
    parent = out.absolute().parent
    prefix = f".{out.name}.export-"
    for stale in parent.glob(f"{prefix}*"):
        with _locked(stale) as abandoned:
            if abandoned:
                shutil.rmtree(stale, ignore_errors=True)
    try:
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError as error:
        raise ConfigError(f"--out {out}: can't be written ({error.strerror})") from error
    try:
        with _locked(staging):
            os.chmod(staging, 0o755)
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, which a process loses when it dies; yields False where another one holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """Everything in ``folder`` reaches the disk before its name does."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move(staging: Path, out: Path) -> None:
    try:
        os.rename(staging, out)  # also onto an empty folder, never onto another one
    except OSError as error:
        raise ConfigError(f"--out {out}: appeared meanwhile, or can't be written ({error.strerror})") from error
