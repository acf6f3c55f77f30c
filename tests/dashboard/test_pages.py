"""What the pages show of real folders: what the terminal shows, as safe HTML."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from clients.adapters.kept import current, is_pinned, pin
from gradtf_fl.dashboard.adapters_page import read_adapters
from gradtf_fl.dashboard.ledger_figures import LedgerFigures, read_and_report
from gradtf_fl.dashboard.run_page import BAR, RunContext, scores
from gradtf_fl.dashboard.run_view import view_run
from gradtf_fl.dashboard.server_page import STEPS, server_context
from gradtf_fl.deployment import view_server
from gradtf_fl.deployment.folders import held
from gradtf_fl.reports import SimulationReport
from gradtf_fl.reports.status_words import server_words
from tests.cli.conftest import gradtf
from tests.dashboard.conftest import HOSTILE, Serve
from tests.strategies.federation_kit import Kit

SPELLED = "&lt;img src=x onerror=&#34;document.title=1&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;\\u202e\\x1b[2J"
"""`HOSTILE` as a page shows it."""


def words_of(page: str) -> str:
    """Text of a page, as a person reads it."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def settled(serve: Serve, path: str, **named: Any) -> str:
    """The page at ``path`` once its ledgers are computed."""
    served = serve(**named)
    for _ in range(300):
        text = served.text(path)
        if "Computing the epsilons" not in text:
            return text
        with served.client.stream("GET", f"/events{path}") as answer:
            lines = answer.iter_lines()
            while next(lines) != "event: beat":
                pass
    raise AssertionError("the epsilons were not computed")


# -- server --------------------------------------------------------------------------------------------


def test_the_server_page_shows_all_that_server_status_shows(serve: Serve, deployed: Kit) -> None:
    folder = deployed.plan.out
    text = words_of(serve(server=folder).text("/server"))
    words = server_words(view_server(folder))
    assert words.organizations[1].in_last_sum.text == "no"
    said = [words.state.text, words.rounds, words.not_known, *words.problems]
    for one in words.organizations:
        said += [one.name, one.key, one.in_last_sum.text, one.missed.text, one.sent, one.got, one.now.text]
    for name, value in words.facts:
        said += [name, value.text]
    for stage, answered, took in words.exchanges:
        said += [stage, answered, took]
    assert [part for part in said if part not in text] == []


def test_the_server_page_shows_nothing_that_the_view_has_not(serve: Serve, deployed: Kit) -> None:
    """Every figure on it stands in `server status --json`'s document, or is a count or a time of the same view."""
    page = serve(server=deployed.plan.out).text("/server")
    for number, folder in enumerate(deployed.folders):
        secret = [deployed.config(number).privacy.declared, (folder / "train.jsonl").read_text().split('"')[3]]
        assert all(f">{value}<" not in page for value in secret)
    for word in ("tiny_global", "llm_generated", "train.jsonl", "accuracy:", "budget:"):
        assert word not in page


def test_steps_of_a_round(deployed: Kit) -> None:
    view = view_server(deployed.plan.out)
    context = server_context(deployed.plan.out)
    assert [step.state for step in context["steps"]] == ["done"] * len(STEPS)
    assert view.status is not None
    assert next(step.answered for step in context["steps"] if step.name == "mask") == "3 of 4"
    assert context["spoken"] == "completed, 2 of 2 rounds done"


def test_a_stage_under_way(deployed: Kit, tmp_path: Path) -> None:
    view = view_server(deployed.plan.out)
    assert view.status is not None
    status = replace(view.status, state="running", stage="mask", exchanges=view.status.exchanges[:3], answered=1)
    status.write(tmp_path)
    with held(tmp_path / ".lock", "held"):
        context = server_context(tmp_path)
    states = {step.name: step.state for step in context["steps"]}
    assert [states[name] for name in ("connect", "advertise", "accept", "mask", "consistency", "deliver")] == [
        "done", "done", "done", "now", "ahead", "ahead",
    ]  # fmt: skip
    assert context["words"].stage.left.startswith("at most ")
    assert context["spoken"] == "running, round 2 of 2: mask, 1 lost"


def test_hostile_words_in_a_status_are_text(serve: Serve, deployed: Kit, tmp_path: Path) -> None:
    view = view_server(deployed.plan.out)
    assert view.status is not None
    nodes = tuple(replace(node, key="", stage=HOSTILE, outcome=HOSTILE) for node in view.status.nodes)
    replace(view.status, state="failed", error=HOSTILE, stage=HOSTILE, nodes=nodes).write(tmp_path)
    page = serve(server=tmp_path).text("/server")
    assert page.count(SPELLED) >= 2 + 2 * len(nodes)
    assert "<img src=x" not in page
    assert "\u202e" not in page


def test_more_organizations_than_fit_show_those_in_trouble(deployed: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradtf_fl.dashboard.server_page.MOST_SHOWN", 1)
    context = server_context(deployed.plan.out)
    assert [one.name for one in context["organizations"]] == ["clinic-north"]
    assert context["left_out"] == 3


def test_a_folder_that_goes_away_is_said(serve: Serve, deployed: Kit, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(deployed.plan.out / "status.json", folder)
    served = serve(server=folder)
    shutil.rmtree(folder)
    answer = served.client.get("/server")
    assert answer.status_code == 409
    assert f"{folder}: no such folder" in answer.text
    with served.client.stream("GET", "/events/server") as stream:
        assert next(stream.iter_lines()) == "event: problem"


# -- budgets -------------------------------------------------------------------------------------------


def test_budgets_are_those_of_the_audit_and_a_hostile_name_is_text(serve: Serve, ledger: Path) -> None:
    page = settled(serve, "/budgets", ledgers=(ledger,))
    (report,) = read_and_report([ledger]).reports
    text = words_of(page)
    for said in (f"ε = {report.epsilon.prv:.3f}", "2 charges", f"{report.projected_rounds} more like the last one"):
        assert said in text
    for word in ("unit", "adjacency", "delta", "sampler", "accountant", "noise generator", "What epsilon does not"):
        assert word in text
    assert SPELLED in page
    assert "<img src=x" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert page.count("<script") == 1


def test_an_organization_before_its_first_round_has_no_ledger(serve: Serve, organization: Path) -> None:
    for path in organization.glob("ledger.*"):
        path.unlink()
    assert "no ledger yet" in serve(organization=organization).text("/budgets")


def test_a_broken_ledger_is_named_beside_the_others(serve: Serve, ledger: Path, organization: Path) -> None:
    broken = ledger.with_name("broken.sqlite")
    broken.write_bytes(b"no ledger")
    page = settled(serve, "/budgets", organization=organization, ledgers=(ledger, broken))
    assert str(broken) in page
    assert page.count("<article id=") == 2
    assert "rounds left" in page


def test_figures_are_computed_again_when_a_ledger_changes_and_only_then(ledger: Path) -> None:
    figures = LedgerFigures(lambda: [ledger])

    def done() -> Any:
        while (found := figures.latest()).pending:
            pass
        return found.reports

    first = done()
    assert done() is first
    os.utime(ledger)
    assert done() is not first


# -- simulation ----------------------------------------------------------------------------------------


def test_a_finished_simulation(serve: Serve, simulated: Path) -> None:
    page = settled(serve, "/run", run=simulated)
    report = SimulationReport.read(simulated / "report.json")
    assert report.to_json() == json.loads((simulated / "report.json").read_text())
    text = words_of(page)
    for organization in report.organizations:
        assert f"{organization.name} {organization.rows:,}" in text
        assert f"{organization.epsilon:.2f} of 2" in text
    for key, value in report.accuracy.items():
        assert value is not None, key
        assert f"{value:.3f}" in text, key
    for said in ("completed", "2 of 2 rounds done", "nearest update", "Grad-Transformer", "LLM ceiling", "PGR"):
        assert said in text
    assert "such noise protects nobody" in text
    assert page.count('<circle class="settled"') == 2


def test_scores_are_bars_of_one_scale(simulated: Path) -> None:
    report = SimulationReport.read(simulated / "report.json")
    accuracy = {key: (number + 1) / 20 for number, key in enumerate(report.names)}
    scored = replace(report, organizations=tuple(replace(one, accuracy=accuracy) for one in report.organizations))
    rows = scores(scored)
    assert [row.name for row in rows[-2:]] == ["Grad-Transformer", "LLM ceiling"]
    assert [row.role for row in rows[-2:]] == ["result", "limit"]
    assert len(rows) == len(report.names) - 1  # the federation's TinyLM is not compared
    for row in rows:
        assert row.score is not None
        assert row.bar == pytest.approx(BAR * row.score, abs=0.1)
    gains = {row.name: row.gain for row in rows if row.gain is not None}
    assert gains["Grad-Transformer"] == pytest.approx(
        (accuracy["llm_generated"] - accuracy["llm_base"]) / (accuracy["llm_ceiling"] - accuracy["llm_base"])
    )
    assert max(row.bar for row in scores(replace(scored, metric="loss"))) == BAR  # less is better, and has no end


def test_a_simulation_that_runs_and_one_that_was_interrupted(serve: Serve, simulated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(simulated, out)
    (out / "report.json").unlink()
    with held(out / ".simulation.lock", "held"):
        page = settled(serve, "/run", run=out)
        assert view_run(out).state == "running"
    text = words_of(page)
    for said in (
        "running",
        "2 of 2 rounds done",
        "round 2: 3 of 3 organizations charged",
        "accuracy is being measured",
        "ε = 1.9",
    ):
        assert said in text
    assert f"interrupted 2 of 2 rounds done nothing runs here; continue with: gradtf simulate --resume {out}" in (
        words_of(serve(run=out).text("/run"))
    )


@pytest.mark.parametrize("name", ["report.json", "federation.json", "simulation.toml"])
@pytest.mark.parametrize("content", ["{", '{"records": [{"round": "x"}]}', "[]", '{"organizations": 3}'])
def test_a_damaged_file_of_a_simulation_is_named(simulated: Path, tmp_path: Path, name: str, content: str) -> None:
    for kept in ("federation.json", "simulation.toml"):
        shutil.copy(simulated / kept, tmp_path)
    (tmp_path / name).write_text(content)
    context = RunContext(tmp_path)()
    assert context["view"].problems


def test_a_report_with_hostile_names_is_text(serve: Serve, simulated: Path, tmp_path: Path) -> None:
    document = json.loads((simulated / "report.json").read_text())
    document["organizations"][0] |= {"name": HOSTILE, "rule": HOSTILE, "holds": {HOSTILE: 100, "other": 28}}
    document["rounds"][0]["state"] = HOSTILE
    (tmp_path / "report.json").write_text(json.dumps(document))
    page = serve(run=tmp_path).text("/run")
    assert page.count(SPELLED) >= 5
    assert "<img src=x" not in page
    assert "\u202e" not in page


# -- adapters and log ----------------------------------------------------------------------------------


def form_of(client: httpx.Client, query: str) -> dict[str, str]:
    """Fields of the confirmation's form."""
    page = client.get(f"/adapters/confirm?{query}").text
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))


def test_roll_back_does_what_the_command_does(serve: Serve, organization: Path, tmp_path: Path) -> None:
    rounds = [row.round for row in read_adapters(organization)]
    assert rounds == [1, 2]
    other = tmp_path / "other"
    shutil.copytree(organization, other, symlinks=True)
    served = serve(organization=organization)
    assert "Use round 1" in served.text("/adapters")
    fields = form_of(served.client, "round=1")
    answer = served.client.post("/adapters/choose", data=fields)
    assert (answer.status_code, answer.headers["location"]) == (303, "/adapters")
    assert current(organization).round == 1
    assert is_pinned(organization)
    assert gradtf("org", "adapter", other, "--rollback", "1").exit_code == 0
    assert os.readlink(organization / "current_adapter") == os.readlink(other / "current_adapter")
    page = served.text("/adapters")
    assert "pinned" in words_of(page)
    assert served.client.post("/adapters/choose", data=form_of(served.client, "round=newest")).status_code == 303
    assert (current(organization).round, is_pinned(organization)) == (2, False)


@pytest.mark.parametrize(
    ("change", "headers"),
    [
        ({"form": ""}, {}),
        ({"form": "guessed"}, {}),
        ({"confirm": ""}, {}),
        ({"padding": "x" * 5000}, {}),
        ({}, {"Origin": "http://evil.example"}),
        ({}, {"Sec-Fetch-Site": "cross-site"}),
        ({}, {"Sec-Fetch-Site": "same-site"}),
    ],
)
def test_a_form_that_is_not_ours_changes_nothing(
    serve: Serve, organization: Path, change: dict[str, str], headers: dict[str, str]
) -> None:
    served = serve(organization=organization)
    fields = form_of(served.client, "round=1")
    answer = served.client.post("/adapters/choose", data=fields | change, headers=headers)
    assert answer.status_code == 403
    assert current(organization).round == 2


def test_an_adapter_that_is_not_as_signed_can_not_be_chosen(serve: Serve, organization: Path) -> None:
    served = serve(organization=organization)
    fields = form_of(served.client, "round=1")
    weights = organization / "rounds" / "1" / "llm_adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    page = served.text("/adapters")
    assert "NOT as signed" in page
    assert "Use round 1" not in page
    assert served.client.get("/adapters/confirm?round=1").status_code == 409
    assert served.client.post("/adapters/choose", data=fields).status_code == 409
    assert current(organization).round == 2


def test_a_model_card_is_plain_text(serve: Serve, organization: Path) -> None:
    card = organization / "rounds" / "2" / "llm_adapter" / "README.md"
    card.write_text(f"---\nbase_model: x\n---\n# An adapter\n{HOSTILE}\n", encoding="utf-8")
    page = serve(organization=organization).text("/adapters")
    assert f"base_model: x\n---\n# An adapter\n{SPELLED}\n" in page
    assert "not this text" in words_of(page)


def test_hashes_are_those_of_the_command(serve: Serve, organization: Path) -> None:
    listed = json.loads(gradtf("org", "adapter", organization, "--list", "--json").stdout)["adapters"]
    page = serve(organization=organization).text("/adapters")
    assert len(listed) == 2
    for one in listed:
        assert one["sha256"] in page
        assert one["verified"]
        assert one["run_id"] in page
    pin(organization, 1)
    assert serve(organization=organization).text("/adapters").count('class="card adapter used"') == 1


def test_the_log_is_the_end_of_the_json_log(serve: Serve, deployed: Kit, tmp_path: Path) -> None:
    shutil.copytree(deployed.plan.out, tmp_path / "server", symlinks=True)
    log = tmp_path / "server" / "events.jsonl"
    with log.open("a") as file:
        line = {"time": "2026-01-01T00:00:00Z", "component": "server", "event": "<b>bold</b>"}
        file.write(f"{json.dumps(line)}\nno json\n")
    page = serve(server=tmp_path / "server").text("/log")
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    first = re.findall(r'<td class="event">([^<]*)</td>', page)
    assert first[0] == "&lt;b&gt;bold&lt;/b&gt;"
    last = json.loads(log.read_text().splitlines()[-3])
    assert first[1] == last["event"]
