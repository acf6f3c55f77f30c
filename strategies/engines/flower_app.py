"""A Flower app folder for one run: server side, client side, and the plan as its run config.

A Flower app bundle carries no weights and shadows what is installed, so gradtf_fl is left out of it and comes from
the package installed at each node.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gradtf_fl.adapters import model_folder
from gradtf_fl.config import NO_TRANSFORMER, FederationPlan
from gradtf_fl.flower_versions import REQUIREMENT, TARGET
from gradtf_fl.version import __version__

PACKAGES = ("strategies", "clients")
SOURCE = Path(__file__).resolve().parents[2]


def write_app(folder: Path, plan: FederationPlan) -> Path:
    """Write the app; ``flwr run FOLDER`` then runs ``plan``. Returns ``folder``.

    Paths in the plan become absolute, as Flower's processes work elsewhere.

    Raises:
        ConfigError: a local model folder of the plan is missing.
    """
    import tomlkit

    for package in PACKAGES:
        for file in (SOURCE / package).rglob("*.py"):
            copy = folder / file.relative_to(SOURCE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    (folder / "LICENSE").write_text("Apache-2.0\n", encoding="utf-8")
    (folder / "pyproject.toml").write_text(tomlkit.dumps(_project(absolute(plan))), encoding="utf-8")
    return folder


def absolute(plan: FederationPlan) -> FederationPlan:
    """The plan with absolute paths; names of embedded or hub models stay names."""
    update: dict[str, object] = {"out": plan.out.absolute()}
    for name in ("prompts", "provider_key", "organizations_dir"):
        path = getattr(plan, name)
        update[name] = None if path is None else path.absolute()
    for name in ("tiny", "llm"):
        value = getattr(plan, name)
        update[name] = value if value.startswith("embedded:") else model_folder(value)
    if plan.transformer not in ("embedded", NO_TRANSFORMER):
        update["transformer"] = str(Path(plan.transformer).absolute())
    kind, _, place = plan.tracking.partition(":")
    if place and "://" not in place:
        update["tracking"] = f"{kind}:{Path(place).absolute()}"
    return plan.model_copy(update=update)


def _project(plan: FederationPlan) -> dict[str, Any]:
    return {
        "project": {
            "name": "gradtf-run",
            "version": __version__,
            "description": "One federated run of gradtf-fl",
            "license": {"file": "LICENSE"},
            "dependencies": [REQUIREMENT],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "gradtf",
                    "fab-format-version": 1,
                    "flwr-version-target": TARGET,
                    "components": {
                        "serverapp": "strategies.server_app:app",
                        "clientapp": "clients.client_app:app",
                    },
                    "config": plan.to_run_config(),
                }
            }
        },
    }
