"""Own certificates in a real TLS handshake, external ones in the checks, and every error of both."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from gradtf_fl.deployment.certificates import Issued, check, fingerprint, init_authority, issue_server
from gradtf_fl.deployment.findings import Finding
from gradtf_fl.deployment.host_names import covers, host_problem
from gradtf_fl.errors import ConfigError
from tests.cli.conftest import gradtf
from tests.deployment.tls import handshake

NOW = datetime.now(UTC)  # of the import: for dates that are days away
HOST = "superlink.example.org"
KILLED_WHILE_RENEWING = """
import os, signal, sys
from pathlib import Path
import gradtf_fl.deployment.certificates as certificates
name, count = sys.argv[3], 0
step = getattr(certificates, name)
def killed(*arguments):
    global count
    count += 1
    if count == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
setattr(certificates, name, killed)
certificates.issue_server(Path(sys.argv[1]), ["superlink.example.org"], Path(sys.argv[2]))
"""


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    init_authority(tmp_path / "ca")
    return tmp_path / "ca"


@pytest.fixture
def issued(ca: Path, tmp_path: Path) -> Issued:
    return issue_server(ca, [HOST, "192.0.2.7"], tmp_path / "tls")


def problems(ca: Path, made: Issued, *hosts: str, later: timedelta = timedelta()) -> list[Finding]:
    """Findings about an issued pair that are not ok."""
    found = check(ca / "ca.crt", made.certificate_path, made.key_path, hosts, datetime.now(UTC) + later)
    assert all(finding.remedy for finding in found if finding.level != "ok")
    return [finding for finding in found if finding.level != "ok"]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("host", [HOST, "192.0.2.7", "localhost", "127.0.0.1", "::1"])
def test_clients_that_trust_the_authority_connect(ca: Path, issued: Issued, host: str) -> None:
    assert handshake(ca / "ca.crt", issued.certificate_path, issued.key_path, host) == ""
    assert problems(ca, issued, host) == []


def test_another_authority_is_not_trusted(ca: Path, issued: Issued, tmp_path: Path) -> None:
    init_authority(tmp_path / "other")  # of the same name
    said = handshake(tmp_path / "other" / "ca.crt", issued.certificate_path, issued.key_path, HOST)
    assert said != ""
    (finding,) = problems(tmp_path / "other", issued, HOST)
    assert (finding.level, finding.what) == ("fail", "chain")


def test_another_host_is_not_trusted(ca: Path, issued: Issued) -> None:
    for host in ("other.example.org", "192.0.2.8"):
        said = handshake(ca / "ca.crt", issued.certificate_path, issued.key_path, host)
        assert "mismatch" in said.lower()
        (finding,) = problems(ca, issued, host)
        assert (finding.level, finding.what) == ("fail", f"host {host}")


def test_an_expired_certificate_is_not_trusted(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    init_authority(ca, now=NOW - timedelta(days=9))
    made = issue_server(ca, [HOST], tmp_path / "tls", days=1, now=NOW - timedelta(days=3))
    assert "expired" in handshake(ca / "ca.crt", made.certificate_path, made.key_path, HOST)
    (finding,) = problems(ca, made, HOST)
    assert finding.level == "fail"
    assert finding.found.startswith(f"expired on {NOW - timedelta(days=2):%Y-%m-%d %H:%M} UTC, 2 days ago")


def test_a_clock_that_is_a_day_behind_is_told_from_a_bad_certificate(ca: Path, issued: Issued) -> None:
    found = problems(ca, issued, HOST, later=-timedelta(days=1))
    assert [finding.what for finding in found] == ["dates of the certificate", "dates of the CA"]
    assert "23 h" in found[0].found  # a day less the five minutes that not-before is backdated
    assert "clock is wrong, behind by 23 h" in found[0].remedy


def test_a_certificate_is_valid_some_minutes_before_it_was_issued(ca: Path, issued: Issued) -> None:
    assert problems(ca, issued, HOST, later=-timedelta(minutes=4)) == []


def test_less_than_thirty_days_is_a_warning(ca: Path, issued: Issued) -> None:
    assert problems(ca, issued, HOST, later=timedelta(days=334)) == []
    (finding,) = problems(ca, issued, HOST, later=timedelta(days=335, hours=1))
    assert (finding.level, finding.found[:7]) == ("warn", "29 days")


def test_a_certificate_ends_with_its_authority(tmp_path: Path) -> None:
    authority = init_authority(tmp_path / "ca", days=100)
    made = issue_server(tmp_path / "ca", [HOST], tmp_path / "tls", days=101)
    assert made.shortened
    assert made.not_after == authority.certificate.not_valid_after_utc
    assert not issue_server(tmp_path / "ca", [HOST], tmp_path / "tls", days=99).shortened


def test_an_expired_authority_issues_nothing(tmp_path: Path) -> None:
    init_authority(tmp_path / "ca", days=1, now=NOW - timedelta(days=2))
    with pytest.raises(ConfigError, match="expired on"):
        issue_server(tmp_path / "ca", [HOST], tmp_path / "tls")


def test_a_clock_before_the_authoritys_time_issues_nothing(ca: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set the clock"):
        issue_server(ca, [HOST], tmp_path / "tls", now=NOW - timedelta(days=1))


def test_the_authoritys_extensions(ca: Path) -> None:
    authority = x509.load_pem_x509_certificate((ca / "ca.crt").read_bytes())
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage)
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(True, 0))
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
    assert authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)


def test_private_keys_are_never_open_even_with_no_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that ever holds a key is created with its final mode."""
    created: dict[str, int] = {}
    plain = os.open

    def watched(path: str, flags: int, mode: int = 0o777, **extra: int) -> int:
        descriptor = plain(path, flags, mode, **extra)
        if flags & os.O_CREAT:
            created[str(path)] = stat.S_IMODE(os.fstat(descriptor).st_mode)
        return descriptor

    monkeypatch.setattr(os, "open", watched)
    before = os.umask(0)
    try:
        init_authority(tmp_path / "ca")
        made = issue_server(tmp_path / "ca", [HOST], tmp_path / "tls")
    finally:
        os.umask(before)
    keys = {path: bits for path, bits in created.items() if ".key" in Path(path).name}
    assert len(keys) == 2
    assert set(keys.values()) == {0o600}
    assert (mode(tmp_path / "ca"), mode(tmp_path / "ca" / "ca.key"), mode(made.key_path)) == (0o700, 0o600, 0o600)


def test_an_authority_is_never_overwritten(ca: Path) -> None:
    before = (ca / "ca.key").read_bytes(), (ca / "ca.crt").read_bytes()
    result = gradtf("certs", "init", ca)
    assert result.exit_code == 2
    assert "never overwritten" in result.stderr
    assert ((ca / "ca.key").read_bytes(), (ca / "ca.crt").read_bytes()) == before
    (ca / "ca.crt").unlink()
    with pytest.raises(ConfigError, match="cut off"):
        init_authority(ca)


def test_every_bad_host_is_told_at_once(ca: Path, tmp_path: Path) -> None:
    bad = ["", "a b", "https://a.example", "a.example:9092", "[::1]", "fe80::1%eth0", "0.0.0.0", "224.0.0.1"]
    bad += ["under_score.example", "-a.example", "a..example", "10.0.0.256", "bücher.example", "*.org", "x" * 64]
    with pytest.raises(ConfigError) as raised:
        issue_server(ca, [*bad, HOST], tmp_path / "tls", days=0)
    assert [problem.split(": ")[0] for problem in raised.value.problems] == ["--days 0", *(f"--host {b}" for b in bad)]
    assert not (tmp_path / "tls").exists()


@pytest.mark.parametrize("host", ["a", "A.example", "*.a.example", "xn--bcher-kva.example", "10.0.0.1", "fe80::1"])
def test_good_hosts(host: str) -> None:
    assert host_problem(host) == ""


def test_a_wildcard_covers_one_label() -> None:
    names = x509.SubjectAlternativeName([x509.DNSName("*.a.example")])
    wanted = {"b.a.example": True, "B.A.Example.": True, "a.example": False, "c.b.a.example": False, "::1": False}
    assert {host: covers(names, host) for host in wanted} == wanted


def test_renewing_changes_both_files_and_leaves_no_other(ca: Path, issued: Issued, tmp_path: Path) -> None:
    before = issued.certificate_path.read_bytes(), issued.key_path.read_bytes()
    again = issue_server(ca, [HOST], tmp_path / "tls")
    assert (again.certificate_path, again.key_path) == (issued.certificate_path, issued.key_path)
    after = again.certificate_path.read_bytes(), again.key_path.read_bytes()
    assert not set(before) & set(after)
    assert problems(ca, again, HOST) == []
    assert len(list((tmp_path / "tls").iterdir())) == 4  # two links, the link to the pair, the pair


@pytest.mark.parametrize(
    ("step", "count"),
    [("write_synced", 1), ("write_synced", 2), ("replace_link", 1), ("replace_link", 2), ("replace_link", 3)],
)
@pytest.mark.parametrize("renewing", [False, True])
def test_killed_on_the_way_no_key_is_beside_anothers_certificate(
    ca: Path, tmp_path: Path, step: str, count: int, renewing: bool
) -> None:
    out = tmp_path / "tls"
    if renewing:
        issue_server(ca, [HOST], out)
    command = [sys.executable, "-c", KILLED_WHILE_RENEWING, str(ca), str(out), step, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    killed = done.returncode == -signal.SIGKILL
    assert killed or (renewing and count > 1 and step == "replace_link"), done.stderr  # its links were there
    pair = out / "server.crt", out / "server.key"
    assert all(path.exists() for path in pair) or not renewing
    if all(path.exists() for path in pair):
        assert [f for f in check(ca / "ca.crt", *pair, [HOST], datetime.now(UTC)) if f.level != "ok"] == []
    assert problems(ca, issue_server(ca, [HOST], out), HOST) == []
    assert len(list(out.iterdir())) == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_renews_for_the_folders_owner(ca: Path, issued: Issued, tmp_path: Path) -> None:
    os.chown(tmp_path / "tls", 12345, 12345)
    again = issue_server(ca, [HOST], tmp_path / "tls")
    assert {path.stat().st_uid for path in (again.key_path, again.certificate_path)} == {12345}


def test_another_tools_files_are_not_overwritten(ca: Path, tmp_path: Path) -> None:
    out = tmp_path / "tls"
    out.mkdir()
    (out / "server.key").write_text("theirs")
    (out / "server.crt").symlink_to(tmp_path / "elsewhere.crt")
    result = gradtf("certs", "issue", ca, "--host", HOST, "--out", out)
    assert (result.exit_code, result.stderr.count("not overwritten")) == (2, 2)
    assert (out / "server.key").read_text() == "theirs"


def test_a_damaged_authority_is_told(ca: Path, tmp_path: Path) -> None:
    (ca / "ca.key").chmod(0o640)
    (ca / "ca.crt").write_text("nothing")
    with pytest.raises(ConfigError) as raised:
        issue_server(ca, ["a b"], tmp_path / "tls")
    text = str(raised.value)
    assert len(raised.value.problems) == 3
    assert "chmod 600" in text
    assert "no PEM certificate" in text
    init_authority(tmp_path / "other")
    (ca / "ca.key").chmod(0o600)
    (ca / "ca.crt").write_bytes((tmp_path / "other" / "ca.crt").read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        issue_server(ca, [HOST], tmp_path / "tls")


# The command line


def test_init_issue_verify(tmp_path: Path) -> None:
    ca, out = tmp_path / "ca", tmp_path / "tls"
    made = json.loads(gradtf("certs", "init", ca, "--name", "Hospitals", "--json").stdout)
    assert made["sha256"] == fingerprint((ca / "ca.crt").read_bytes())
    assert len(made["sha256"]) == 95
    result = gradtf("certs", "issue", ca, "--host", HOST, "--out", out, "--days", "5000", "--json")
    document = json.loads(result.stdout)
    assert document["hosts"] == [HOST, "localhost", "127.0.0.1", "::1"]
    assert document["shortened"]
    assert "ends with its authority" in result.stderr
    files = ["--ca", ca / "ca.crt", "--cert", out / "server.crt", "--key", out / "server.key"]
    good = gradtf("certs", "verify", *files, "--host", HOST, "--json")
    assert (good.exit_code, json.loads(good.stdout)["ok"]) == (0, True)
    bad = gradtf("certs", "verify", *files, "--host", "other.example.org", "--json")
    assert (bad.exit_code, json.loads(bad.stdout)["ok"]) == (5, False)
    shown = gradtf("certs", "verify", *files, "--host", "other.example.org")
    assert shown.exit_code == 5
    assert "1 failed" in shown.stdout


def test_people_are_told_what_to_do_with_the_files(tmp_path: Path) -> None:
    said = gradtf("certs", "init", tmp_path / "ca").stdout
    assert f"SHA-256 {fingerprint((tmp_path / 'ca' / 'ca.crt').read_bytes())}" in said
    said = gradtf("certs", "issue", tmp_path / "ca", "--host", HOST, "--out", tmp_path / "tls").stdout
    assert f"--certificate {tmp_path / 'tls' / 'server.crt'}" in said


def test_missing_files_are_usage_errors_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    files = ["--ca", tmp_path / "no.pem", "--cert", tmp_path / "empty.pem", "--key", tmp_path / "no.key"]
    result = gradtf("certs", "verify", *files, "--host", "a:1")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 4)


def test_a_fingerprint_needs_a_certificate() -> None:
    with pytest.raises(ConfigError):
        fingerprint("nothing")


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "two\nlines"])
def test_bad_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        init_authority(tmp_path / "ca", name)


def test_certs_need_neither_torch_nor_flower(tmp_path: Path) -> None:
    code = (
        "import sys, gradtf_fl.cli.main as m\n"
        f"for line in (['init', {str(tmp_path / 'ca')!r}],"
        f" ['issue', {str(tmp_path / 'ca')!r}, '--host', 'a', '--out', {str(tmp_path / 'tls')!r}]):\n"
        "  try: m.cli.main(['certs', *line])\n"
        "  except SystemExit as e: assert not e.code\n"
        "import gradtf_fl.deployment.node_key\n"
        "print(sorted({'torch', 'flwr', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "[]"
