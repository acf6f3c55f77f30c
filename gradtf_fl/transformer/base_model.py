"""Whether an adapter belongs to the model it is about to be put on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gradtf_fl.adapters import model_folder, model_hash
from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    from gradtf_fl.adapters import AdapterSpec, UpdateSpace


def check_base(where: str, claimed: str, wanted: str) -> None:
    """Compare the base model an adapter was made for with the one in use, by weights where both are local.

    Args:
        where: for the message. claimed: the adapter's base_model_name_or_path. wanted: the model in use.

    Raises:
        ConfigError: they differ, or the adapter does not name its base.
    """
    if not claimed:
        raise ConfigError(f"{where}: the adapter does not say which base model it belongs to")
    if claimed != wanted and _fingerprint(claimed) != _fingerprint(wanted):
        raise ConfigError(f"{where}: made for another base model ({claimed}), not for {wanted}")


def check_adapter_of(where: str, claimed: str, spec: AdapterSpec, side: UpdateSpace) -> None:
    """Whether an adapter is one that a Grad-Transformer's ``side`` takes; ConfigError lists every difference."""
    check_base(where, claimed, side.model)
    wanted = side.spec
    if spec != wanted:
        names = ("rank", "alpha", "targets", "train_a", "seed")
        differing = [n for n in names if getattr(spec, n) != getattr(wanted, n)]
        raise ConfigError(
            [f"{where}: {n} is {getattr(spec, n)}, the Grad-Transformer takes {getattr(wanted, n)}" for n in differing]
        )


def check_side(where: str, side: UpdateSpace) -> None:
    """Whether the model that a Grad-Transformer was trained for is the one that is here under its name."""
    if Path(model_folder(side.model)).is_dir() and model_hash(side.model) != side.model_sha256:
        raise ConfigError(f"{where}: trained for another {side.model} (its files differ from the ones here)")


def _fingerprint(name: str) -> str:
    """Weights hash of a local model, the name itself for a hub id or a missing folder."""
    try:
        folder = model_folder(name)
    except ConfigError:
        return f"missing {name}"
    return model_hash(folder) if Path(folder).is_dir() else folder
