"""The tuple store is mapped: what it costs in memory, and when a file is hashed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gradtf_fl.curation.store import TupleStore, _mapped
from gradtf_fl.errors import CorruptFile

SETS, BLOCKS, DIM = 8, 16, 4096

READ_ALL_ROWS = """
import sys
from pathlib import Path
from gradtf_fl.curation import TupleStore

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

store = TupleStore.open(sys.argv[1])
store.shard(store.names[0]).tensors["tiny"].sum()
before, total = anonymous(), 0.0
shards = store.shards()
for shard in shards:
    total += sum(float(update.sum()) for update in shard.tensors["tiny"][0])
print(anonymous() - before, total)
"""


def add_shards(folder: Path, count: int) -> TupleStore:
    made = TupleStore.create(folder, {})
    ids = torch.zeros(SETS, 1, 2, dtype=torch.int32)
    for number in range(count):
        tiny = torch.full((1, SETS, BLOCKS, DIM), float(number))
        made.add(
            f"plain-{number}",
            {"tiny": tiny, "input_ids": ids, "labels": ids.clone(), "group": ids[:, 0, 0].clone()},
            {},
        )
    return made


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's memory from /proc")
def test_reading_a_store_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    made = add_shards(tmp_path / "store", 24)
    size = sum(path.stat().st_size for path in made.folder.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL_ROWS, made.folder], capture_output=True, text=True, check=True
    )
    held, total = done.stdout.split()
    assert float(total) == sum(range(24)) * SETS * BLOCKS * DIM
    assert int(held) < size / 6  # 50 MB were read


FIT_CONTROLS = """
import sys
from pathlib import Path
from gradtf_fl.baselines import Controls, update_parts

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

update_parts.GRAM_BYTES = 1 << 20
Controls.fit_on_store(sys.argv[2])
before = anonymous()
controls = Controls.fit_on_store(sys.argv[1])
update = controls._tiny[70]
print(controls.nearest_set(0.5 * update), controls.ridge(update).shape[0], anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's memory from /proc")
def test_controls_leave_the_tuples_in_the_store(tmp_path: Path) -> None:
    generator, sizes = torch.Generator().manual_seed(0), {}
    for name, count in (("many", 12), ("few", 1)):
        made = TupleStore.create(tmp_path / name, {})
        ids = torch.zeros(SETS, 1, 2, dtype=torch.int32)
        for number in range(count):
            tensors = {"input_ids": ids, "labels": ids.clone(), "group": ids[:, 0, 0].clone()}
            tensors["tiny"] = torch.randn(1, SETS, BLOCKS, DIM, generator=generator)
            tensors["llm"] = torch.randn(SETS, BLOCKS, DIM, generator=generator)
            made.add(f"pairs-{number}", tensors, {})
        sizes[name] = sum(path.stat().st_size for path in made.folder.iterdir())
    script = [sys.executable, "-c", FIT_CONTROLS, tmp_path / "many", tmp_path / "few"]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    nearest, blocks, held = map(int, done.stdout.split())
    assert (nearest, blocks) == (70, BLOCKS)
    assert held < sizes["many"] / 5  # 50 MB


def test_a_shard_is_hashed_once_unless_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = add_shards(tmp_path, 2)
    hashed: list[str] = []
    digest = hashlib.file_digest

    def note(file: Any, kind: str) -> Any:
        hashed.append(file.name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", note)
    for _ in range(2):
        made.shards()
        TupleStore.open(tmp_path).shards()
    assert [Path(name).stem for name in hashed] == ["plain-0", "plain-1"]
    path = tmp_path / "plain-0.safetensors"
    path.write_bytes(path.read_bytes())
    made.shard("plain-0")
    assert len(hashed) == 3
    times = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copying tool leaves it
    with pytest.raises(CorruptFile, match="SHA-256"):
        made.shard("plain-0")


def test_a_shard_that_is_replaced_while_in_use_is_never_mapped_unverified(tmp_path: Path) -> None:
    made = add_shards(tmp_path, 2)
    shards = made.shards()
    assert float(shards[0].tensors["tiny"].max()) == 0.0
    _mapped.cache_clear()  # as other shards push it out
    os.replace(tmp_path / "plain-1.safetensors", tmp_path / "plain-0.safetensors")
    with pytest.raises(CorruptFile, match=r"plain-0\.safetensors changed"):
        shards[0].tensors["tiny"]
