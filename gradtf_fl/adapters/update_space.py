"""One noun for "which base model, which adapter, where it starts, in which coordinates".

`UpdateSpace` is the light description, which travels and is compared; `AdaptedModel` is the model in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gradtf_fl.adapters.kinds import initial_values
from gradtf_fl.adapters.models import kept_model, load_model, model_hash
from gradtf_fl.adapters.spec import AdapterSpec, State
from gradtf_fl.adapters.state import attach, set_adapter_state, state_hash
from gradtf_fl.adapters.targets import resolve_targets
from gradtf_fl.adapters.update_vectors import BlockLayout, Shape, Vector, apply_update

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


@dataclass(frozen=True)
class UpdateSpace:
    """Where the update vectors of one adapter on one base model live.

    U = theta - theta_initial means something only together with the base model, the initial adapter and the order of
    its parameters. Vectors of one space may be added and compared; a Grad-Transformer translates from one space into
    another.

    Attributes:
        model: the base model's name, as `load_model` takes it; "" for a model that was built in memory.
        model_sha256: `model_hash` of its files (hex); "" for a model that was built in memory.
        spec: which adapter is trained on which modules.
        layout: the order of its trained parameters.
        initial_sha256: `state_hash` of the initial adapter (hex); "" where a file does not record it.
    """

    model: str
    model_sha256: str
    spec: AdapterSpec
    layout: BlockLayout
    initial_sha256: str = ""

    @property
    def shape(self) -> Shape:
        """(blocks, block_dim) of an update vector."""
        return self.layout.blocks, self.layout.block_dim

    @property
    def initial_hash(self) -> bytes:
        """``initial_sha256`` as rounds carry it (32 bytes)."""
        return bytes.fromhex(self.initial_sha256)

    def same_coordinates(self, other: UpdateSpace) -> bool:
        """Whether vectors of ``other`` mean the same here: equal layouts on equal base weights."""
        return self.layout.digest == other.layout.digest and self.model_sha256 == other.model_sha256

    def model_is_at_hand(self) -> bool:
        """Whether the model that is here under this name is the one that is meant, by its files."""
        return model_hash(self.model) == self.model_sha256

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form; without ``initial_sha256`` where that is not known, so that old files keep their bytes."""
        document: dict[str, Any] = {
            "model": self.model,
            "model_sha256": self.model_sha256,
            "spec": self.spec.to_json(),
            "layout": self.layout.to_json(),
        }
        return document | ({"initial_sha256": self.initial_sha256} if self.initial_sha256 else {})

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> UpdateSpace:
        """The space in `to_json`'s form; KeyError, TypeError or ValueError on another form."""
        return cls(
            str(document["model"]),
            str(document["model_sha256"]),
            AdapterSpec.from_json(document["spec"]),
            BlockLayout.from_json(document["layout"]),
            str(document.get("initial_sha256", "")),
        )


@dataclass(frozen=True, eq=False)
class AdaptedModel:
    """A base model in memory, with its tokenizer and the initial adapter of its space.

    Attributes:
        model: the base model, in eval mode; `attach` and `training.StackedAdapters` put adapters on it in place.
        tokenizer: its tokenizer; None where only tokens are used.
        space: what it is, as others see it.
        initial: the shared initial adapter: every parameter by PEFT name, frozen ones included, on the CPU.
    """

    model: Any
    tokenizer: Any
    space: UpdateSpace
    initial: State

    @classmethod
    def load(
        cls, name: str, spec: AdapterSpec, *, device: str | torch.device = "cpu", kept: bool = False
    ) -> AdaptedModel:
        """The model called ``name`` with the initial adapter of ``spec``.

        Args:
            name: as `load_model` takes it.
            spec: which adapter; targets ("auto",) become names, see `resolve_targets`.
            device: where the base model is put.
            kept: take a copy of a model that this process keeps in memory (see `kept_model`).

        Raises:
            ConfigError: the model can't be had, lacks a target, or the adapter's kind does not go on one.
        """
        model, tokenizer = kept_model(name) if kept else load_model(name)
        adapted = cls.of(model, tokenizer, spec, name, model_hash(name))
        model.to(device)  # type: ignore[arg-type]
        return adapted

    @classmethod
    def of(cls, model: Any, tokenizer: Any, spec: AdapterSpec, name: str = "", model_sha256: str = "") -> AdaptedModel:
        """A plain model that is in memory already; ConfigError as in `load`."""
        spec = replace(spec, targets=resolve_targets(model, spec.targets))
        initial = initial_values(model, spec)
        layout = BlockLayout.from_state(initial, spec.train_a, spec.rank)
        space = UpdateSpace(name, model_sha256, spec, layout, state_hash(initial).hex())
        return cls(model, tokenizer, space, initial)

    def attach(self, state: State | None = None) -> PeftModel:
        """The base model wrapped in PEFT, in place, with adapter ``state`` (default: the initial one).

        Raises:
            ConfigError: the state's names are not this adapter's.
        """
        wrapped = attach(self.model, self.space.spec, self.initial)
        if state is not None:
            set_adapter_state(wrapped, state)
        return wrapped

    def state_at(self, update: Vector) -> dict[str, torch.Tensor]:
        """The adapter's whole state at an update vector [blocks, block_dim]."""
        return apply_update(self.space.layout, self.initial, update)
