"""A preparation killed with SIGKILL at any moment goes on where it was, to the very end that it would have had."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.curation.text_pair import write_files
from tests.preparation.test_prepare import TABLES

KILLS = 12
PROGRAM = """
import os, random, signal, sys, threading
from pathlib import Path
from gradtf_fl.config import read_project
from gradtf_fl.preparation import ProviderWork, prepare
import peft, transformers.models.llama.modeling_llama, transformers.models.t5.modeling_t5

moments, kills = random.Random(7), int(sys.argv[2])
work = ProviderWork.of(read_project(Path(sys.argv[1])))
while True:
    after, delay = moments.randrange(1, 6), moments.uniform(0, 0.05)
    child = os.fork()  # nothing was computed in this process
    if child == 0:
        told = 0

        def count(what, done, total):
            global told
            told += 1
            if kills and told == after:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

        prepare(work, count)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        sys.exit(os.WEXITSTATUS(status))
    kills -= 1
"""


def prepared(folder: Path, text: str, kills: int) -> dict[str, object]:
    """What a preparation in ``folder`` left, after ``kills`` of them."""
    path = folder / "federation.toml"
    folder.mkdir()
    path.write_text(text)
    program = [sys.executable, "-c", PROGRAM, str(path), str(kills)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert not [one.name for one in folder.rglob("*") if ".new" in one.name]
    made = {one.name: one.read_bytes() for one in (folder / "made").glob("*.safetensors")}
    return made | {"report": json.loads((folder / "made" / "preparation.json").read_text())}


@pytest.mark.slow
def test_it_ends_as_if_nobody_had_killed_it(tmp_path: Path) -> None:
    files = write_files(tmp_path / "text")
    text = f'[pair]\ntiny = "{files.tiny}"\nllm = "{files.llm}"\n' + TABLES.format(data=files.data)
    whole = prepared(tmp_path / "whole", text, 0)
    killed = prepared(tmp_path / "killed", text, KILLS)
    assert sorted(whole) == ["controls.safetensors", "gt.safetensors", "library.safetensors", "report"]
    assert killed == whole
