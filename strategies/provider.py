"""The provider's side of a round: where the TinyLM starts, and an LLM adapter out of the global update."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.config import FederationPlan
from gradtf_fl.errors import ConfigError
from gradtf_fl.round_messages import adapter_statement, global_model_hash
from gradtf_fl.secagg import Identity
from gradtf_fl.update_vectors import BlockLayout

if TYPE_CHECKING:
    from gradtf_fl.adapters import AdapterSpec
    from gradtf_fl.transformer import GradTransformer


class PairSide(Protocol):
    """One side of a trained pair: which base model, which adapter, and how its blocks lie in an update vector."""

    @property
    def model_sha256(self) -> str: ...
    @property
    def spec(self) -> AdapterSpec: ...
    @property
    def layout(self) -> BlockLayout: ...


class Generator(Protocol):
    """What `gradtf_fl.transformer.GradTransformer` offers to a round."""

    @property
    def source(self) -> PairSide: ...
    @property
    def target(self) -> PairSide: ...
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


@dataclass(frozen=True)
class TinyStart:
    """The shared TinyLM start: spec as JSON, SHA-256 of the initial adapter, layout, hash of base weights."""

    spec_json: str
    initial_hash: bytes
    layout: BlockLayout
    base_hash: str

    def model_hash(self, update: NDArray[np.float32]) -> bytes:
        """Hash of the model at global update U (32 bytes)."""
        return global_model_hash(self.base_hash, self.initial_hash, update_bytes(update))


class Provider:
    """Holds the Grad-Transformer, both initial adapters and the signing key."""

    def __init__(self, plan: FederationPlan, generator: Generator | None = None) -> None:
        """Load what the plan names.

        Raises:
            ConfigError: a model is missing, or the transformer was trained for another pair. CorruptFile.
        """
        from gradtf_fl.adapters import initial_state, state_hash
        from gradtf_fl.models import load_model, model_folder, model_hash

        self.generator: Generator = generator if generator is not None else load_generator(plan)
        source, target = self.generator.source.spec, self.generator.target.spec
        tiny_model = load_model(plan.tiny)[0]
        tiny_initial = initial_state(tiny_model, source)
        self.tiny = TinyStart(
            json.dumps(source.to_json(), sort_keys=True),
            state_hash(tiny_initial),
            BlockLayout.from_state(tiny_initial, source.train_a),
            model_hash(plan.tiny),
        )
        self.llm_spec, self.llm_name, self.llm_folder = target, plan.llm, model_folder(plan.llm)
        self.llm_initial = initial_state(load_model(plan.llm)[0], target)
        self.llm_layout = BlockLayout.from_state(self.llm_initial, target.train_a)
        self.llm_hash = model_hash(plan.llm)
        self._refuse_other_pair(plan)
        _refuse_untrainable(plan, tiny_model, source)
        self.key = signing_key(plan)

    def _refuse_other_pair(self, plan: FederationPlan) -> None:
        sides = (
            ("TinyLM", plan.tiny, self.tiny.layout, self.tiny.base_hash, self.generator.source),
            ("LLM", plan.llm, self.llm_layout, self.llm_hash, self.generator.target),
        )
        problems = [
            f"transformer {plan.transformer}: made for another {what} than {name!r}"
            for what, name, layout, base_hash, wanted in sides
            if layout.digest != wanted.layout.digest or base_hash != wanted.model_sha256
        ]
        if problems:
            raise ConfigError(problems)

    def generate(
        self, run_id: str, round_number: int, update: NDArray[np.float32], first: NDArray[np.float32] | None = None
    ) -> GeneratedAdapter:
        """U [L1, n1] -> LLM adapter, packed and signed for this round; ``first`` is U after the first one, if that was
        another."""
        from gradtf_fl.adapters import pack_adapter
        from gradtf_fl.update_vectors import apply_update

        values, refinement = self._generated(update, first)
        state = apply_update(self.llm_layout, self.llm_initial, values)
        packed = pack_adapter(state, self.llm_spec, self.llm_name)
        return self._signed(run_id, round_number, update, dict(state), packed, refinement)

    def _generated(
        self, update: NDArray[np.float32], first: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        from gradtf_fl.transformer.refinement import RefiningGenerator

        if not isinstance(self.generator, RefiningGenerator):
            return self.generator.generate(update), {}
        found = self.generator.refined(update, first)
        values: NDArray[np.float32] = found.updates[0].numpy()
        return values, found.summary()

    def reload(self, folder: Path, run_id: str, round_number: int, update: NDArray[np.float32]) -> GeneratedAdapter:
        """The adapter of a checkpointed round, signed again."""
        from gradtf_fl.adapters import load_adapter, pack_adapter

        state, spec, _ = load_adapter(folder)
        packed = pack_adapter(state, spec, self.llm_name)
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
        statement = adapter_statement(run_id, round_number, packed, update_bytes(update))
        signature = self.key.sign(statement)
        return GeneratedAdapter(state, packed, hashlib.sha256(packed).hexdigest(), signature, refinement)

    def save(self, folder: Path, adapter: GeneratedAdapter) -> None:
        """Write the PEFT folder."""
        from gradtf_fl.adapters import save_adapter

        save_adapter(folder, adapter.state, self.llm_spec, self.llm_folder)


def _refuse_untrainable(plan: FederationPlan, tiny_model: Any, spec: AdapterSpec) -> None:
    """ConfigError where every organization would refuse the round."""
    from gradtf_fl.adapters import attach
    from gradtf_fl.training.preflight import check_trainable

    try:
        check_trainable(attach(tiny_model, spec))
    except ConfigError as error:
        raise ConfigError(
            [
                f"transformer {plan.transformer}: organizations can't train its TinyLM adapter ({spec.kind} on "
                f"{', '.join(spec.targets)}) under DP-SGD: {problem}"
                for problem in error.problems
            ]
        ) from error


def update_bytes(update: NDArray[np.float32]) -> bytes:
    """U on the wire: float32 little endian, row-major."""
    return np.ascontiguousarray(update, dtype="<f4").tobytes()


def load_transformer(name: str) -> GradTransformer:
    """The Grad-Transformer at path ``name``; ``embedded`` is the shipped one."""
    from gradtf_fl.transformer import GradTransformer, embedded_checkpoint

    return GradTransformer.load(embedded_checkpoint() if name == "embedded" else name)


def load_generator(plan: FederationPlan) -> Generator:
    """The plan's Grad-Transformer, with refinement where the plan names public prompts."""
    transformer = load_transformer(plan.transformer)
    if plan.prompts is None:
        return transformer
    from gradtf_fl.tasks import read_prompts
    from gradtf_fl.transformer.known_tasks import embedded_tasks
    from gradtf_fl.transformer.refinement import RefiningGenerator

    known = embedded_tasks() if plan.transformer == "embedded" else None
    return RefiningGenerator(transformer, read_prompts(plan.prompts), plan.answer_tokens, known=known)


def signing_key(plan: FederationPlan) -> Identity:
    """The provider's Ed25519 key: the plan's file, else ``OUT/provider.key``, made when missing."""
    if plan.provider_key is not None:
        return Identity.load(plan.provider_key)
    path = plan.out / "provider.key"
    if not path.exists():
        plan.out.mkdir(parents=True, exist_ok=True)
        Identity.generate().save(path)
    return Identity.load(path)
