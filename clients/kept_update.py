"""Simulation only: an organization's update as a file, for whom a killed simulation continues and for its report.

A simulation is one process: what it sent in a round died with it, so the round is played again from its beginning. An
organization that had trained takes its update from here, under the charge that it was trained for. In a deployment an
update that was masked once is never masked again (`gradtf_fl.flower.MemberStore.claim`).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clients.charging import open_ledger
from clients.node_store import NodeStore
from clients.organization import Organization, load_organization
from gradtf_fl.file_names import LEDGER, OWN_UPDATE, STATE, TRAINING
from gradtf_fl.flower import RoundKey


def keep_update(
    organization: Organization, key: RoundKey, training: bytes, noise: str, vector: NDArray[np.float32]
) -> None:
    """Write the update of a simulation that keeps them, before its charge is settled.

    Args:
        training: as `training_id` has it.
        noise: how its noise was generated, for the ledger.
        vector: float32 [blocks * block_dim].
    """
    if organization.simulation is None or not organization.simulation.keep_updates:
        return
    from safetensors.numpy import save

    path = _path(organization, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")  # one organization is served by one process at a time
    draft.write_bytes(save({"update": vector}, {"made": _made(key, training), "noise": noise}))
    os.replace(draft, path)


def take_kept_update(
    organization: Organization, store: NodeStore, key: RoundKey, training: bytes
) -> NDArray[np.float32] | None:
    """The update [dim] that this very attempt trained before its process was killed; None without one.

    Its charge is settled where the process did not come to that.
    """
    if organization.simulation is None:
        return None
    from safetensors import safe_open

    try:
        with safe_open(_path(organization, key), "np") as file:
            about = file.metadata() or {}
            vector = file.get_tensor("update")
    except OSError:
        return None
    if about.get("made") != _made(key, training):
        return None
    store.training_ends()
    with open_ledger(organization) as ledger:
        for charge in ledger.charges():
            if charge.state == "reserved" and (charge.run_id, charge.round) == (key.run_id, key.round):
                ledger.settle(charge.reservation, charge.event, noise=about["noise"])
    (organization.folder / TRAINING).unlink(missing_ok=True)
    return np.asarray(vector, dtype="<f4")


def take_back_attempt(folder: Path, key: RoundKey) -> None:
    """Let a simulated organization be asked once more for an attempt that died with its process.

    A charge that was reserved for it stays, and the attempt is trained under it.
    """
    if not (folder / STATE).exists():
        return
    organization = load_organization(folder, simulated=True)
    store = organization.store()
    store.take_back(key)
    if store.unfinished(key) is None and (folder / LEDGER).exists():
        with open_ledger(organization) as ledger:
            for charge in ledger.charges():
                mine = (charge.run_id, charge.round, charge.attempt) == (key.run_id, key.round, key.attempt)
                if mine and charge.state == "reserved":  # killed between the ledger's line and the store's
                    store.training_begins(key, charge.reservation)


def _path(organization: Organization, key: RoundKey) -> Path:
    return organization.round_folder(key.round) / OWN_UPDATE


def _made(key: RoundKey, training: bytes) -> str:
    return f"{key.run_id}/{key.round}.{key.attempt}/{training.hex()}"
