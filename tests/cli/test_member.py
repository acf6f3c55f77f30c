"""``gradtf member``."""

from __future__ import annotations

import json
from pathlib import Path

from gradtf_fl.secagg import Identity
from tests.cli.conftest import gradtf


def test_new_prints_the_key_and_what_comes_next(tmp_path: Path) -> None:
    done = gradtf("member", "new", tmp_path / "ward")
    assert done.exit_code == 0
    key = Identity.load(tmp_path / "ward" / "identity.key").public.hex()
    assert done.stdout == f"{key}\n"
    assert "roster.txt" in done.stderr
    assert "secagg_mod" in done.stderr
    again = gradtf("member", "new", tmp_path / "ward", "--json")
    assert again.exit_code == 2
    assert "never overwritten" in again.stderr
    other = json.loads(gradtf("member", "new", tmp_path / "other", "--json").stdout)
    assert other["policy"] == str(tmp_path / "other" / "policy.toml")
    assert len(other["public_key"]) == 64
