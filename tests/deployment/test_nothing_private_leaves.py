"""Markers in rows, paths and exception texts, and every byte that leaves three organizations searched for them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from clients.node.setup import join_federation, make_organization
from experiments.bench.federation import OURS, nodes
from gradtf_fl.config import OrganizationConfig, load_toml, to_toml
from gradtf_fl.deployment.certificates import init_authority, issue_server
from gradtf_fl.deployment.processes import free_port
from gradtf_fl.deployment.server_config import load_server
from gradtf_fl.flower import read_records
from gradtf_fl.tasks import house_rules_federation, write_rows
from strategies.server.run import ServerRun
from strategies.server.setup import make_server
from tests.deployment.wiretap import Wiretap

MARKER = "patient7431hastheflu"
FOLDER = "clinic4711"  # in every path of an organization
ROWS = 64


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(900)
def test_nothing_private_in_any_byte_that_leaves(tmp_path: Path) -> None:
    port = free_port()
    init_authority(tmp_path / "ca", "test", 10)
    issue_server(tmp_path / "ca", ["127.0.0.1"], tmp_path / "tls", 5)
    tls = {"ca": tmp_path / "ca/ca.crt", "certificate": tmp_path / "tls/server.crt", "key": tmp_path / "tls/server.key"}
    homes = [tmp_path / f"{FOLDER}-{number}" / "node" for number in range(4)]
    data = house_rules_federation("same", 4, ROWS, 8, 0)
    for number, (home, rows) in enumerate(zip(homes, data, strict=True)):
        home.parent.mkdir()
        train = home.parent / f"{MARKER}.jsonl"
        write_rows(train, rows.train)
        test = home.parent / "test.jsonl"
        write_rows(test, rows.test)
        make_organization(home, f"org-{number}", train, test, 100.0, 1e-5, "embedded:tiny", "embedded:llm")
        if number == 3:  # changed since: the handler fails over a row, with the row's path in the exception's text
            lines = train.read_text().splitlines()
            train.write_text("\n".join([*lines[:-1], json.dumps({"prompt": MARKER})]) + "\n")
    plan = {"rounds": 2, "steps": 3, "batch": 16, "deadline_s": 200.0, "join_s": 200.0, "threshold": 3}
    address = f"127.0.0.1:{port}"
    enrolments = [home / "enrolment.json" for home in homes]
    invitation = make_server(tmp_path / "server", enrolments, address, address, tls, plan)
    taps = [Wiretap(port, **tls) for _ in homes]
    for home, tap in zip(homes, taps, strict=True):
        join_federation(home, invitation)
        config = load_toml(OrganizationConfig, home / "organization.toml")
        assert config.server is not None
        tapped = config.server.model_copy(update={"address": f"127.0.0.1:{tap.port}"})
        sections = {"server": tapped, "secagg": config.secagg.model_copy(update={"t_min": 3})}
        (home / "organization.toml").write_text(to_toml(config.model_copy(update=sections)))
    with nodes(homes, OURS, tmp_path / "server"):
        ServerRun(load_server(tmp_path / "server")).run()
    for tap in taps:
        tap.close()

    records = read_records(tmp_path / "server")
    assert [(record.state, record.joined) for record in records] == [("completed", 3), ("completed", 3)]
    assert records[0].refused == {"policy": 1}
    told_at_home = (homes[3] / "client.log").read_text()
    assert MARKER in told_at_home  # the organization itself learns why: the search below would find it

    private = {
        line for rows in data for row in rows.train + rows.test for line in (row.prompt, row.prompt + row.answer)
    }
    private |= {MARKER, FOLDER}
    private |= {base64.b64encode(word.encode()).decode()[:-4] for word in (MARKER, FOLDER)}
    sent = [bytes(tap.up) for tap in taps]
    assert all(len(part) > 20_000 for part in sent)
    assert all(b"gradtf" in part for part in sent)  # the wire was read, and in clear
    kept = {str(p): p.read_bytes() for p in (tmp_path / "server").rglob("*") if p.is_file() and "app" not in p.parts}
    settings = {"server.toml"}  # the server's own paths, written by its own operator
    for word in sorted(private | {str(tmp_path), "organization.toml", "Traceback"}):
        raw = word.encode()
        for number, part in enumerate(sent):
            assert raw not in part, f"organization {number} sent {word!r}"
        for name, content in kept.items() if word in private else ():
            if Path(name).name not in settings:
                assert raw not in content, f"{name} holds {word!r}"
