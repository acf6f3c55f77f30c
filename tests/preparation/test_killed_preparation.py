"""A preparation killed with SIGKILL at any moment goes on where it was, to the very end that it would have had."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.curation.text_pair import write_files
from tests.preparation.test_prepare import TABLES

STAGES = ("curate", "train", "controls", "task library", "judge")
KILLS = 3  # in each stage
PROGRAM = """
import os, random, signal, sys, threading
from pathlib import Path
from gradtf_fl.config import read_project
from gradtf_fl.preparation import ProviderWork, prepare
import peft, transformers.models.llama.modeling_llama, transformers.models.t5.modeling_t5

moments, kills, deaths, stages = random.Random(7), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
work = ProviderWork.of(read_project(Path(sys.argv[1])))
while True:
    after, delay = moments.randrange(1, 4), moments.uniform(0, 0.1)
    child = os.fork()  # nothing was computed in this process
    if child == 0:
        died, now, told, armed = deaths.read_text().splitlines(), "", 0, False

        def kill():
            with deaths.open("a") as file:
                print(now, file=file)
            os.kill(os.getpid(), signal.SIGKILL)

        def count(what, done, total):
            global now, told, armed
            stage = next(stage for stage in stages if what.startswith(stage))
            now, told = stage, told + 1 if stage == now else 1
            if kills and now not in died:
                kill()  # at the first that it says: no stage is passed in the time that another one's kill takes
            reports = 1 if now in ("controls", "judge") else after
            if not armed and died.count(now) < kills and told == reports:
                armed = True
                threading.Timer(delay, kill).start()

        prepare(work, count)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        sys.exit(os.WEXITSTATUS(status))
"""


def prepared(folder: Path, text: str, kills: int) -> tuple[dict[str, object], list[str]]:
    """What a preparation in ``folder`` left, after ``kills`` in each of its stages, and in which stages it died."""
    path, deaths = folder / "federation.toml", folder / "deaths"
    folder.mkdir()
    path.write_text(text)
    deaths.touch()
    program = [sys.executable, "-c", PROGRAM, str(path), str(kills), str(deaths), *STAGES]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert not [one.name for one in folder.rglob("*") if ".new" in one.name]
    made = {one.name: one.read_bytes() for one in (folder / "made").glob("*.safetensors")}
    report = json.loads((folder / "made" / "preparation.json").read_text())
    return made | {"report": report}, deaths.read_text().splitlines()


@pytest.mark.slow
def test_it_ends_as_if_nobody_had_killed_it(tmp_path: Path) -> None:
    files = write_files(tmp_path / "text")
    text = f'[pair]\ntiny = "{files.tiny}"\nllm = "{files.llm}"\n' + TABLES.format(data=files.data)
    whole, _ = prepared(tmp_path / "whole", text, 0)
    killed, died = prepared(tmp_path / "killed", text, KILLS)
    assert set(died) == set(STAGES)
    assert len(died) > 2 * len(STAGES)  # a kill with a delay may come when the stage, or all, is done
    assert sorted(whole) == ["controls.safetensors", "gt.safetensors", "library.safetensors", "report"]
    assert killed == whole
