"""Adapters: what is trained on a base model, its state, its update vector, and its folder and wire form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.adapters.base_model import check_adapter, check_base, check_model
    from gradtf_fl.adapters.card import ModelCard, Rows, add_results, base_label, code, merged_card
    from gradtf_fl.adapters.chosen import chosen_spec
    from gradtf_fl.adapters.device import Place, devices_of, offloaded
    from gradtf_fl.adapters.folder import load_adapter, save_adapter
    from gradtf_fl.adapters.kinds import PREFIX, find_targets, split_name
    from gradtf_fl.adapters.models import (
        ASSETS,
        EMBEDDED,
        kept_model,
        load_encoder,
        load_model,
        load_tokenizer,
        model_folder,
        model_hash,
    )
    from gradtf_fl.adapters.packed import pack_adapter, unpack_adapter
    from gradtf_fl.adapters.proof import CONFIG, WEIGHTS, folder_problems, packed_header
    from gradtf_fl.adapters.spec import AdapterSpec
    from gradtf_fl.adapters.state import adapter_state, attach, initial_state, set_adapter_state, state_hash
    from gradtf_fl.adapters.targets import Target, resolve_targets
    from gradtf_fl.adapters.update_space import AdaptedModel, SharedModel, UpdateSpace
    from gradtf_fl.adapters.update_vectors import BlockLayout, Columns, Slot, Vector, apply_update, update_vector
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ASSETS",
    "CONFIG",
    "EMBEDDED",
    "PREFIX",
    "WEIGHTS",
    "AdaptedModel",
    "AdapterSpec",
    "BlockLayout",
    "Columns",
    "ModelCard",
    "Place",
    "Rows",
    "SharedModel",
    "Slot",
    "Target",
    "UpdateSpace",
    "Vector",
    "adapter_state",
    "add_results",
    "apply_update",
    "attach",
    "base_label",
    "check_adapter",
    "check_base",
    "check_model",
    "chosen_spec",
    "code",
    "devices_of",
    "find_targets",
    "folder_problems",
    "initial_state",
    "kept_model",
    "load_adapter",
    "load_encoder",
    "load_model",
    "load_tokenizer",
    "merged_card",
    "model_folder",
    "model_hash",
    "offloaded",
    "pack_adapter",
    "packed_header",
    "resolve_targets",
    "save_adapter",
    "set_adapter_state",
    "split_name",
    "state_hash",
    "unpack_adapter",
    "update_vector",
]
