"""Nodes that must not get in: wrong clock, authority, certificate, key, roster or model; two of one identity.

Outsiders run from folders of their own beside the running federation, which must not notice them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gradtf_fl.adapters.models import load_model
from gradtf_fl.deployment.certificates import init_authority, issue_server
from gradtf_fl.deployment.node_key import write_node_key
from gradtf_fl.deployment.processes import PACKAGES
from tests.deployment.deployed_kit import Deployment
from tests.deployment.fault_watch import Invariants
from tests.deployment.members import Member, cli, until
from tests.deployment.tls_listener import TlsListener

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]
DAY_S, TELL_S = 86400, 120.0
CLOCK = Path(__file__).with_name("shifted_clock")


def copy_of(deployment: Deployment, member: Member, name: str) -> Member:
    """The same folder elsewhere, as from a backup."""
    folder = deployment.root / name
    shutil.copytree(member.folder, folder, ignore=shutil.ignore_patterns("*.sock"))
    return Member(name, folder, ["org", "run", str(folder), "--stage-seconds", "5"])


def findings(folder: Path, **env: str) -> dict[str, str]:
    """What `org check` says against the folder: finding -> text."""
    done = cli("org", "check", str(folder), "--json", env=env)
    assert done.returncode == 2, done.stdout + done.stderr
    found = json.loads(done.stdout)["findings"]
    return {one["what"]: one["found"] for one in found if one["level"] == "fail"}


def test_outsiders(faults: Invariants) -> None:
    """Each gets a message that names its problem, from `org run` and from `org check`; nobody else notices."""
    deployment = faults.deployment
    member = deployment.organizations[0]
    names = ("late", "wrong-ca", "expired", "unknown")
    with ExitStack() as stack:
        late, wrong_ca, expired, unknown = (copy_of(deployment, member, name) for name in names)
        for one in (late, wrong_ca, expired, unknown):
            (one.folder / "supernode").unlink()
            write_node_key(one.folder, "supernode")
            deployment.change(one, server=deployment.config(member).server)
            stack.callback(one.stop, 10.0)
        other = init_authority(deployment.root / "other-ca", "other")
        (wrong_ca.folder / "ca.crt").write_bytes(other.pem)
        past = datetime.now(UTC) - timedelta(days=40)
        issued = issue_server(deployment.authority, ["127.0.0.1"], deployment.root / "old-tls", days=1, now=past)
        listener = stack.enter_context(TlsListener(issued.certificate_path, issued.key_path))
        server = deployment.config(member).server
        assert server is not None
        deployment.change(expired, server=server.model_copy(update={"address": f"127.0.0.1:{listener.port}"}))
        clock = {"GRADTF_TEST_CLOCK": str(DAY_S), "PYTHONPATH": os.pathsep.join(map(str, (CLOCK, PACKAGES)))}
        cases: list[tuple[str, Member, str, str, str, dict[str, str]]] = [
            ("clock wrong by a day", late, "clock", "clock", "s from the server's", clock),
            ("certificate of another authority", wrong_ca, "TLS", "server's certificate", "certificate", {}),
            ("expired certificate", expired, "TLS", "server's certificate", "expired", {}),
            ("unregistered node key", unknown, "does not know our node key", "registration", "does not know", {}),
        ]
        number = deployment.beginning()
        for _, outsider, _, _, _, env in cases:
            outsider.start(env=env)
        for name, outsider, said, what, found, env in cases:
            with faults.fault(name) as fault:
                until(lambda o=outsider, s=said: s in o.said(), TELL_S, f"{name}: org run says so")  # type: ignore[misc]
                message = next(line for line in outsider.said().splitlines() if said in line)
                outsider.stop(10.0)
                told = findings(outsider.folder, **env)
                assert found in told.get(what, ""), told
                fault.note(message.partition(": ")[2])
        deployment.everyone(number - 1)


def test_roster_without_us_and_another_model(faults: Invariants, tmp_path: Path) -> None:
    """Both refuse each round by themselves, with a typed code, and spend nothing; the others go on."""
    deployment = faults.deployment
    left_out, other_model = deployment.organizations[1:3]
    with faults.fault("roster without this organization; another TinyLM elsewhere") as fault:
        fault.hits(left_out, other_model)
        secagg, models = deployment.config(left_out).secagg, deployment.config(other_model).models
        roster = tuple(key for key in secagg.roster if key != deployment.key(left_out))
        model, tokenizer = load_model(models.tiny)
        changed = next(model.parameters())
        changed.data[0] += 0.01
        model.save_pretrained(tmp_path / "tiny")
        tokenizer.save_pretrained(tmp_path / "tiny")
        try:
            deployment.change(left_out, secagg=secagg.model_copy(update={"roster": roster}))
            deployment.change(other_model, models=models.model_copy(update={"tiny": str(tmp_path / "tiny")}))
            now = deployment.status().round
            assert "not in it" in findings(left_out.folder)["roster"]
            record = deployment.finished(now + 1)
        finally:
            deployment.change(left_out, secagg=secagg)
            deployment.change(other_model, models=models)
        fault.note(f"round {record.round}: {deployment.share(record)}, refused {dict(record.refused)}")
        assert dict(record.refused) == {"policy": 1, "model_hash": 1}
        fault.ends()
        deployment.everyone(record.round)
        fault.recovered()


def test_two_nodes_of_one_identity(faults: Invariants) -> None:
    """In the same folder a lock refuses the second, from a copied one the server does. The first is unharmed."""
    deployment = faults.deployment
    member = deployment.organizations[4]
    with faults.fault("two nodes with one identity: same folder, copied folder") as fault:
        second = cli("org", "run", str(member.folder))
        assert (second.returncode, "another `gradtf org run`" in second.stderr) == (2, True), second.stderr
        copied = copy_of(deployment, member, "copy-of-org-5")
        connected = 1 + member.said().count("connected to")
        fault.hits(member)
        member.kill("supernode")  # what the copy knows of the live SuperNode is old now
        until(lambda: member.said().count("connected to") == connected, TELL_S, "the live node is back")
        number = deployment.beginning()
        with stopped_at_the_end(copied):
            copied.start()
            until(lambda: "counts it as online" in copied.said(), TELL_S, "the copy is refused")
            assert "connected to" not in copied.said()
            record = deployment.everyone(number)
            assert "connected to" not in copied.said()
        assert member.said().count("connected to") == connected
        assert not (copied.folder / "rounds" / str(record.round)).exists()
        fault.note(f"refused by lock and by server; the live one is in round {record.round}")


@contextmanager
def stopped_at_the_end(member: Member) -> Iterator[None]:
    """Ends ``member``."""
    try:
        yield
    finally:
        member.stop(10.0)
