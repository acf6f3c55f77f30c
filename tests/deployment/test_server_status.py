"""``gradtf server status``: what an operator reads, while the server runs and while it does not."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gradtf_fl.cli.server.status import status as status_command
from gradtf_fl.config import DropPoint, PrivacySection
from gradtf_fl.deployment.enrolment import canonical
from gradtf_fl.deployment.enrolment import enrol as new_enrolment
from gradtf_fl.deployment.metrics import exposition, server_metrics
from gradtf_fl.deployment.node_key import write_node_key
from gradtf_fl.deployment.server_files import holds_lock
from gradtf_fl.deployment.server_view import health, view_server
from gradtf_fl.errors import ConfigError, RoundAborted
from gradtf_fl.flower import RoundEvent, locked_run, read_records
from gradtf_fl.secagg import Identity
from strategies import checkpoints, run_server
from strategies.server.observation import Observer, tell_all
from tests.deployment.test_metrics import parsed
from tests.deployment.test_server_view import rendered
from tests.strategies.federation_kit import Kit

MakeKit = Callable[..., Kit]
ROOT = Path(__file__).parents[2]
WIDE = {"COLUMNS": "120"}
NAMES = ["st-anna", "clinic-north", "uni-south", "lab-9"]


@click.group()
def server() -> None:
    """As the real group will be."""


server.add_command(status_command)


def asked(folder: Path, *options: str) -> str:
    result = CliRunner().invoke(server, ["status", str(folder), *options], catch_exceptions=False, env=WIDE)
    assert result.exit_code == 0
    return result.output


def key(kit: Kit, number: int) -> str:
    return Identity.load(kit.folders[number] / "identity.key").public.hex()


def enrol(kit: Kit) -> None:
    """The roster and the enrolments of a deployed server."""
    out = kit.plan.out
    checkpoints.write_roster(out, [bytes.fromhex(key(kit, number)) for number in range(len(kit.folders))])
    (out / "enrolments").mkdir()
    for folder, name in zip(kit.folders, NAMES, strict=True):
        identity = load_pem_private_key((folder / "identity.key").read_bytes(), None)
        assert isinstance(identity, Ed25519PrivateKey)
        _, public = write_node_key(folder)
        (out / "enrolments" / f"{name}.json").write_text(canonical(new_enrolment(name, identity, public.read_text())))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pair: tuple[str, str], generator: Any) -> Kit:
    """Three rounds: number 1 is gone at round 2's mask; number 2 has budget for two rounds."""
    from tests.strategies.federation_kit import build

    folder = tmp_path_factory.mktemp("status") / "server"
    drop = {1: (DropPoint(stage="mask", round=2),)}
    kit = build(folder, pair, generator, organizations=4, rounds=3, drop=drop, epsilon=2.0)  # type: ignore[arg-type]
    kit.change(2, privacy=PrivacySection(budget=1.8137, declared=64))
    enrol(kit)
    with Observer(kit.plan) as observer:
        run_server(kit.grid(), kit.plan, observer, kit.generator)
    return kit


def test_a_finished_run_as_a_document(finished: Kit) -> None:
    document = json.loads(asked(finished.plan.out, "--json"))
    assert (document["state"], document["alive"], document["rounds_done"]) == ("completed", False, 3)
    assert document["status_age_s"] >= 0
    assert document["refused"] == {"policy": 1}
    assert document["last_adapter"]["round"] == 3
    records = read_records(finished.plan.out)
    assert document["last_adapter"]["sha256"] == records[-1].llm_adapter_sha256
    assert document["status"]["plan"]["epsilon"] == 2.0
    assert [o["name"] for o in document["organizations"]] == NAMES
    assert [o["missed"] for o in document["organizations"]] == [0, 1, 1, 0]
    assert [o["in_last_sum"] for o in document["organizations"]] == [True, True, False, True]
    for number, organization in enumerate(document["organizations"]):
        assert organization["key"] == key(finished, number)
        assert len(organization["fingerprint"].split()) == 13
        assert [t["round"] for t in organization["traffic"]] == [1, 2, 3]
        assert all(t["bytes_down"] > 0 for t in organization["traffic"])
    assert [t["included"] for t in document["organizations"][1]["traffic"]] == [True, False, True]
    assert document["problems"] == []


def test_a_finished_run_for_people(finished: Kit) -> None:
    text = asked(finished.plan.out)
    assert "completed   3 of 3 rounds done   status written" in text
    rows = {name: next(line for line in text.splitlines() if line.strip().startswith(name)) for name in NAMES}
    assert "no" in rows["uni-south"].split()
    assert "refuses:" in rows["uni-south"]
    assert "1 of 3" in rows["clinic-north"]
    assert "answered unmask" in rows["st-anna"]
    assert key(finished, 0)[:8] in rows["st-anna"]
    assert "policy 1" in text
    assert "2 at delta 1e-05 for each organization, all 3 rounds" in text
    assert read_records(finished.plan.out)[-1].llm_adapter_sha256[:40] in text.replace("\n", "")
    told = " ".join(text.split())
    assert "Not known here: any organization's accuracy, number of rows or remaining privacy budget" in told


def test_a_finished_runs_metrics(finished: Kit) -> None:
    """The same figures as the document's, and nothing that would tell one organization from another."""
    text = exposition(server_metrics(view_server(finished.plan.out), {})).decode()
    found = parsed(text)
    assert found["gradtf_server_state{gradtf_server_state=completed}"] == 1
    assert found["gradtf_server_attempts_total{state=completed}"] == found["gradtf_server_rounds_planned"] == 3
    assert found["gradtf_server_refusals_total{code=policy}"] == 1
    assert found["gradtf_server_organizations_missing"] == 1
    assert found["gradtf_server_plan_epsilon"] == 2.0
    assert found["gradtf_server_round_bytes{direction=up}"] == read_records(finished.plan.out)[-1].bytes_up_per_client
    assert found["gradtf_server_exchange_seconds{stage=unmask}"] > 0
    for number, name in enumerate(NAMES):
        assert name not in text
        assert key(finished, number)[:8] not in text


def test_nothing_that_an_organization_keeps_is_shown(finished: Kit) -> None:
    """The server's folder holds none of it, and the view shows none."""
    text = asked(finished.plan.out, "--json")
    for word in ("tiny_global", "llm_generated", "prompt", "1.8137"):
        assert word not in text


def test_a_running_server(make_kit: MakeKit) -> None:
    """Looked at from another process at round 2's share."""
    kit = make_kit("server", organizations=4, budget=50.0)
    enrol(kit)
    seen: list[dict[str, Any]] = []
    text: list[str] = []

    def look(event: RoundEvent) -> None:
        if (event.kind, event.stage, event.round, event.joined) == ("reply", "share", 2, 1):
            environment = {**os.environ, "PYTHONPATH": str(ROOT), **WIDE}
            code = "from gradtf_fl.cli.server.status import status; status()"
            for options in (["--json"], ["--once"]):
                command = [sys.executable, "-c", code, str(kit.plan.out), *options]
                output = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
                seen.append(json.loads(output.stdout)) if "--json" in options else text.append(output.stdout)

    with Observer(kit.plan) as observer:
        run_server(kit.grid(), kit.plan, tell_all(observer, look), kit.generator)
    (document,) = seen
    assert (document["state"], document["alive"], document["rounds_done"]) == ("running", True, 1)
    assert (document["status"]["round"], document["status"]["stage"]) == (2, "share")
    assert document["status"]["expected"] == 4
    assert "running   1 of 2 rounds done" in text[0]
    assert "round 2 of 2: share, " in text[0]
    assert "of 4 answered" in text[0]
    assert "waiting for share" in text[0]


def test_a_server_that_was_killed(make_kit: MakeKit) -> None:
    """As SIGKILL leaves it: the status says running, nobody holds the lock."""
    kit = make_kit("server")

    class Killed(BaseException):
        pass

    def die(event: RoundEvent) -> None:
        if (event.kind, event.stage, event.round) == ("stage", "mask", 2):
            raise Killed

    observer = Observer(kit.plan)
    with pytest.raises(Killed):
        run_server(kit.grid(), kit.plan, tell_all(observer, die), kit.generator)
    view = view_server(kit.plan.out)
    assert (view.state, view.alive, len(view.completed)) == ("died", False, 1)
    assert "start it again" in rendered(view)
    assert "mask unanswered" in rendered(view)
    assert health(view)["status"] == "failed"


def test_before_the_first_round(make_kit: MakeKit) -> None:
    kit = make_kit("server", organizations=4)
    enrol(kit)
    text = asked(kit.plan.out)
    assert "not started   0 rounds done" in text
    assert text.count("not seen yet") == 4
    assert all(name in text for name in NAMES)
    document = json.loads(asked(kit.plan.out, "--json"))
    assert (document["state"], document["status"], document["last_adapter"]) == ("not started", None, None)
    assert health(view_server(kit.plan.out))["status"] == "ok"


def test_an_aborted_round(make_kit: MakeKit) -> None:
    kit = make_kit("server", rounds=1, drop={0: (DropPoint(stage="mask"),), 1: (DropPoint(stage="mask"),)})
    with pytest.raises(RoundAborted), Observer(kit.plan) as observer:
        run_server(kit.grid(), kit.plan, observer, kit.generator)
    text = asked(kit.plan.out)
    assert "aborted   0 of 1 rounds done" in text
    assert "too few organizations stayed in the round (RoundAborted)" in text
    assert text.count("lost at mask: bad answer") == 2
    assert health(view_server(kit.plan.out))["status"] == "failed"


def test_without_a_status_the_checkpoints_still_tell(finished: Kit, tmp_path: Path) -> None:
    """A run of an earlier version, or a status on a disk that was full."""
    (tmp_path / "federation.json").write_bytes((finished.plan.out / "federation.json").read_bytes())
    view = view_server(tmp_path)
    assert (view.state, len(view.completed), view.age) == ("idle", 3, None)
    assert [o.missed for o in view.organizations if o.key == key(finished, 1)] == [1]
    assert "3 rounds done" in rendered(view)


@pytest.mark.parametrize("name", ["status.json", "federation.json", "roster.txt", "enrolments/lab-9.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]"])
def test_a_damaged_file_is_named_and_the_rest_shown(finished: Kit, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "enrolments").mkdir()
    for path in ("status.json", "federation.json", "roster.txt", "events.jsonl", "enrolments/lab-9.json"):
        (tmp_path / path).write_bytes((finished.plan.out / path).read_bytes())
    (tmp_path / name).write_bytes(content)
    view = view_server(tmp_path)
    (problem,) = view.problems
    assert str(tmp_path / name) in problem
    assert str(tmp_path / name) in rendered(view, 400)
    assert key(finished, 0)[:8] in rendered(view)
    assert health(view)["status"] != "ok"


def test_what_is_no_servers_folder(tmp_path: Path) -> None:
    for folder, problem in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "no server's folder")):
        with pytest.raises(ConfigError, match=problem):
            CliRunner().invoke(server, ["status", str(folder)], catch_exceptions=False)
    with pytest.raises(ConfigError, match="exclude each other"):
        CliRunner().invoke(server, ["status", str(tmp_path), "--once", "--watch"], catch_exceptions=False)


def test_whether_a_server_lives_is_in_its_lock(tmp_path: Path) -> None:
    assert not holds_lock(tmp_path)
    assert not (tmp_path / ".lock").exists()  # looking leaves nothing behind
    with locked_run(tmp_path):
        assert holds_lock(tmp_path)
    assert not holds_lock(tmp_path)
    with (tmp_path / ".lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # another operator is looking
        assert not holds_lock(tmp_path)


def test_watching_ends_with_ctrl_c(finished: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal each change is printed once; Ctrl-C is the way out, not a failure."""
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("gradtf_fl.cli.server.status.time.sleep", nap)
    lines = asked(finished.plan.out, "--json", "--watch").splitlines()
    assert naps == [0.5] * 3
    assert len(lines) == 1
    assert json.loads(lines[0])["state"] == "completed"
    naps.clear()
    assert asked(finished.plan.out, "--watch").count("rounds done") == 1


def test_it_loads_neither_flower_nor_torch(finished: Kit) -> None:
    code = (
        "import sys; from gradtf_fl.cli.server.status import status\n"
        "assert not {'flwr', 'torch', 'numpy', 'rich', 'pydantic'} & set(sys.modules)\n"
        "try: status()\n"
        "finally: print({'flwr', 'torch', 'strategies'} & set(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(finished.plan.out), "--json"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "set()")


def test_a_hostile_name_does_nothing(finished: Kit, tmp_path: Path) -> None:
    (tmp_path / "roster.txt").write_text(key(finished, 3))
    (tmp_path / "enrolments").mkdir()
    genuine = json.loads((finished.plan.out / "enrolments" / "lab-9.json").read_text())
    (tmp_path / "enrolments" / "x.json").write_text(json.dumps(genuine | {"name": "a\x1b]0;x\x07"}))
    seen = view_server(tmp_path)
    assert seen.organizations[0].name == ""
    assert "x.json" in seen.problems[0]
