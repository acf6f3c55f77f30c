"""One noun for "which base model, which adapter, where it starts, in which coordinates".

`UpdateSpace` is the light description, which travels and is compared; `AdaptedModel` is the model in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from gradtf_fl.adapters.kinds import initial_values
from gradtf_fl.adapters.models import kept_model, load_model, load_shapes, model_hash, weights_hash
from gradtf_fl.adapters.spec import AdapterSpec, State
from gradtf_fl.adapters.state import attach, set_adapter_state, state_hash
from gradtf_fl.adapters.targets import resolve_targets
from gradtf_fl.adapters.update_vectors import BlockLayout, Shape, Vector, apply_update

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from gradtf_fl.adapters.device import Place

T = TypeVar("T")


@dataclass(frozen=True)
class UpdateSpace:
    """Where the update vectors of one adapter on one base model live.

    U = theta - theta_initial means something only together with the base model, the initial adapter and the order of
    its parameters. Vectors of one space may be added and compared; a Grad-Transformer translates from one space into
    another.

    Attributes:
        model: the base model's name, as `load_model` takes it; "" for a model that was built in memory.
        model_sha256: `model_hash` of its files (hex), `weights_hash` in files of version 0.1; "" for a model that was
            built in memory.
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
        """Whether vectors of ``other`` mean the same here: equal layouts on one base model."""
        return self.layout.digest == other.layout.digest and (
            self.model_sha256 == other.model_sha256 or self._is_of_before(other) or other._is_of_before(self)
        )

    def model_is_at_hand(self) -> bool:
        """Whether the model that is here under this name is the one that is meant, by its files."""
        return self.is_of(self.model)

    def is_of(self, name: str) -> bool:
        """Whether its base model is the one called ``name``, by its files. ConfigError as `model_hash`."""
        return self.model_sha256 == model_hash(name) or self.model_sha256 == weights_hash(name)

    def _is_of_before(self, now: UpdateSpace) -> bool:
        """Whether this space was written by version 0.1 for the model of ``now``, as far as its weights tell."""
        return bool(now.model) and self.model_sha256 == weights_hash(now.model)

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
    def load(cls, name: str, spec: AdapterSpec, place: Place | None = None, *, kept: bool = False) -> AdaptedModel:
        """The model called ``name`` with the initial adapter of ``spec``.

        Args:
            name: as `load_model` takes it.
            spec: which adapter; targets ("auto",) become names, see `resolve_targets`.
            place: where and how exactly the base model is held; None: on the CPU, in float32.
            kept: take a copy of a model that this process keeps in memory (see `kept_model`).

        Raises:
            ConfigError: the model can't be had, lacks a target, or the adapter's kind does not go on one.
        """
        model, tokenizer = (kept_model if kept else load_model)(name, place)
        rounded = place is not None and (place.precision, place.quantization) != ("float32", "none")
        initial = None
        if rounded and spec.kind == "lora-xs":  # it comes from the weights themselves, as everybody has them
            initial = initial_values(load_model(name)[0], spec)
        return cls.of(model, tokenizer, spec, name, model_hash(name), initial)

    @classmethod
    def shapes(cls, name: str, spec: AdapterSpec) -> AdaptedModel:
        """`load` without the model's weights: its space and initial adapter, for whoever computes nothing with it.

        Only LoRA-XS, whose initial adapter comes from the weights, loads them. ConfigError as in `load`.
        """
        if spec.kind == "lora-xs":
            return cls.load(name, spec)
        return cls.of(load_shapes(name), None, spec, name, model_hash(name))

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        spec: AdapterSpec,
        name: str = "",
        model_sha256: str = "",
        initial: State | None = None,
    ) -> AdaptedModel:
        """A plain model that is in memory already; ConfigError as in `load`.

        ``initial`` is its initial adapter, where the weights in memory are not those that it comes from.
        """
        spec = replace(spec, targets=resolve_targets(model, spec.targets))
        if initial is None:
            initial = initial_values(model, spec)
        layout = BlockLayout.from_state(initial, spec.train_a, spec.rank)
        space = UpdateSpace(name, model_sha256, spec, layout, state_hash(initial).hex())
        return cls(model, tokenizer, space, initial)

    @classmethod
    def shared(cls, name: str, spec: AdapterSpec, place: Place | None = None, role: str = "") -> SharedModel:
        """`load`, once in this process: whoever asks for the same gets the same model.

        Args:
            name: as `load`.
            spec: as `load`.
            place: as `load`.
            role: models of two roles are two, so that both can be in use at once.

        Raises:
            ConfigError: as `load`.
        """
        return _shared(name, spec, place, role, model_hash(name))

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


@dataclass(frozen=True, eq=False)
class SharedModel(AdaptedModel):
    """An `AdaptedModel` whose users come one after the other: `attach` gives all of them one PEFT model.

    Attributes:
        shown: what was shown to hold for this model and need not be shown again, by what was asked.
    """

    shown: dict[Hashable, Any] = field(default_factory=dict)

    def attach(self, state: State | None = None) -> PeftModel:
        """As `AdaptedModel.attach`; what the last user did to the model is undone."""
        wrapped, modes, trained = self._wrapped
        for module, mode in modes:
            module.training = mode
        for parameter, trains in trained:
            parameter.grad = None
            parameter.requires_grad_(trains)
        set_adapter_state(wrapped, self.initial if state is None else state)
        return wrapped

    @cached_property
    def _wrapped(self) -> tuple[PeftModel, list[tuple[Any, bool]], list[tuple[Any, bool]]]:
        wrapped = attach(self.model, self.space.spec, self.initial)
        modes = [(module, module.training) for module in wrapped.modules()]
        return wrapped, modes, [(parameter, parameter.requires_grad) for parameter in wrapped.parameters()]

    def once(self, what: Hashable, find: Callable[[], T]) -> T:
        """What ``find`` returns, asked once for each ``what``. An exception passes and is asked for again."""
        if what not in self.shown:
            self.shown[what] = find()
        found: T = self.shown[what]
        return found


@lru_cache(maxsize=4)
def _shared(name: str, spec: AdapterSpec, place: Place | None, role: str, files_hash: str) -> SharedModel:
    loaded = AdaptedModel.load(name, spec, place)
    return SharedModel(loaded.model, loaded.tokenizer, loaded.space, loaded.initial)
