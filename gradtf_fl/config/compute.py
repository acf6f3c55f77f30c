"""``[compute]``: where and how models compute; the same words in ``federation.toml`` and ``organization.toml``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from gradtf_fl.config.base import Section

Sampler = Literal["lora", "opacus"]
Precision = Literal["auto", "float32", "bf16"]
Quantization = Literal["none", "8bit", "4bit"]
DeviceName = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?|mps|spread)$")]
PhysicalRows = Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)]


class PlaceSection(Section):
    """``[compute]``: where models are held, and how exactly.

    Attributes:
        device: cpu, cuda, cuda:N, mps, auto (a CUDA device where there is one, else the CPU), or spread (all CUDA
            devices share a model's layers: for models too large for one).
        precision: of base weights: float32, bf16, or auto (bf16 on a CUDA device that computes in it, else float32).
            Adapters, gradients, norms and noise are float32 always.
        quantization: of base weights: none, 8bit or 4bit (needs the extra "quantized").
    """

    device: DeviceName = "cpu"
    precision: Precision = "auto"
    quantization: Quantization = "none"


class ComputeSection(PlaceSection):
    """``[compute]``: how models are held and trained. It decides the cost of a step, never what a step is.

    Attributes:
        gradient_checkpointing: compute activations again in the backward pass: less memory, more time.
        physical_rows: rows in one forward pass, or auto (as many as fit into memory, at most 512).
        sampler: who computes each row's gradient: lora, as fast as a plain step, or opacus, Opacus' own hooks.
    """

    gradient_checkpointing: bool = False
    physical_rows: PhysicalRows = "auto"
    sampler: Sampler = "lora"

    @property
    def place(self) -> PlaceSection:
        """What of it a server needs, which trains nothing."""
        return PlaceSection(**{name: getattr(self, name) for name in PlaceSection.model_fields})
