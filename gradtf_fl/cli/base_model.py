"""Whether an adapter belongs to the model it is about to be put on."""

from __future__ import annotations

from gradtf_fl.errors import ConfigError
from gradtf_fl.models import model_folder, model_hash


def check_base(claimed: str, wanted: str, where: str) -> None:
    """Compare the base model an adapter was made for with the one in use, by weights where both are local.

    Args:
        claimed: the adapter's base_model_name_or_path. wanted: the model in use. where: for the message.

    Raises:
        ConfigError: they differ, or the adapter does not name its base.
    """
    if not claimed:
        raise ConfigError(f"{where}: the adapter does not say which base model it belongs to")
    if claimed != wanted and _fingerprint(claimed) != _fingerprint(wanted):
        raise ConfigError(f"{where}: made for another base model ({claimed}), not for {wanted}")


def _fingerprint(name: str) -> str:
    """Weights hash of a local model, the name itself for a hub id or a missing folder."""
    from pathlib import Path

    try:
        folder = model_folder(name)
    except ConfigError:
        return f"missing {name}"
    return model_hash(folder) if Path(folder).is_dir() else folder
