"""Enrolment, invitation, and joining: what is signed, what is refused, what stays."""

from __future__ import annotations

import json
import re
import stat
import tomllib
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from clients.node.setup import join_federation, make_organization
from clients.organization import load_organization
from gradtf_fl.config import PlaceSection, PolicySection, plan_values, read_project
from gradtf_fl.config.toml import descriptions
from gradtf_fl.deployment.certificates import init_authority, issue_server
from gradtf_fl.deployment.enrolment import (
    Invitation,
    enrol,
    fingerprint,
    read_enrolment,
    read_invitation,
    same_fingerprint,
)
from gradtf_fl.deployment.folders import Occupied
from gradtf_fl.deployment.server_config import load_server
from gradtf_fl.errors import ConfigError
from gradtf_fl.secagg import Identity
from gradtf_fl.transformer import embedded_checkpoint
from strategies import ServerRun, run_server
from strategies.failures import note_failure, take_failure
from strategies.server.setup import make_server
from tests.cli.conftest import gradtf

PLAN = {"rounds": 2, "epsilon": 4.0}


def organization(folder: Path, name: str) -> Path:
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "a", "answer": "b"}\n')
    make_organization(folder / name, name, rows, None, 8.0, 1e-5, "embedded:tiny", "embedded:llm")
    return folder / name


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [organization(tmp_path, f"org-{number}") for number in (1, 2, 3)]


def serve(tmp_path: Path, organizations: list[Path], name: str = "server", **plan: object) -> Invitation:
    if not (tmp_path / "ca").exists():
        init_authority(tmp_path / "ca", "test", 30)
        issue_server(tmp_path / "ca", ["127.0.0.1"], tmp_path / "tls", 10)
    files = {
        "ca": tmp_path / "ca/ca.crt",
        "certificate": tmp_path / "tls/server.crt",
        "key": tmp_path / "tls/server.key",
    }
    enrolments = [folder / "enrolment.json" for folder in organizations]
    return make_server(tmp_path / name, enrolments, "127.0.0.1:9092", None, files, PLAN | plan)


def test_a_server_is_not_set_up_with_a_certificate_that_nodes_would_refuse(tmp_path: Path, three: list[Path]) -> None:
    serve(tmp_path, three)
    init_authority(tmp_path / "another", "another", 30)
    past = datetime.now(UTC) - timedelta(days=20)
    issue_server(tmp_path / "ca", ["fl.example"], tmp_path / "elsewhere", 10)
    files = {
        "ca": tmp_path / "another/ca.crt",
        "certificate": tmp_path / "elsewhere/server.crt",
        "key": tmp_path / "tls/server.key",
    }
    enrolments = [folder / "enrolment.json" for folder in three]
    with pytest.raises(ConfigError) as found:
        make_server(tmp_path / "wrong", enrolments, "other.example:9092", None, files, PLAN)
    text = str(found.value)
    for part in (
        "--certificate: chain: no signatures lead",
        "--certificate: host other.example: the name is not in",
        "--certificate: key: belongs to another certificate",
    ):
        assert part in text
    assert not (tmp_path / "wrong").exists()
    init_authority(tmp_path / "old", "old", 60, now=past - timedelta(days=1))
    issue_server(tmp_path / "old", ["127.0.0.1"], tmp_path / "expired", 10, now=past)
    files = {"ca": tmp_path / "old/ca.crt"} | {
        name: tmp_path / "expired" / f"server.{end}" for name, end in (("certificate", "crt"), ("key", "key"))
    }
    with pytest.raises(ConfigError, match=r"--certificate: dates of the certificate: expired on"):
        make_server(tmp_path / "wrong", enrolments, "127.0.0.1:9092", None, files, PLAN)
    files["certificate"].write_text("no certificate")
    with pytest.raises(ConfigError, match=r"--certificate .*server\.crt: no PEM certificate in it"):
        make_server(tmp_path / "wrong", enrolments, "127.0.0.1:9092", None, files, PLAN)


def test_a_grad_transformer_of_another_pair_is_refused_when_the_server_is_set_up(
    tmp_path: Path, three: list[Path]
) -> None:
    """Both models are named, by key, file and hash; nothing is written."""
    with pytest.raises(ConfigError) as found:
        serve(tmp_path, three, tiny="embedded:llm", llm="embedded:tiny", rank=3)
    text = str(found.value)
    for part in (
        "plan.tiny: embedded:llm: plan.transformer (embedded) was made for another TinyLM, embedded:tiny (",
        "plan.llm: embedded:tiny: plan.transformer (embedded) was made for another LLM, embedded:llm (",
        "plan: transformer embedded: rank of its TinyLM adapter is 2, and 3 is asked for",
    ):
        assert part in text
    assert not (tmp_path / "server").exists()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(embedded_checkpoint().read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"plan: .*broken\.safetensors: its header is unreadable"):
        serve(tmp_path, three, transformer=str(broken))


def test_the_server_computes_where_its_file_says(tmp_path: Path, three: list[Path]) -> None:
    """``federation.toml``'s [compute] is carried over; what only trains is left out."""
    project = tmp_path / "federation.toml"
    project.write_text('[compute]\ndevice = "cuda:1"\nprecision = "float32"\nphysical_rows = 3\n')
    serve(tmp_path, three, **plan_values(read_project(project)))
    path = tmp_path / "server/server.toml"
    assert load_server(tmp_path / "server").plan.compute == PlaceSection(device="cuda:1", precision="float32")
    text = path.read_text()
    assert "# Cpu, cuda, cuda:N, mps, auto" in text
    assert "physical_rows" not in text
    path.write_text(text.replace('device = "cuda:1"', 'device = "gpu"\nsampler = "lora"'))
    with pytest.raises(ConfigError) as found:
        load_server(tmp_path / "server")
    assert [problem.partition(": ")[2].partition(": ")[0] for problem in found.value.problems] == [
        "compute.device",
        "compute.sampler",
    ]
    path.write_text(text.replace("[compute]", "[other]") + '\n[plan.compute]\ndevice = "cpu"\n')
    with pytest.raises(ConfigError, match=r"plan\.compute: is a table of its own, \[compute\]"):
        load_server(tmp_path / "server")


def test_from_nothing_to_joined(tmp_path: Path, three: list[Path]) -> None:
    invitation = serve(tmp_path, three)
    assert read_invitation(tmp_path / "server/invitation.json") == invitation
    server = load_server(tmp_path / "server")
    assert (server.plan.rounds, server.plan.epsilon, server.plan.organizations) == (2, 4.0, 3)
    for folder in three:
        with pytest.raises(ConfigError, match="has not joined a federation yet: gradtf org join"):
            load_organization(folder)
        assert join_federation(folder, invitation) == []
        loaded = load_organization(folder)
        assert loaded.config.secagg.roster == invitation.roster
        assert loaded.provider_key.hex() == invitation.provider_key
        assert loaded.config.secagg.n_min == 3
        assert not loaded.config.share_metrics
        assert loaded.config.server is not None
    roster = (tmp_path / "server/roster.txt").read_text().split()
    assert roster == list(invitation.roster)


def test_a_folder_that_others_may_change_is_not_believed(tmp_path: Path, three: list[Path]) -> None:
    """By kind: whatever mode or owner lets somebody else decide what an organization or a server does."""
    invitation = serve(tmp_path, three)
    for path in (three[0], three[0] / "organization.toml", three[0] / "identity.key"):
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(0o777)
        with pytest.raises(ConfigError, match=f"{path}: .*mode 0777: others can read it"):
            join_federation(three[0], invitation)
        path.chmod(before)
    for path in (tmp_path / "server", tmp_path / "server/server.toml", tmp_path / "server/provider.key"):
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(0o755)
        with pytest.raises(ConfigError, match=f"{path}: mode 0755: others can read it; chmod"):
            load_server(tmp_path / "server")
        path.chmod(before)
    load_server(tmp_path / "server")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match=r"shared: mode 0777: others can change"):
        init_authority(shared, "test", 30)
    with pytest.raises(ConfigError, match=r"shared: mode 0777: others can change"):
        issue_server(tmp_path / "ca", ["127.0.0.1"], shared, 10)
    assert not list(shared.iterdir())


@pytest.mark.parametrize("listen", ["[::]:9092", "[::1]:9092", "192.0.2.7:9092", "fl.example:9092"])
def test_a_server_that_its_own_parts_could_not_reach_is_not_set_up(
    tmp_path: Path, three: list[Path], listen: str
) -> None:
    serve(tmp_path, three)
    settings = tmp_path / "server/server.toml"
    settings.write_text(settings.read_text().replace('listen = "0.0.0.0:9092"', f'listen = "{listen}"'))
    with pytest.raises(ConfigError, match=r"server\.listen: .*own parts reach it by 127\.0\.0\.1"):
        load_server(tmp_path / "server")


def test_a_run_that_cannot_start_says_why_at_once(tmp_path: Path, three: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"plan\.transformer: .*gone\.safetensors: no such file"):
        serve(tmp_path, three, transformer=str(tmp_path / "gone.safetensors"))
    assert not (tmp_path / "server").exists()
    there = tmp_path / "there.safetensors"
    there.write_bytes(embedded_checkpoint().read_bytes())
    serve(tmp_path, three, transformer=str(there))
    there.write_bytes(b"no checkpoint")
    server = load_server(tmp_path / "server")
    with pytest.raises(ConfigError, match=r"there\.safetensors") as refused:
        run_server(None, server.plan)  # type: ignore[arg-type]
    note_failure(server.folder, refused.value)
    failure = take_failure(server.folder)
    assert failure is not None
    assert failure.final  # `server run` ends with it instead of trying again
    assert "there.safetensors" in failure.problems[0]
    assert take_failure(server.folder) is None
    note_failure(server.folder, Occupied("another server runs there"))  # it may leave
    failure = take_failure(server.folder)
    assert failure is not None
    assert not failure.final
    there.unlink()
    with pytest.raises(ConfigError, match=r"plan\.transformer: .*there\.safetensors: no such file"):
        ServerRun(server).run()


@pytest.mark.parametrize("content", ["", "{}\n", '{"prompt": "a"}\n', "\x00", '{"prompt": "a", "answer": "\\ud83d"}\n'])
def test_an_organization_is_not_made_for_rows_that_nobody_can_read(tmp_path: Path, content: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(content)
    with pytest.raises(ConfigError, match=r"--data: .*rows\.jsonl"):
        make_organization(tmp_path / "org", "org", rows, None, 8.0, 1e-5, "embedded:tiny", "embedded:llm")
    assert not (tmp_path / "org").exists()


def test_secrets_are_private_and_stay_at_home(tmp_path: Path, three: list[Path]) -> None:
    invitation = serve(tmp_path, three)
    join_federation(three[0], invitation)
    for path in [three[0] / n for n in ("identity.key", "supernode", "organization.toml")] + [
        tmp_path / "server" / n for n in ("provider.key", "server.toml")
    ]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    shown = (three[0] / "enrolment.json").read_text() + (tmp_path / "server/invitation.json").read_text()
    assert "PRIVATE" not in shown
    assert str(tmp_path) not in shown


def test_an_enrolment_changed_on_the_way_is_refused(three: list[Path]) -> None:
    path = three[0] / "enrolment.json"
    good = json.loads(path.read_text())
    stranger = Identity.generate()
    for change in (
        {"name": "org-9"},
        {"identity": stranger.public.hex()},
        {"node_key": json.loads((three[1] / "enrolment.json").read_text())["node_key"]},
        {"signature": "0" * 128},
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ConfigError, match="not signed by its own identity"):
            read_enrolment(path)
    path.write_text(json.dumps(good | {"node_key": "ssh-ed25519 AAAA"}))
    with pytest.raises(ConfigError, match="ECDSA"):
        read_enrolment(path)
    for broken in ("", "[]", "{", json.dumps(good | {"more": 1})):
        path.write_text(broken)
        with pytest.raises(ConfigError, match=r"enrolment\.json"):
            read_enrolment(path)


def test_one_word_covers_the_whole_invitation(tmp_path: Path, three: list[Path]) -> None:
    invitation = serve(tmp_path, three)
    stranger = enrol("org-1", Identity.generate().private, invitation.organizations[0].node_key)
    others = [
        invitation.model_copy(update={"organizations": (stranger, *invitation.organizations[1:])}),
        invitation.model_copy(update={"provider_key": Identity.generate().public.hex()}),
        invitation.model_copy(update={"ca": invitation.ca + " "}),
        invitation.model_copy(update={"server": "127.0.0.1:9093"}),
    ]
    words = {invitation.fingerprint, *(other.fingerprint for other in others)}
    assert len(words) == 5
    assert same_fingerprint(invitation.fingerprint, invitation.fingerprint.upper().replace(" ", ""))
    assert not same_fingerprint(invitation.fingerprint, others[0].fingerprint)
    assert not same_fingerprint("", fingerprint(b""))


def test_an_invitation_without_us_is_refused_and_new_keys_are_told(tmp_path: Path, three: list[Path]) -> None:
    first = serve(tmp_path, three)
    fourth = organization(tmp_path, "org-4")
    before = (fourth / "organization.toml").read_text()
    with pytest.raises(ConfigError, match="without this organization"):
        join_federation(fourth, first)
    assert (fourth / "organization.toml").read_text() == before
    join_federation(three[0], first)
    (tmp_path / "again").mkdir()
    renewed = organization(tmp_path / "again", "org-2")
    second = serve(tmp_path, [three[0], renewed, three[2]], "server-2")
    assert join_federation(three[0], second) == [
        "org-2 has other keys than before",
        "the key that signs adapters is another one",
    ]


def test_everything_wrong_is_told_at_once_and_nothing_written(tmp_path: Path, three: list[Path]) -> None:
    with pytest.raises(ConfigError) as found:
        make_organization(
            tmp_path / "new", "no such/name", tmp_path / "missing", None, -1.0, 2.0, "/nowhere/tiny", "/nowhere/llm"
        )
    text = str(found.value)
    for part in ("--data", "--name", "--budget", "--delta", "--tiny: model", "--llm: model"):
        assert part in text
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="not empty"):
        organization(tmp_path, "org-1")
    files = {name: tmp_path / "missing" for name in ("ca", "certificate", "key")}
    with pytest.raises(ConfigError) as found:
        make_server(tmp_path / "s", [three[0] / "nothing.json"], "no address", None, files, {"rounds": 0, "out": "x"})
    text = str(found.value)
    for part in ("nothing.json", "--address", "--ca", "--certificate", "--key", "plan.rounds", "plan.out"):
        assert part in text
    assert not (tmp_path / "s").exists()
    serve(tmp_path, three)
    with pytest.raises(ConfigError, match="at least 3"):
        serve(tmp_path, three[:2], "two")
    with pytest.raises(ConfigError, match="the same name"):
        serve(tmp_path, [*three, three[0]], "twice")


OURS = """# Rows of the spring; talk to Ada before you change the budget
name='org-1'   # not our full name
privacy = {budget = 8.0, declared = 1, dataset = "spring"}   # one line is enough

[secagg]
  n_min = 3   # never fewer
# asked for on the phone
  provider_key = ""

\t# who takes part:
  roster = []
[data]
train = "../rows.jsonl"
"""


def test_comments_and_layout_survive_a_join(tmp_path: Path, three: list[Path]) -> None:
    path = three[0] / "organization.toml"
    path.write_bytes(OURS.replace("\n", "\r\n").encode())
    first = serve(tmp_path, three)
    join_federation(three[0], first)
    joined = path.read_bytes()
    kept = [line for line in OURS.splitlines() if "roster" not in line and "provider_key" not in line]
    assert all(f"{line}\r\n".encode() in joined for line in kept)
    config = load_organization(three[0]).config
    assert config.secagg.roster == first.roster
    assert config.server is not None
    assert (config.server.address, config.privacy.dataset) == (first.server, "spring")
    left = joined.decode().replace("\r\n", "\n").partition("\n# Where this")[0]
    left = left.replace(f'provider_key = "{first.provider_key}"', 'provider_key = ""')
    assert re.sub(r"roster = \[[^]]*\]", "roster = []", left).rstrip() == OURS.rstrip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    join_federation(three[0], first)
    assert path.read_bytes() == joined


def test_a_generated_file_is_joined_in_place(tmp_path: Path, three: list[Path]) -> None:
    path = three[0] / "organization.toml"
    before = path.read_text().splitlines()
    join_federation(three[0], serve(tmp_path, three))
    after = path.read_text().splitlines()
    lost = [line for line in before if line not in after]
    assert lost == ["roster = []", 'provider_key = ""']


def test_a_configuration_that_is_wrong_is_not_touched(tmp_path: Path, three: list[Path]) -> None:
    invitation = serve(tmp_path, three)
    path = three[0] / "organization.toml"
    for wrong in ("secagg = 3\n", "[secagg]\nroster = 3\n", path.read_text().replace("n_min = 3", "n_min = 4")):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=r"organization\.toml: "):
            join_federation(three[0], invitation)
        assert path.read_text() == wrong
        assert not (three[0] / "invitation.json").exists()


@pytest.mark.parametrize(("tiny", "end"), [("embedded:tiny", False), ("someone/model", True)])
def test_only_the_embedded_models_are_set_up_without_a_trained_end(tiny: str, end: bool, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "[_]12?34=", "answer": "46"}')
    make_organization(tmp_path / "o", "o", tmp_path / "rows.jsonl", None, 8.0, 1e-5, tiny, "embedded:llm")
    assert tomllib.loads((tmp_path / "o" / "organization.toml").read_text())["data"]["end"] is end


@pytest.mark.parametrize(("declare", "found"), [(None, 64), (95, 95), (1, 1), (96, 0), (0, 0)])
def test_rows_are_counted_once_and_declared_rounded_down(declare: int | None, found: int, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "[_]12?34=", "answer": "46"}\n' * 95)
    make = partial(make_organization, tmp_path / "o", "o", rows, None, 8.0, 1e-5, "embedded:tiny", "embedded:llm")
    if found:
        make(declare=declare)
        assert tomllib.loads((tmp_path / "o" / "organization.toml").read_text())["privacy"]["declared"] == found
        return
    with pytest.raises(ConfigError, match=f"--declare: {declare}: at least 1 and at most the 95 rows of "):
        make(declare=declare)
    assert not (tmp_path / "o").exists()


def test_a_file_that_cannot_be_read_sets_nothing_up(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    with pytest.raises(ConfigError, match=r"--data: data .*rows.jsonl: no rows") as told:
        make_organization(tmp_path / "o", "o", rows, None, -1.0, 1e-5, "embedded:tiny", "embedded:llm")
    assert len(told.value.problems) == 2
    assert not (tmp_path / "o").exists()


def test_a_server_whose_files_are_not_there_is_not_set_up(tmp_path: Path, three: list[Path]) -> None:
    """It was written, and the run then started again and again without a cause in its log."""
    missing = {name: f"/nowhere/{name}" for name in ("transformer", "prompts", "tiny", "llm")}
    with pytest.raises(ConfigError) as found:
        serve(tmp_path, three, **missing)
    assert list(found.value.problems) == [
        "plan.prompts: /nowhere/prompts: no such file",
        "plan.transformer: /nowhere/transformer: no such file",
        "plan: model '/nowhere/tiny': there is no such folder",
        "plan: model '/nowhere/llm': there is no such folder",
    ]
    assert not (tmp_path / "server").exists()


def test_server_init_names_what_organizations_refuse_by_default(tmp_path: Path, three: list[Path]) -> None:
    serve(tmp_path, three)  # for its certificates
    plan = tmp_path / "plan.toml"
    plan.write_text('[federation]\nweight_rule = "examples"\n[privacy]\nclip = 500.0\n')
    enrolments = [str(part) for folder in three for part in ("--enrolment", folder / "enrolment.json")]
    files = ["--ca", "ca/ca.crt", "--certificate", "tls/server.crt", "--key", "tls/server.key"]
    paths = [str(tmp_path / part) if "/" in part else part for part in files]
    for name, given, note in (("default", [], False), ("other", ["--config", str(plan)], True)):
        result = gradtf("server", "init", tmp_path / name, *enrolments, "--address", "127.0.0.1:9092", *paths, *given)
        assert result.exit_code == 0, result.output
        assert ("organizations refuse this plan until their [policy] permits it: " in result.output) == note
    assert "clip 500 is outside 0.001 to 100; weight rule examples is not among uniform" in result.output


def test_org_init_writes_every_bound_of_the_policy_below_its_explanation(three: list[Path]) -> None:
    lines = (three[0] / "organization.toml").read_text().splitlines()
    start = lines.index("[policy]")
    about = descriptions(PolicySection)
    for key in PolicySection.model_fields:
        (place,) = [number for number, line in enumerate(lines) if number > start and line.startswith(f"{key} = ")]
        assert lines[place - 1] == f"# {about[key]}"
