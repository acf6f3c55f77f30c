"""Where models are held and computed, and how exactly: device, precision and quantization, checked before any work."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, get_args

from gradtf_fl.config import PlaceSection, Precision, Quantization
from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    import torch

SPREAD = "spread"
DEVICES = f"auto, cpu, cuda, cuda:N, mps, {SPREAD}"
QUANTIZED_EXTRA = 'bitsandbytes is not installed; pip install "gradtf-fl[quantized]"'


@dataclass(frozen=True)
class Place:
    """A device, and how base weights are held there. Adapters and all that is trained stay float32.

    Attributes:
        device: as torch has it; of a spread model the one that it begins and ends on.
        precision: "float32" or "bf16": of base weights, and of the Grad-Transformer's matrix products (autocast).
        quantization: "none", "8bit" or "4bit": of base weights; what is computed from them has ``precision``.
        is_spread: whether a model's layers are shared out among all CUDA devices.
    """

    device: torch.device
    precision: str
    quantization: str = "none"
    is_spread: bool = False

    @classmethod
    def find(
        cls, device: str = "cpu", precision: str = "float32", quantization: str = "none", *, number: int = 0
    ) -> Place:
        """The place that is asked for.

        >>> from gradtf_fl.adapters import Place
        >>> Place.find("cpu", "bf16").frozen_type
        torch.bfloat16

        Args:
            device: "cpu", "cuda", "cuda:N", "mps", "auto" (a CUDA device where there is one, else the CPU), "spread":
                all CUDA devices, each with some of a model's layers.
            precision: "float32", "bf16", or "auto": bf16 on a CUDA device that computes in it, else float32.
            quantization: "none", "8bit" or "4bit".
            number: which CUDA device is meant where ``device`` does not say it.

        Raises:
            ConfigError: unknown names, and all that this machine cannot do.
        """
        import torch

        problems = []
        kind, _, index = device.partition(":")
        cuda = torch.cuda.is_available()
        spread = device == SPREAD
        if spread:
            kind = "cuda"
        if kind not in ("auto", "cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdigit())):
            problems.append(f"device {device!r} is unknown: there are {DEVICES}")
        elif kind == "cuda" and not cuda:
            problems.append(f"device {device!r}: this machine has no CUDA device that torch can use")
        elif index and int(index) >= torch.cuda.device_count():
            problems.append(
                f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices, from cuda:0"
            )
        elif kind == "mps" and not torch.backends.mps.is_available():
            problems.append("device 'mps': this machine has no Apple GPU that torch can use")
        if kind == "auto":
            kind = "cuda" if cuda else "cpu"
        if precision not in get_args(Precision):
            problems.append(f"precision {precision!r} is unknown: there are {', '.join(get_args(Precision))}")
        native = kind == "cuda" and cuda and torch.cuda.is_bf16_supported(False)
        if precision == "auto":
            precision = "bf16" if native else "float32"
        elif precision == "bf16" and (kind == "mps" or (kind == "cuda" and cuda and not native)):
            problems.append(f"precision 'bf16': device {device!r} does not compute in bf16; take 'float32'")
        if quantization not in get_args(Quantization):
            problems.append(f"quantization {quantization!r} is unknown: there are {', '.join(get_args(Quantization))}")
        elif quantization != "none" and kind == "mps":
            problems.append(f"quantization {quantization!r}: not on mps; take 'none'")
        elif quantization != "none" and find_spec("bitsandbytes") is None:
            problems.append(f"quantization {quantization!r}: {QUANTIZED_EXTRA}")
        if problems:
            raise ConfigError(problems)
        place = torch.device(kind, int(index) if index else number) if kind == "cuda" else torch.device(kind)
        return cls(place, precision, quantization, spread)

    @classmethod
    def of(cls, compute: PlaceSection) -> Place:
        """The place that a ``[compute]`` table asks for; ConfigError as in `find`, each problem with its table."""
        try:
            return cls.find(compute.device, compute.precision, compute.quantization)
        except ConfigError as error:
            raise ConfigError([f"[compute] {problem}" for problem in error.problems]) from error

    def __str__(self) -> str:
        """For people: "cuda:0, bf16, 4bit"."""
        where = SPREAD if self.is_spread else str(self.device)
        return ", ".join([where, self.precision, *([self.quantization] if self.is_quantized else [])])

    @property
    def is_quantized(self) -> bool:
        """Whether base weights are held in fewer bits than they are computed in."""
        return self.quantization != "none"

    @property
    def frozen_type(self) -> torch.dtype:
        """Type of weights that are not trained."""
        import torch

        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> AbstractContextManager[object]:
        """Around a forward pass of the Grad-Transformer: matrix products in this precision."""
        if self.precision == "float32":
            return nullcontext()
        import torch

        return torch.autocast(self.device.type, torch.bfloat16)

    def loading(self) -> dict[str, Any]:
        """Arguments of transformers' ``from_pretrained``; a GPU gets the weights without a whole copy on the CPU."""
        options: dict[str, Any] = {"dtype": self.frozen_type}
        if self.is_quantized:
            from transformers import BitsAndBytesConfig

            eight = self.quantization == "8bit"
            # Above a threshold LLM.int8 lets the outliers of a whole batch decide how each of its rows is computed: a
            # row's gradient would depend on its neighbours, and clipping would bound nothing.
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_8bit=eight,
                load_in_4bit=not eight,
                llm_int8_threshold=0.0,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=self.frozen_type,
            )
        if self.is_spread:
            options["device_map"] = "auto"
        elif self.is_quantized or self.device.type != "cpu":
            options["device_map"] = {"": self.device}
        return options


def offloaded(model: Any) -> list[str]:
    """What is wrong with a model some of whose weights are on none of its devices: accelerate leaves what does not fit
    on the CPU or on disk, and fetches it in every pass. Empty where all are there."""
    named = dict(model.named_parameters())
    absent = [name for name, parameter in named.items() if parameter.device.type == "meta"]
    if not absent:
        return []
    return [
        f"{len(absent)} of {len(named)} weights do not fit on its devices and were left on the CPU or on disk, e.g. "
        f"{absent[0]}: take more or larger devices, precision 'bf16' or a quantization"
    ]


def devices_of(model: Any) -> list[torch.device]:
    """The devices that ``model`` has parameters on, in its order: rows go to the first."""
    return list(dict.fromkeys(parameter.device for parameter in model.parameters()))
