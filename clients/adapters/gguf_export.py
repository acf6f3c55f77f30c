"""An LLM adapter as a LoRA file in GGUF, which llama.cpp loads beside a GGUF file of the base model.

    llama-cli -m BASE.gguf --lora ADAPTER.gguf

Per adapted layer it holds ``blk.N.NAME.weight.lora_a`` float32 [rank, in] and ``.lora_b`` float32 [out, rank], and
llama.cpp adds alpha / rank * B A. In files of architecture "llama" the two halves of each head's rotary pairs are
interleaved. The rows of q and k then have another order than in transformers, and the rows of their B must follow it
(`interleaved`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.adapters import CONFIG, PREFIX, WEIGHTS, load_encoder, split_name
from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.files import PUBLIC, place_new

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Matrices = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp holds a family of models.

    Attributes:
        name: in GGUF.
        is_interleaved: whether rows of q and k are in llama.cpp's order.
    """

    name: str
    is_interleaved: bool


ARCHITECTURES = {
    "llama": Architecture("llama", is_interleaved=True),
    "mistral": Architecture("llama", is_interleaved=True),
    "qwen2": Architecture("qwen2", is_interleaved=False),
    "qwen3": Architecture("qwen3", is_interleaved=False),
}
"""By transformers' ``model_type``."""
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers whose adapters llama.cpp applies as PEFT does, with tied embeddings too."""


class UnknownToGguf(ConfigError):
    """An adapter that can't be written as GGUF: its base's architecture, or a layer that it is on (exit 2)."""


@dataclass(frozen=True)
class ExportedGguf:
    """A LoRA file on disk.

    Attributes:
        out: the file.
        architecture: that the base's file must have.
        layers: how many are adapted.
        rank: of each.
        alpha: as the file says it.
    """

    out: Path
    architecture: str
    layers: int
    rank: int
    alpha: float


def export_gguf(adapter: Path, base_model: str, out: Path, name: str) -> ExportedGguf:
    """Write the PEFT folder ``adapter`` for ``base_model`` to the new file ``out``, and read it again.

    Args:
        adapter: verified by the caller: plain LoRA, one rank, scale alpha / rank.
        base_model: folder or hub id; its weights are not read.
        out: never replaced.
        name: what the file calls the adapter.

    Raises:
        ConfigError: ``out`` is there, the package ``gguf`` is missing, or the base can't be read.
        UnknownToGguf: every reason why GGUF can't hold the adapter.
        VerificationFailed: what was written reads otherwise; nothing is left.
    """
    refuse_existing(out)
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(f'--export gguf: pip install "gradtf-fl[gguf]" first ({error})') from error
    from safetensors.numpy import load_file

    base, _ = load_encoder(base_model)
    config = json.loads((adapter / CONFIG).read_text())
    architecture, tensors = gguf_matrices(load_file(adapter / WEIGHTS), base)
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "adapter.gguf"
        writer = gguf.GGUFWriter(path, architecture.name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_name(name)
        for tensor, values in tensors.items():
            writer.add_tensor(tensor, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _refuse_other_content(gguf.GGUFReader(path), tensors, out)
        _place(path.read_bytes(), out)
    return ExportedGguf(out, architecture.name, len(tensors) // 2, rank, alpha)


def gguf_matrices(plain: Mapping[str, NDArray[np.float32]], base: PretrainedConfig) -> tuple[Architecture, Matrices]:
    """The architecture of a base, and PEFT's matrices by their names in GGUF.

    Raises:
        UnknownToGguf: with every reason.
    """
    architecture = ARCHITECTURES.get(base.model_type)
    strange = sorted({module for module in _modules(plain) if module.rpartition(".")[2] not in LAYERS})
    problems = [f"--export gguf: adapters on {name} are not known; known are {', '.join(LAYERS)}" for name in strange]
    if architecture is None:
        known = ", ".join(sorted(ARCHITECTURES))
        problems.insert(0, f"--export gguf: architecture {base.model_type!r} is not known; known are {known}")
    if architecture is None or problems:
        raise UnknownToGguf([*problems, "--export merged works for all: convert the merged model with llama.cpp"])
    tensors: Matrices = {}
    names = _gguf_names(architecture, base.num_hidden_layers)
    for name in sorted(plain):
        module, role = split_name(name)
        values = np.ascontiguousarray(plain[name], dtype=np.float32)
        if role == "lora_B" and architecture.is_interleaved:
            values = _rows_in_order(module, values, base)
        tensors[f"{names.get_name(module.removeprefix(PREFIX))}.weight.{role.lower()}"] = values
    return architecture, tensors


def interleaved(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows [heads * 2 * pairs, n] of q or k, head by head from (half, pair) to (pair, half) order.

    >>> import numpy as np
    >>> interleaved(np.arange(8.0, dtype=np.float32).reshape(8, 1), heads=2).ravel().tolist()
    [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    """
    count, width = rows.shape
    halves = rows.reshape(heads, 2, count // heads // 2, width)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(count, width))


def refuse_existing(out: Path) -> None:
    """ConfigError where ``out`` is there, or there is no folder for it."""
    if out.exists() or out.is_symlink():
        raise ConfigError(f"--out {out}: is there already and is never overwritten")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.absolute().parent}")


def _rows_in_order(module: str, values: NDArray[np.float32], base: PretrainedConfig) -> NDArray[np.float32]:
    heads = {"q_proj": base.num_attention_heads, "k_proj": base.num_key_value_heads}
    layer = module.rpartition(".")[2]
    return interleaved(values, heads[layer]) if layer in heads else values


def _modules(plain: Mapping[str, Any]) -> set[str]:
    return {split_name(name)[0].removeprefix(PREFIX) for name in plain}


def _gguf_names(architecture: Architecture, layers: int) -> Any:
    import gguf

    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    return gguf.get_tensor_name_map(number, layers)


def _refuse_other_content(reader: Any, tensors: Matrices, out: Path) -> None:
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    if set(found) != set(tensors) or any(not np.array_equal(found[name], tensors[name]) for name in tensors):
        raise VerificationFailed(f"--out {out}: the file reads otherwise than it was written; nothing was kept")


def _place(data: bytes, out: Path) -> None:
    try:
        place_new(out, data, PUBLIC)
    except FileExistsError as error:
        raise ConfigError(f"--out {out}: appeared meanwhile and is never overwritten") from error
    except OSError as error:
        raise ConfigError(f"--out {out}: can't be written ({error.strerror})") from error
