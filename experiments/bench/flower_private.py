"""Every private name of Flower that the experiments use: its own SecAgg+, which we measure against and attack.

The product uses none of these. Its sides have their own modules, `strategies.flower_private` and
`clients.flower_private`; `tests/test_dependencies.py` holds the rule. The version is checked first, as there.
"""

from __future__ import annotations

from importlib import import_module

import flwr

from gradtf_fl.flower_versions import require_tested

require_tested(flwr.__version__)

from flwr.client.mod.secure_aggregation.secaggplus_mod import SecAggPlusState, secaggplus_mod
from flwr.common import Code, FitRes, Status, bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_separate
from flwr.compat.common.recorddict_compat import fitres_to_recorddict
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key, generate_key_pairs

client_mod = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")  # the package hides it by a function
PEER = "flwr " + ".".join(flwr.__version__.split(".")[:2])

__all__ = [
    "PEER",
    "RECORD_KEY_CONFIGS",
    "RECORD_KEY_STATE",
    "Code",
    "FitRes",
    "Key",
    "SecAggPlusState",
    "Stage",
    "Status",
    "bytes_to_ndarray",
    "bytes_to_private_key",
    "bytes_to_public_key",
    "client_mod",
    "combine_shares",
    "create_shares",
    "decrypt",
    "dequantize",
    "factor_combine",
    "factor_extract",
    "fitres_to_recorddict",
    "generate_key_pairs",
    "generate_shared_key",
    "get_parameters_shape",
    "ndarrays_to_parameters",
    "parameters_addition",
    "parameters_mod",
    "parameters_multiply",
    "parameters_subtraction",
    "pseudo_rand_gen",
    "quantize",
    "secaggplus_mod",
    "share_keys_plaintext_separate",
]
