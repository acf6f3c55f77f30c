"""A trained Grad-Transformer in one safetensors file: weights, standardisation, both sides' adapters and layouts.

Format 1 has a token for each row of an update vector; format 2 also stores how the vectors are partitioned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradtf_fl.adapters import ASSETS, UpdateSpace, Vector
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.files import PUBLIC, replace_file
from gradtf_fl.safetensors_header import metadata_of

if TYPE_CHECKING:
    from gradtf_fl.transformer.backbone import Backbone
    from gradtf_fl.transformer.model import GradTransformerModel
    from gradtf_fl.transformer.partition import PartitionPlan

FORMATS = (1, 2)


class GradTransformer:
    """A checkpoint ready to generate: ``generate(U [L1, n1]) -> [L2, n2]``.

    >>> import numpy as np
    >>> from gradtf_fl import GradTransformer
    >>> from gradtf_fl.transformer import embedded_checkpoint
    >>> grad = GradTransformer.load(embedded_checkpoint())
    >>> tiny, llm = grad.source.layout, grad.target.layout
    >>> grad.generate(np.zeros((tiny.blocks, tiny.block_dim), np.float32)).shape == (llm.blocks, llm.block_dim)
    True
    """

    def __init__(
        self,
        model: GradTransformerModel,
        backbone: Backbone,
        source: UpdateSpace,
        target: UpdateSpace,
        sha256: str = "",
    ) -> None:
        self.model = model
        self.backbone = backbone
        self.source = source
        self.target = target
        self.sha256 = sha256

    def generate(self, update: Vector) -> Vector:
        """LLM update float32 [L2, n2] of a TinyLM update float32 [L1, n1].

        Raises ConfigError when the update has another shape or holds NaN or infinity.
        """
        import torch

        wanted = (self.source.layout.blocks, self.source.layout.block_dim)
        if update.shape != wanted:
            raise ConfigError(f"TinyLM update is {update.shape}; this Grad-Transformer takes {wanted}")
        if not np.isfinite(update).all():
            raise ConfigError("TinyLM update holds NaN or infinite values")
        values = torch.from_numpy(np.ascontiguousarray(update, dtype=np.float32)).to(self.model.source_mean.device)
        with torch.no_grad():
            generated: Vector = self.model(values[None])[0].cpu().numpy()
        return generated

    def save(self, path: str | Path) -> None:
        """Write the checkpoint atomically; weights as float16 (they are float32 again once loaded)."""
        from safetensors.torch import save

        tensors = {n: t.detach().half().contiguous() for n, t in self.model.state_dict().items() if "shared" not in n}
        tensors = {n: t for n, t in tensors.items() if "embed_tokens" not in n}
        about = {
            "format": 1,
            "backbone": self.backbone.to_json() | {"pretrained": None} | _sizes(self.model),
            "source": self.source.to_json(),
            "target": self.target.to_json(),
            "tensors_sha256": _digest(tensors),
        }
        if not self.model.partitioning.is_whole:
            about |= {"format": 2, "partition": self.model.partitioning.plan.to_json()}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, save(tensors, {"grad_transformer": json.dumps(about, sort_keys=True)}), PUBLIC)

    @classmethod
    def pair(cls, path: str | Path) -> tuple[UpdateSpace, UpdateSpace]:
        """(source, target) of a checkpoint: what its file says, nothing of it loaded or verified.

        Raises:
            ConfigError: no such file. CorruptFile: its header is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"Grad-Transformer checkpoint {path}: no such file")
        try:
            about = metadata_of(path.read_bytes(), "grad_transformer")
            return UpdateSpace.from_json(about["source"]), UpdateSpace.from_json(about["target"])
        except Exception as error:
            raise CorruptFile(f"Grad-Transformer checkpoint {path}: its header is unreadable") from error

    @classmethod
    def load(cls, path: str | Path) -> GradTransformer:
        """Read and verify a checkpoint.

        Raises ConfigError when it is missing or its format or partition is unknown, CorruptFile when it is damaged.
        """
        import torch
        from safetensors.torch import load

        from gradtf_fl.transformer.backbone import Backbone
        from gradtf_fl.transformer.model import GradTransformerModel, Standardisation

        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"Grad-Transformer checkpoint {path}: no such file")
        data = path.read_bytes()
        try:
            tensors = load(data)
            about = metadata_of(data, "grad_transformer")
            if about["format"] not in FORMATS:
                raise _Unknown(f"checkpoint format {about['format']} is unknown; a newer program wrote it")
            if _digest(tensors) != about["tensors_sha256"]:
                raise ValueError("content does not match its SHA-256")
            state = {name: tensor.float() for name, tensor in tensors.items()}
            backbone = Backbone(**about["backbone"])
            source, target = UpdateSpace.from_json(about["source"]), UpdateSpace.from_json(about["target"])
            partitioning = None
            if about["format"] > 1:
                partitioning = _plan(about["partition"]).between(source.layout, target.layout)
            with torch.random.fork_rng():
                model = GradTransformerModel(
                    backbone,
                    Standardisation(state["source_mean"], state["source_scale"]),
                    Standardisation(state["target_mean"], state["target_scale"]),
                    partitioning,
                )
            missing, unexpected = model.load_state_dict(state, strict=False)
            if unexpected or any("shared" not in n and "embed_tokens" not in n for n in missing):
                raise ValueError("tensor names differ")
        except _Unknown as error:
            raise ConfigError(
                [f"Grad-Transformer checkpoint {path}: {problem}" for problem in error.problems]
            ) from None
        except Exception as error:
            raise CorruptFile(f"Grad-Transformer checkpoint {path}: damaged or no checkpoint ({error})") from error
        return cls(model.eval(), backbone, source, target, hashlib.sha256(data).hexdigest())


class _Unknown(ConfigError):
    """A whole file that only another version of this program can read."""


def _plan(document: Mapping[str, Any]) -> PartitionPlan:
    from gradtf_fl.transformer.partition import PartitionPlan

    try:
        return PartitionPlan.from_json(document)
    except ConfigError as error:
        raise _Unknown(error.problems) from error


def _digest(tensors: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over names and values, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _sizes(model: GradTransformerModel) -> dict[str, Any]:
    config = model.t5.config
    return {
        "width": config.d_model,
        "feed_forward": config.d_ff,
        "heads": config.num_heads,
        "head_dim": config.d_kv,
        "encoder_layers": config.num_layers,
        "decoder_layers": config.num_decoder_layers,
    }


def embedded_checkpoint() -> Path:
    """The Grad-Transformer that ships with the package (House Rules TinyLM -> LLM)."""
    return ASSETS / "grad-transformer.safetensors"
