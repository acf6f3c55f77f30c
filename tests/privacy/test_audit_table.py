"""The audit report on a terminal: whole figures on 80 columns, and what they refer to, with names where it differs."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from gradtf_fl.privacy import NOISE_CSPRNG, NOISE_SEEDED, DpEvent, Ledger, SkellamEvent
from gradtf_fl.reports.audit import read_for_report, report_all
from gradtf_fl.reports.audit_formats import to_table

from .conftest import EVENT


def table(paths: list[Path], width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(to_table(report_all([read_for_report(path) for path in paths])))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [80, 160])
def test_figures_stay_whole_on_a_terminal(tmp_path: Path, width: int) -> None:
    """Long names, two datasets, the longest figures that occur, no budget, no noise, noise on sums."""
    skellam = SkellamEvent(variance=4e8, l2=2e4, l1=6e5, releases=1, noisers=4)
    accounts = [
        ("a-hospital-with-a-very-long-name", {"train": 2.0, "2025": 20.0}, EVENT, skellam),
        ("unlimited", {"train": math.inf}, DpEvent(0.7, 1 / 16, 1000), None),
        ("no-noise", {"train": math.inf}, DpEvent(0.0, 1 / 16, 1), None),
        ("patient", {"train": 9.0}, DpEvent(90.0, 1 / 64, 1), None),
    ]
    paths = [tmp_path / str(number) / "ledger.sqlite" for number in range(len(accounts))]
    for path, (name, budgets, event, noise) in zip(paths, accounts, strict=True):
        key = Ed25519PrivateKey.generate()
        with Ledger.open(path, identity_key=key, organization=name, delta=1e-5, budget=budgets) as ledger:
            ledger.reserve("run", 1, 0, event, client_level=noise)
    paths[3].with_name("ledger.head").write_text("{}")
    lines = table(paths, width)
    assert max(len(line) for line in lines) <= width
    wanted = [
        "1 1.219 1.209 1.369 2.050 2.000 0.781 1 4.753 ok",
        "0 0.000 0.000 0.000 0.000 20.000 20.000 – 4.753 ok",
        "1 31.128 31.110 33.879 46.372 none none – – ok",
        "1 inf inf inf inf none 0.000 – – ok",
        "1 0.002 0.000 0.103 0.001 9.000 8.998 10000+ – BROKEN",
    ]
    figures = [" ".join(line.split()) for line in lines[:30]]
    assert [row for row in wanted if not any(line.endswith(f" {row}") for line in figures)] == []
    assert ("dataset" in lines[1].split()) == (width == 160)
    words = " ".join(figures)
    assert "2025" in words
    assert "patient: BROKEN, the head file is damaged" in words


def test_the_table_says_who_differs(tmp_path: Path) -> None:
    """What all share stands there once; what they do not, with the names; of a crowd, how many."""
    paths = []
    for number in range(9):
        path = tmp_path / str(number) / "ledger.sqlite"
        key, delta = Ed25519PrivateKey.generate(), 1e-6 if number == 3 else 1e-5
        with Ledger.open(path, identity_key=key, organization=f"o{number}", delta=delta, budget=9.0) as ledger:
            ledger.reserve("run", 1, 0, EVENT, noise=NOISE_SEEDED if number in (3, 5) else NOISE_CSPRNG)
        paths.append(path)
    lines = [" ".join(line.split()) for line in table(paths, 160)]
    assert "unit: one sequence (one row of the organization's data)" in lines
    delta_at = lines.index("delta: 1e-05 (the other 8)")
    assert lines[delta_at + 1] == "1e-06 (o3)"
    noise_at = lines.index(f"noise generator: {NOISE_CSPRNG} (the other 7)")
    assert lines[noise_at + 1] == f"{NOISE_SEEDED} (o3, o5)"
    few = [" ".join(line.split()) for line in table(paths[2:5], 160)]
    assert "delta: 1e-05 (o2, o4)" in few


def test_a_name_commands_no_terminal(tmp_path: Path) -> None:
    path, key = tmp_path / "ledger.sqlite", Ed25519PrivateKey.generate()
    Ledger.open(path, identity_key=key, organization="a\x1b[2Kb\u202e\n", delta=1e-5, budget=2.0).close()
    output = "\n".join(table([path], 160))
    assert "a\\x1b[2Kb\\u202e\\n" in output
    assert "\x1b[2K" not in output
