"""Entries of adapter_config.json that change what an adapter's matrices do, for reading and for proving a folder.

Read by name, a folder's matrices mean W x + (alpha / r) B A x. Entries that a newer PEFT has and that are not known
here count as switches: better a refusal than other logits than PEFT's without a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradtf_fl.adapters.spec import AdapterSpec
from gradtf_fl.errors import ConfigError

COMPARED = frozenset({"r", "lora_alpha", "target_modules", "target_parameters", "base_model_name_or_path", "peft_type"})
"""Entries that are read, or compared with what was signed."""
HARMLESS = frozenset(
    {
        "auto_mapping",  # the base model's class
        "fan_in_fan_out",  # PEFT looks at each layer itself
        "inference_mode",
        "lora_dropout",  # acts in training only
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "runtime_config",
        "task_type",
    }
)
"""Entries that change nothing of what the trained matrices do."""
USUAL = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal"), "revision": ("main",)}
"""Values besides an empty one that change nothing; other initial values (PiSSA, OLoRA) change the base weights too."""
TRAINING_TASKS = ("CAUSAL_LM", None)


def switches(config: Mapping[str, Any]) -> list[str]:
    """``name = value`` of every entry that makes PEFT compute something else than (alpha / r) B A; sorted.

    ``use_rslora`` is one of them.
    """
    found = [
        name
        for name, value in config.items()
        if value
        and name not in COMPARED | HARMLESS
        and not any(value is usual or value == usual for usual in USUAL.get(name, ()))
    ]
    if config.get("task_type") not in TRAINING_TASKS:
        found.append("task_type")
    return [f"{name} = {config[name]!r}" for name in sorted(found)]


def spec_of(where: str, config: Mapping[str, Any], modules: set[str]) -> AdapterSpec:
    """The spec of an adapter that plain PEFT wrote; "rank-stabilised" scales alpha / sqrt(r) become an alpha.

    Args:
        where: for messages. config: of its adapter_config.json. modules: names of the modules in its state.

    Raises:
        ConfigError: it is no LoRA, or PEFT makes something else of its matrices; every reason in one message.
    """
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type is {config.get('peft_type')!r}, expected LORA")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        problems.append(f"r is {_shown(config, 'r')}, expected a whole number of at least 1")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        problems.append(f"lora_alpha is {_shown(config, 'lora_alpha')}, expected a number")
    stabilised = config.get("use_rslora") is True
    switched = switches({name: value for name, value in config.items() if name != "use_rslora" or not stabilised})
    if switched:
        problems.append(f"{', '.join(switched)} would change what its matrices do; this program can't read that")
    if problems:
        raise ConfigError(f"{where}: {'; '.join(problems)}")
    assert isinstance(rank, int)
    assert isinstance(alpha, int | float)
    return AdapterSpec(rank, float(alpha) * (math.sqrt(rank) if stabilised else 1.0), _targets(config, modules))


def _shown(config: Mapping[str, Any], name: str) -> str:
    return repr(config[name]) if name in config else "missing"


def _targets(config: Mapping[str, Any], modules: set[str]) -> tuple[str, ...]:
    """Listed names as they are; of a pattern or none at all, the last names of the modules that have matrices."""
    listed = config.get("target_modules")
    stacks = config.get("target_parameters") or []
    if isinstance(listed, list | tuple) and all(isinstance(name, str) for name in listed):
        return tuple(sorted({*listed, *map(str, stacks)}))
    plain = {module.rpartition(".")[2] for module in modules if not stacks or ".experts" not in module}
    return tuple(sorted({*plain, *map(str, stacks)}))
