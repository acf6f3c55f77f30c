"""``--out FILE``: whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gradtf_fl.errors import ConfigError
from gradtf_fl.files import write_whole


def test_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    out.write_text("old")
    write_whole(out, "new ε", 0o600)
    assert out.read_text(encoding="utf8") == "new ε"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [out]


def test_what_can_not_be_written_leaves_nothing_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "folder"
    (out / "kept").mkdir(parents=True)
    with pytest.raises(ConfigError, match="can't be written"):
        write_whole(out, "text")
    assert list(tmp_path.iterdir()) == [out]
    assert [path.name for path in out.iterdir()] == ["kept"]
