"""The provider's side of a round: where the TinyLM starts, and an LLM adapter out of the global update."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.config import NO_TRANSFORMER, FederationPlan, RoundSettings
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import PROVIDER_KEY
from gradtf_fl.round_messages import AdapterDelivery, global_model_hash
from gradtf_fl.secagg import Identity

if TYPE_CHECKING:
    from gradtf_fl.adapters import AdaptedModel, AdapterSpec, ModelCard, UpdateSpace
    from gradtf_fl.transformer import GradTransformer


class Generator(Protocol):
    """What `gradtf_fl.transformer.GradTransformer` offers to a round."""

    @property
    def source(self) -> UpdateSpace: ...
    @property
    def target(self) -> UpdateSpace: ...
    @property
    def sha256(self) -> str: ...
    def generate(self, update: NDArray[np.float32]) -> NDArray[np.float32]:
        """LLM update [L2, n2] of a TinyLM update [L1, n1]."""
        ...


@dataclass(frozen=True)
class GeneratedAdapter:
    """An LLM adapter: its values, its packed bytes, their SHA-256 (hex), the provider's signature, and how its
    refinement went (see `RoundRecord`)."""

    state: dict[str, Any]
    packed: bytes
    sha256: str
    signature: bytes
    refinement: dict[str, Any]


class PlainSum:
    """A federation without a Grad-Transformer: the sum itself is delivered, as an adapter of the TinyLM.

    Attributes:
        source, target: the TinyLM's space, both.
        sha256: of the space, since there is no checkpoint.
    """

    def __init__(self, space: UpdateSpace) -> None:
        self.source = self.target = space
        self.sha256 = hashlib.sha256(f"gradtf/plain-sum/v1|{space.layout.digest}".encode()).hexdigest()

    def generate(self, update: NDArray[np.float32]) -> NDArray[np.float32]:
        """The update as it came, float32 [blocks, block_dim]."""
        return update


class Provider:
    """Holds the Grad-Transformer, both sides' spaces, the LLM's initial adapter and the signing key.

    The TinyLM is loaded to see that it can be trained, and then given up; the LLM only where refinement asks it.

    Attributes:
        tiny: the space of the organizations' update vectors.
        llm: the space of the LLM updates.
        llm_initial: the LLM's initial adapter.
    """

    def __init__(self, plan: FederationPlan, generator: Generator | None = None) -> None:
        """Load what the plan names.

        Raises:
            ConfigError: a model is missing, or the transformer was trained for another pair. CorruptFile.
        """
        from gradtf_fl.adapters import AdaptedModel, Place

        self.generator: Generator = generator if generator is not None else load_generator(plan)
        tiny = AdaptedModel.load(plan.tiny, self.generator.source.spec, Place.of(plan.compute))
        llm = AdaptedModel.shapes(plan.llm, self.generator.target.spec)
        self.tiny, self.llm, self.llm_initial = tiny.space, llm.space, llm.initial
        self._refuse_other_pair(plan)
        _refuse_untrainable(plan, tiny)
        self.key = signing_key(plan)

    def _refuse_other_pair(self, plan: FederationPlan) -> None:
        sides = (("TinyLM", self.tiny, self.generator.source), ("LLM", self.llm, self.generator.target))
        problems = [
            f"transformer {plan.transformer}: made for another {what} than {space.model!r}"
            for what, space, wanted in sides
            if not space.same_coordinates(wanted)
        ]
        if problems:
            raise ConfigError(problems)

    def generate(
        self, run_id: str, round_number: int, update: NDArray[np.float32], first: NDArray[np.float32] | None = None
    ) -> GeneratedAdapter:
        """U [L1, n1] -> LLM adapter, packed and signed for this round; without a Grad-Transformer the TinyLM's own.

        ``first`` is U after the first round, if that was another.
        """
        from gradtf_fl.adapters import apply_update, pack_adapter

        values, refinement = self._generated(update, first)
        state = apply_update(self.llm.layout, self.llm_initial, values)
        packed = pack_adapter(state, self.llm.spec, self.llm.model, self.llm.model_sha256)
        return self._signed(run_id, round_number, update, dict(state), packed, refinement)

    def _generated(
        self, update: NDArray[np.float32], first: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        from gradtf_fl.transformer import RefiningGenerator

        if not isinstance(self.generator, RefiningGenerator):
            return self.generator.generate(update), {}
        found = self.generator.refined(update, first)
        values: NDArray[np.float32] = found.updates[0].numpy()
        return values, found.summary()

    def reload(self, folder: Path, run_id: str, round_number: int, update: NDArray[np.float32]) -> GeneratedAdapter:
        """The adapter of a checkpointed round, signed again."""
        from gradtf_fl.adapters import load_adapter, pack_adapter

        state, spec, _ = load_adapter(folder)
        packed = pack_adapter(state, spec, self.llm.model, self.llm.model_sha256)
        return self._signed(run_id, round_number, update, dict(state), packed, {})

    def _signed(
        self,
        run_id: str,
        round_number: int,
        update: NDArray[np.float32],
        state: dict[str, Any],
        packed: bytes,
        refinement: dict[str, Any],
    ) -> GeneratedAdapter:
        spec, initial = self.tiny.spec.canonical(), self.tiny.initial_hash
        unsigned = AdapterDelivery(run_id, round_number, packed, b"", spec, initial, update_bytes(update))
        signature = self.key.sign(unsigned.signed_bytes)
        return GeneratedAdapter(state, packed, hashlib.sha256(packed).hexdigest(), signature, refinement)

    def save(self, folder: Path, adapter: GeneratedAdapter, card: ModelCard) -> None:
        """Write the PEFT folder."""
        from gradtf_fl.adapters import model_folder, save_adapter

        save_adapter(folder, adapter.state, self.llm.spec, model_folder(self.llm.model), card)


def _refuse_untrainable(plan: FederationPlan, tiny: AdaptedModel) -> None:
    """ConfigError where every organization would refuse the round."""
    from gradtf_fl.training import check_trainable

    spec = tiny.space.spec
    try:
        check_trainable(tiny.attach())
    except ConfigError as error:
        raise ConfigError(
            [
                f"transformer {plan.transformer}: organizations can't train its TinyLM adapter ({spec.kind} on "
                f"{', '.join(spec.targets)}) under DP-SGD: {problem}"
                for problem in error.problems
            ]
        ) from error


def start_hash(tiny: UpdateSpace, update: NDArray[np.float32]) -> bytes:
    """Hash of the TinyLM that a round starts from, at global update U (32 bytes)."""
    return global_model_hash(tiny.model_sha256, tiny.initial_hash, update_bytes(update))


def update_bytes(update: NDArray[np.float32]) -> bytes:
    """U on the wire: float32 little endian, row-major."""
    return np.ascontiguousarray(update, dtype="<f4").tobytes()


def load_transformer(name: str) -> GradTransformer:
    """The Grad-Transformer at path ``name``; ``embedded`` is the shipped one."""
    from gradtf_fl.transformer import GradTransformer, embedded_checkpoint

    return GradTransformer.load(embedded_checkpoint() if name == "embedded" else name)


def tiny_spec(settings: RoundSettings) -> AdapterSpec:
    """The organizations' adapter: the Grad-Transformer's, or without one what the settings say.

    Raises:
        ConfigError: the settings ask for another adapter than the Grad-Transformer takes, or for one that the TinyLM
            can't have.
    """
    from gradtf_fl.adapters import chosen_spec

    if settings.transformer == NO_TRANSFORMER:
        return chosen_spec(settings)
    return agreed_spec(settings, load_transformer(settings.transformer).source.spec)


def agreed_spec(settings: RoundSettings, spec: AdapterSpec) -> AdapterSpec:
    """``spec``, the Grad-Transformer's; ConfigError where the settings ask for another."""
    from gradtf_fl.adapters import chosen_spec

    wanted = chosen_spec(settings, spec.targets)
    differing = [
        f"transformer {settings.transformer}: {name} of its TinyLM adapter is {getattr(spec, name)}, and "
        f"{getattr(wanted, name)} is asked for ([pair])"
        for name in ("kind", "train_a", "targets", "rank", "alpha")
        if getattr(spec, name) != getattr(wanted, name)
    ]
    if differing:
        raise ConfigError(differing)
    return spec


def load_generator(plan: FederationPlan) -> Generator:
    """The plan's Grad-Transformer, with refinement where the plan names public prompts."""
    if plan.transformer == NO_TRANSFORMER:
        from gradtf_fl.adapters import AdaptedModel

        return PlainSum(AdaptedModel.shapes(plan.tiny, tiny_spec(plan)).space)
    from gradtf_fl.adapters import Place

    place = Place.of(plan.compute)
    transformer = load_transformer(plan.transformer)
    transformer.model.to(place.device)
    agreed_spec(plan, transformer.source.spec)
    if plan.prompts is None:
        return transformer
    from gradtf_fl.tasks import read_prompts
    from gradtf_fl.transformer import RefiningGenerator, embedded_tasks

    known = embedded_tasks() if plan.transformer == "embedded" else None
    return RefiningGenerator(transformer, read_prompts(plan.prompts), plan.answer_tokens, known=known, place=place)


def signing_key(plan: FederationPlan) -> Identity:
    """The provider's Ed25519 key: the plan's file, else ``OUT/provider.key``, made when missing."""
    if plan.provider_key is not None:
        return Identity.load(plan.provider_key)
    path = plan.out / PROVIDER_KEY
    if not path.exists():
        plan.out.mkdir(parents=True, exist_ok=True)
        Identity.generate().save(path)
    return Identity.load(path)
