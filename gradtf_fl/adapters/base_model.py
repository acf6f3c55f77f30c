"""Whether an adapter belongs to the model it is about to be put on."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from gradtf_fl.adapters.models import model_folder, model_hash
from gradtf_fl.adapters.spec import AdapterSpec
from gradtf_fl.adapters.update_space import UpdateSpace
from gradtf_fl.errors import ConfigError


def check_base(where: str, claimed: str, wanted: str) -> None:
    """Compare the base model an adapter was made for with the one in use, by their files where both are here.

    Args:
        where: for the message. claimed: the adapter's base_model_name_or_path. wanted: the model in use.

    Raises:
        ConfigError: they differ, or the adapter does not name its base.
    """
    if not claimed:
        raise ConfigError(f"{where}: the adapter does not say which base model it belongs to")
    if claimed != wanted and _fingerprint(claimed) != _fingerprint(wanted):
        raise ConfigError(f"{where}: made for another base model ({claimed}), not for {wanted}")


def check_adapter(where: str, claimed: str, spec: AdapterSpec, space: UpdateSpace) -> None:
    """Whether an adapter is one that a Grad-Transformer takes from ``space``; ConfigError lists every difference."""
    check_base(where, claimed, space.model)
    wanted = space.spec
    if spec != wanted:
        differing = [n for n in (field.name for field in fields(spec)) if getattr(spec, n) != getattr(wanted, n)]
        raise ConfigError(
            [f"{where}: {n} is {getattr(spec, n)}, the Grad-Transformer takes {getattr(wanted, n)}" for n in differing]
        )


def check_model(where: str, space: UpdateSpace) -> None:
    """Whether the model that a Grad-Transformer was trained for is the one that is here under its name."""
    if Path(model_folder(space.model)).is_dir() and not space.model_is_at_hand():
        raise ConfigError(f"{where}: trained for another {space.model} (its files differ from the ones here)")


def _fingerprint(name: str) -> str:
    """`model_hash` of a model that is here; the name itself for one that is not."""
    try:
        return model_hash(name)
    except ConfigError:
        return f"missing {name}"
