"""Where the Grad-Transformer is trained, and how exactly: device and precision, checked before any work."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda", "auto")
PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True)
class Place:
    """A device and the precision of its matrix products.

    With bf16 the Grad-Transformer's own weights and optimizer states stay float32 (autocast), and a frozen LLM is
    held in bf16.
    """

    device: torch.device
    precision: str

    @classmethod
    def find(cls, device: str, precision: str, number: int = 0) -> Place:
        """The place that is asked for; "auto" is a CUDA device where there is one, ``number`` tells several apart.

        Raises ConfigError, all problems at once: unknown names, no CUDA device, or none that computes in bf16.
        """
        import torch

        problems = []
        if device not in DEVICES:
            problems.append(f"device {device!r} is unknown: there are {', '.join(DEVICES)}")
        if precision not in PRECISIONS:
            problems.append(f"precision {precision!r} is unknown: there are {', '.join(PRECISIONS)}")
        cuda = torch.cuda.is_available()
        if device == "cuda" and not cuda:
            problems.append("device 'cuda': this machine has no CUDA device that torch can use")
        on_cuda = device in ("cuda", "auto") and cuda
        if precision == "bf16" and device in DEVICES and not (on_cuda and torch.cuda.is_bf16_supported(False)):
            problems.append("precision 'bf16' needs a CUDA device that computes in bf16; take 'float32'")
        if problems:
            raise ConfigError(problems)
        return cls(torch.device("cuda", number) if on_cuda else torch.device("cpu"), precision)

    @property
    def frozen_type(self) -> torch.dtype:
        """Type of weights that are not trained."""
        import torch

        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> AbstractContextManager[object]:
        """Around a forward pass: matrix products in this precision."""
        if self.precision == "float32":
            return nullcontext()
        import torch

        return torch.autocast(self.device.type, torch.bfloat16)
