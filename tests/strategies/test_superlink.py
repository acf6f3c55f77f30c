"""A real SuperLink and three SuperNodes on loopback: TLS, node authentication, a process for each message.

The same organizations, copied, run in-process first. In a seeded simulation everything up to the rounding is replayed,
so both runs have to give the same LLM adapters, byte for byte.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gradtf_fl.deployment.processes import ChildProcess, environment, free_port
from gradtf_fl.flower import read_records
from gradtf_fl.privacy import read_ledger
from strategies import run_server
from strategies.engines.flower_app import write_app
from strategies.engines.flower_processes import flwr, superlink_command, write_connection
from strategies.engines.ray_engine import run_on_ray, wait_for_run
from tests.strategies.federation_kit import Kit

MakeKit = Callable[..., Kit]
STARTED, FINISHED = 120.0, 780.0  # seconds


def copied(kit: Kit, out: Path) -> Kit:
    """The same federation in another folder, before anything ran."""
    shutil.copytree(kit.plan.out, out)
    plan = kit.plan.model_copy(update={"out": out, "organizations_dir": out / "organizations"})
    folders = tuple(out / "organizations" / folder.name for folder in kit.folders)
    return Kit(plan, folders, kit.generator)


def node_key(folder: Path, name: str) -> tuple[Path, Path]:
    """An ECDSA P-384 key pair in OpenSSH's format, as SuperNodes authenticate with."""
    key = ec.generate_private_key(ec.SECP384R1())
    private, public = folder / name, folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    private.chmod(0o600)
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    return private, public


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """(CA, server certificate, server key) for loopback."""
    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1")
    paths = folder / "ca.crt", folder / "server.crt", folder / "server.key"
    authority.cert_pem.write_to_path(paths[0])
    server.cert_chain_pems[0].write_to_path(paths[1])
    server.private_key_pem.write_to_path(paths[2])
    return paths


def adapter_bytes(kit: Kit, round_number: int) -> list[bytes]:
    """The LLM adapter of a round, on the server and at every organization."""
    places = [kit.plan.out, *kit.folders]
    name = Path("rounds") / str(round_number) / "llm_adapter" / "adapter_model.safetensors"
    return [(place / name).read_bytes() for place in places]


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_deployment_equals_in_process(make_kit: MakeKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    kit = make_kit("in-process", deadline_s=120.0, join_s=90.0)
    deployed = copied(kit, tmp_path / "deployed")
    run_server(kit.grid(), kit.plan, None, kit.generator)

    port, home = free_port(), tmp_path / "flower"
    env = environment(home)
    authority, certificate, key = certificates(tmp_path)
    write_connection(home, "prod", {"address": f"127.0.0.1:{port}", "root-certificates": str(authority.absolute())})
    with ExitStack() as running:
        tls = ["--ssl-certfile", certificate, "--ssl-keyfile", key, "--ssl-ca-certfile", authority]
        options = [*map(str, tls), "--enable-supernode-auth", "--database", str(tmp_path / "state.db")]
        command = superlink_command(port, *options)
        superlink = running.enter_context(ChildProcess(command, env, tmp_path / "superlink.log"))
        superlink.wait_for_port(port, STARTED)
        nodes = []
        for folder in deployed.folders:
            private, public = node_key(tmp_path, folder.name)
            flwr(["supernode", "register", str(public), "prod", "--name", folder.name], env, STARTED)
            command = ["flower-supernode", "--superlink", f"127.0.0.1:{port}"]
            command += ["--root-certificates", str(authority), "--auth-supernode-private-key", str(private)]
            command += ["--host", "127.0.0.1", "--port", str(free_port())]
            command += ["--node-config", f'organization-dir="{folder}" simulated=true']
            log = tmp_path / f"{folder.name}.log"
            nodes.append(running.enter_context(ChildProcess(command, env, log)))
            time.sleep(0.5)
        app = write_app(tmp_path / "app", deployed.plan)
        run_id = str(flwr(["run", str(app), "prod"], env, STARTED)["run-id"])
        status = wait_for_run("prod", run_id, env, deployed.plan, None, FINISHED, superlink)
        for node in nodes:
            node.check()
    assert status == "finished:completed", (tmp_path / "superlink.log").read_text()[-4000:]

    ours, theirs = read_records(kit.plan.out), read_records(deployed.plan.out)
    assert [record.round for record in theirs] == [1, 2]
    for left, right in zip(ours, theirs, strict=True):
        assert (right.state, right.joined, right.unmasked) == ("completed", 3, 3)
        assert right.llm_adapter_sha256 == left.llm_adapter_sha256
        assert (right.bytes_up_per_client, right.bytes_down_per_client) == (
            left.bytes_up_per_client,
            left.bytes_down_per_client,
        )
        assert len({*adapter_bytes(kit, left.round), *adapter_bytes(deployed, right.round)}) == 1
    for left_folder, right_folder in zip(kit.folders, deployed.folders, strict=True):
        events = [read_ledger(f / "ledger.sqlite").content.events for f in (left_folder, right_folder)]
        assert events[0] == events[1]
        lines = [(f / "evaluations.jsonl").read_text().splitlines() for f in (left_folder, right_folder)]
        scores = [[json.loads(line)["llm_generated"] for line in part] for part in lines]
        assert scores[0] == scores[1]


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_equals_in_process(make_kit: MakeKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    kit = make_kit("in-process", rounds=1, deadline_s=300.0, join_s=60.0)
    simulated = copied(kit, tmp_path / "ray")
    run_server(kit.grid(), kit.plan, None, kit.generator)
    ended: list[int] = []
    run_on_ray(simulated.plan, lambda event: ended.append(event.round), FINISHED)
    assert ended == [1]
    hashes = [[r.llm_adapter_sha256 for r in read_records(k.plan.out)] for k in (kit, simulated)]
    assert hashes[0] == hashes[1]
