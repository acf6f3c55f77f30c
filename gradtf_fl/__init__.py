"""gradtf-fl: federated LLM fine-tuning from TinyLM updates, under DP-SGD and secure aggregation.

The names that a user's program starts with. Each is imported when it is first used: the secure sum and the ledger
need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names
from gradtf_fl.version import __version__ as __version__

if TYPE_CHECKING:
    from gradtf_fl.adapters import (
        AdapterSpec,
        BlockLayout,
        adapter_state,
        attach,
        initial_state,
        load_model,
        resolve_targets,
        save_adapter,
        update_vector,
    )
    from gradtf_fl.baselines import Case, Controls, CrossLora, Pair, PcaRidge, ProxyTuning, run_baseline
    from gradtf_fl.config import FederationPlan, SimulationConfig
    from gradtf_fl.curation import CurationConfig, curate
    from gradtf_fl.errors import ConfigError
    from gradtf_fl.flower import SecureAverage, new_member, secagg_mod
    from gradtf_fl.privacy import DpEvent, Ledger, Unit, epsilons, noise_multiplier
    from gradtf_fl.secagg import (
        ClientPolicy,
        Identity,
        Quantizer,
        Roster,
        RoundConfig,
        SecAggClient,
        SecAggServer,
        run_secure_sum,
    )
    from gradtf_fl.simulation import simulate
    from gradtf_fl.tasks import Persons, Row, TokenRows, encode_rows, read_rows
    from gradtf_fl.training import train_dp
    from gradtf_fl.transformer import GradTransformer, TrainConfig, convert, train_grad_transformer
    from strategies import SecureFederation
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "AdapterSpec",
    "BlockLayout",
    "Case",
    "ClientPolicy",
    "ConfigError",
    "Controls",
    "CrossLora",
    "CurationConfig",
    "DpEvent",
    "FederationPlan",
    "GradTransformer",
    "Identity",
    "Ledger",
    "Pair",
    "PcaRidge",
    "Persons",
    "ProxyTuning",
    "Quantizer",
    "Roster",
    "RoundConfig",
    "Row",
    "SecAggClient",
    "SecAggServer",
    "SecureAverage",
    "SecureFederation",
    "SimulationConfig",
    "TokenRows",
    "TrainConfig",
    "Unit",
    "adapter_state",
    "attach",
    "convert",
    "curate",
    "encode_rows",
    "epsilons",
    "initial_state",
    "load_model",
    "new_member",
    "noise_multiplier",
    "read_rows",
    "resolve_targets",
    "run_baseline",
    "run_secure_sum",
    "save_adapter",
    "secagg_mod",
    "simulate",
    "train_dp",
    "train_grad_transformer",
    "update_vector",
]
