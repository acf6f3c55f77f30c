"""``flwr build`` on the repository: both apps are in the bundle; gradtf_fl comes from the installed package."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gradtf_fl
from gradtf_fl.config import FederationPlan
from strategies.engines.flower_app import write_app
from tests.flower_private import FAB_MAX_SIZE, build_fab_from_disk, get_fab_config, validate_config

REPOSITORY = Path(__file__).parents[2]
CODE = {
    path.relative_to(REPOSITORY).as_posix()
    for folder in ("strategies", "clients")
    for path in (REPOSITORY / folder).rglob("*.py")
}
RESOLVE = """
import sys
sys.path.insert(0, ".")  # as Flower does with an unpacked bundle
import clients.client_app, strategies.server_app, gradtf_fl.adapters
print(strategies.__file__, gradtf_fl.__file__, gradtf_fl.adapters.model_hash("embedded:tiny"), sep="\\n")
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of the checkout without what git ignores: Flower would look through all of a virtual environment."""
    folder = tmp_path_factory.mktemp("bundle") / "checkout"
    shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(".git", ".venv", "build", "*cache*", "vectors"))
    return bytes(build_fab_from_disk(folder))


def names(bundle: bytes) -> set[str]:
    return set(zipfile.ZipFile(io.BytesIO(bundle)).namelist())


def test_the_repository_bundles_both_apps_and_no_weights(bundle: bytes) -> None:
    assert len(bundle) < FAB_MAX_SIZE
    assert names(bundle) == CODE | {"pyproject.toml", "LICENSE", ".info/CONTENT"}


def test_a_run_of_the_repository_can_set_every_key_of_the_plan(bundle: bytes) -> None:
    config = get_fab_config(bundle)["tool"]["flwr"]["app"]["config"]
    assert config == FederationPlan().to_run_config()


def test_an_unpacked_bundle_uses_the_installed_packages(bundle: bytes, tmp_path: Path) -> None:
    zipfile.ZipFile(io.BytesIO(bundle)).extractall(tmp_path)
    valid, errors, _ = validate_config(get_fab_config(bundle), check_module=True, project_dir=tmp_path)
    assert valid, errors
    done = subprocess.run([sys.executable, "-c", RESOLVE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    app, models, digest = done.stdout.split()
    assert Path(app).resolve() == (tmp_path / "strategies" / "__init__.py").resolve()
    assert Path(models).resolve().is_relative_to(Path(gradtf_fl.__file__).resolve().parent)
    assert len(digest) == 64


def test_the_app_of_one_run_is_the_repositorys_app(tmp_path: Path) -> None:
    plan = FederationPlan(organizations=4, out=tmp_path / "out")
    built = bytes(build_fab_from_disk(write_app(tmp_path / "app", plan)))
    assert names(built) >= CODE
    assert FederationPlan.from_run_config(get_fab_config(built)["tool"]["flwr"]["app"]["config"]) == plan
