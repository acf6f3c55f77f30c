"""Files under deploy/ agree with the code: commands parse, ports and paths are the program's, nothing is privileged."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml  # type: ignore[import-untyped]

from gradtf_fl.cli.main import cli
from gradtf_fl.deployment import HealthServer
from gradtf_fl.errors import BudgetExhausted, ConfigError, RoundAborted, VerificationFailed
from gradtf_fl.version import __version__

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
COMPOSE = {"server": "server", "organization": "node"}
"""Target of the Dockerfile, and the service of its compose file."""
UNITS = {"server": "gradtf-server", "organization": "gradtf-org"}
PORT = "9092"
UNIT_LIMITS = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "CapabilityBoundingSet": "",
    "RestrictSUIDSGID": "yes",
    "RestrictNamespaces": "yes",
    "UMask": "0077",
    "KillMode": "mixed",
    "Restart": "always",
}


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, its continued lines joined."""

    name: str
    text: str


def instructions() -> list[Instruction]:
    lines = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text()).splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in lines if line.strip() and not line.startswith("#")]


def stage(name: str) -> list[Instruction]:
    """The instructions of one stage, those of the stages that it is built upon included."""
    found: dict[str, list[Instruction]] = {}
    current = ""
    for one in instructions():
        if one.name == "FROM":
            base, _, current = one.text.partition(" AS ")
            found[current] = list(found.get(base, []))
        elif current:
            found[current].append(one)
    return found[name]


def last(target: str, name: str) -> str:
    return [one.text for one in stage(target) if one.name == name][-1]


def compose(target: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DEPLOY / f"compose.{target}.yaml").read_text())
    return document


def service(target: str) -> dict[str, Any]:
    found: dict[str, Any] = compose(target)["services"][COMPOSE[target]]
    return found


def unit(target: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / f"{UNITS[target]}.service")
    return parser["Service"]


def parsed(words: Sequence[str]) -> click.Context:
    """``gradtf WORDS`` read by the program's own command line, and not run."""
    context = click.Context(cli, info_name="gradtf")
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group):
        found = command.get_command(context, rest[0])
        assert found is not None, rest[0]
        command, context = found, click.Context(found, info_name=rest.pop(0), parent=context)
    return command.make_context(command.name, rest, parent=context.parent)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every ``gradtf ...`` in the files, and in their pages' console blocks."""
    for target in COMPOSE:
        yield f"Dockerfile {target}", json.loads(last(target, "CMD"))
        yield f"compose {target}", service(target)["command"]
        yield f"unit {target}", shlex.split(unit(target)["ExecStart"])[1:]
    for page in (DEPLOY / "README.md", REPOSITORY / "docs" / "boxes.md"):
        for line in re.sub(r"\\\n\s*", " ", page.read_text()).splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if line.startswith("$ ") else []
            if "gradtf" in words[:1]:
                yield f"{page.name}: {line}", words[1:]
            elif words[:2] == ["docker", "compose"] and "run" in words:
                rest = words[words.index("run") :]
                name = next(word for word in rest if word in COMPOSE.values())
                yield f"{page.name}: {line}", rest[rest.index(name) + 1 :]


@pytest.mark.parametrize(
    ("where", "words"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_is_one_of_the_programs(where: str, words: list[str]) -> None:
    parsed(words)


def test_a_wrong_command_is_found() -> None:
    with pytest.raises(click.UsageError):
        parsed(["server", "run", "server", "--health-prot", "9094"])


@pytest.mark.parametrize("target", COMPOSE)
def test_image_box_and_unit_start_the_same(target: str) -> None:
    started = json.loads(last(target, "CMD"))
    assert service(target)["command"] == started
    start = shlex.split(unit(target)["ExecStart"])
    assert start == ["/opt/gradtf/bin/gradtf", *started]
    assert json.loads(last(target, "ENTRYPOINT")) == ["gradtf"]
    home = unit(target)["WorkingDirectory"]
    assert {home, unit(target)["ReadWritePaths"], last(target, "WORKDIR")} == {"/srv/gradtf"}
    places = {volume["target"] for volume in service(target)["volumes"]}
    assert f"{home}/{parsed(started).params['folder']}" in places


def health_command(target: str) -> list[str]:
    (words,) = re.findall(r"CMD (\[.*\])", last(target, "HEALTHCHECK"))
    return list(json.loads(words))


@pytest.mark.parametrize("target", COMPOSE)
@pytest.mark.parametrize(("status", "healthy"), [("ok", True), ("degraded", True), ("failed", False)])
def test_the_health_check_asks_the_endpoint(target: str, status: str, healthy: bool) -> None:
    """The image's own check, run against the real endpoint on another port."""
    program, *arguments = health_command(target)
    assert program == "python"
    port = str(parsed(json.loads(last(target, "CMD"))).params["health_port"])
    with HealthServer(0, lambda: {"status": status}) as server:
        assert f"http://127.0.0.1:{port}/health" == server.url.replace(str(server.port), port)
        moved = [argument.replace(f"127.0.0.1:{port}/", f"127.0.0.1:{server.port}/") for argument in arguments]
        assert moved != arguments
        done = subprocess.run([sys.executable, *moved], capture_output=True, timeout=60)
    assert (done.returncode == 0) is healthy


def test_two_boxes_on_one_machine_have_two_health_ports() -> None:
    ports = [parsed(json.loads(last(target, "CMD"))).params["health_port"] for target in COMPOSE]
    assert len(set(ports)) == 2


def test_versions_are_the_codes() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert set(re.findall(r"gradtf-fl-\w+:([\d.]+)", text)) == {__version__}
    assert f'version="{__version__}"' in last("runtime", "LABEL")
    for target in COMPOSE:
        assert service(target)["image"] == f"gradtf-fl-{target}:{__version__}"
        assert service(target)["build"] == {"context": "..", "dockerfile": "deploy/Dockerfile", "target": target}
    constraints = (REPOSITORY / "constraints.txt").read_text()
    (torch,) = re.findall(r"torch==\S+", text)
    assert torch in constraints.splitlines()
    (python,) = set(re.findall(r"python:?(3\.\d+)", text))
    assert f"(Python {python}," in constraints


def test_only_what_is_needed_is_copied() -> None:
    copied = [
        word
        for one in instructions()
        if one.name == "COPY" and not one.text.startswith("--from=build")
        for word in one.text.split()[:-1]
    ]
    assert [name for name in copied if not (REPOSITORY / name).exists()] == []
    first, *rest = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert first == "*"
    assert sorted(line[1:] for line in rest if line.startswith("!")) == sorted(copied)
    assert {one.name for one in instructions()} & {"ADD", "VOLUME"} == set()


@pytest.mark.parametrize("target", COMPOSE)
def test_a_box_has_no_more_rights_than_it_needs(target: str) -> None:
    box = service(target)
    user = last(target, "USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    assert box["user"] == user
    assert (box["read_only"], box["cap_drop"], box["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])
    assert [place.partition(":")[0] for place in box["tmpfs"]] == ["/tmp"]
    assert {name: box.get(name) for name in ("privileged", "network_mode", "pid", "ipc", "devices", "cap_add")} == (
        dict.fromkeys(("privileged", "network_mode", "pid", "ipc", "devices", "cap_add"))
    )
    written = [volume["target"] for volume in box["volumes"] if not volume.get("read_only")]
    assert written == [f"/srv/gradtf/{parsed(box['command']).params['folder']}"]
    assert all(volume["source"] == volume["target"] for volume in box["volumes"])
    ports = {"server": [f"{PORT}:{PORT}"], "organization": None}
    assert box.get("ports") == ports[target]


def test_one_port_is_open_and_it_is_the_guides() -> None:
    exposed = [one.text for one in instructions() if one.name == "EXPOSE"]
    assert exposed == [PORT]
    assert (
        f"server init server --enrolment org-*/enrolment.json --address fl.example:{PORT}"
        in (REPOSITORY / "docs" / "operator-guide.md").read_text()
    )


def test_what_a_person_must_decide_is_not_started_again() -> None:
    """Another attempt at an aborted round may cost every organization epsilon."""
    codes = sorted(
        {0, *(error.exit_code for error in (ConfigError, BudgetExhausted, RoundAborted, VerificationFailed))}
    )
    assert unit("server")["RestartPreventExitStatus"].split() == [str(code) for code in codes]
    assert service("server")["restart"] == "no"


@pytest.mark.parametrize("target", COMPOSE)
def test_stopping_leaves_time_for_the_stage_in_hand(target: str) -> None:
    seconds = float(unit(target)["TimeoutStopSec"])
    assert service(target)["stop_grace_period"] == f"{seconds:g}s"
    patience = parsed(service(target)["command"]).params.get("stage_seconds", 0.0)
    assert seconds > patience


@pytest.mark.parametrize("target", UNITS)
def test_a_unit_is_hardened_and_is_the_guides(target: str) -> None:
    settings = unit(target)
    assert {name: settings.get(name) for name in UNIT_LIMITS} == UNIT_LIMITS
    text = (DEPLOY / "systemd" / f"{UNITS[target]}.service").read_text()
    guide = (REPOSITORY / "docs" / "operator-guide.md").read_text()
    for block in re.findall(rf"```ini\n(# /etc/systemd/system/{UNITS[target]}.*?)```", guide, re.DOTALL):
        assert [line for line in block.splitlines() if line not in text.splitlines()] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("target", UNITS)
def test_systemd_reads_the_unit(target: str, tmp_path: Path) -> None:
    source = DEPLOY / "systemd" / f"{UNITS[target]}.service"
    placed = tmp_path / source.name
    placed.write_text(
        source.read_text().replace("/opt/gradtf/bin/gradtf", sys.executable)
    )  # gradtf is not installed there
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(placed)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("hadolint", path=str(Path(sys.executable).parent)) is None, reason="no hadolint here")
def test_hadolint_finds_nothing() -> None:
    hadolint = str(Path(sys.executable).parent / "hadolint")
    done = subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("target", COMPOSE)
def test_compose_files_follow_the_specification(target: str) -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="the package compose-spec is not installed")
    text = (DEPLOY / f"compose.{target}.yaml").read_text()
    assert compose_spec.PyCompose.from_yaml(text).service_names() == [COMPOSE[target]]
    with pytest.raises(ValueError, match="read_onyl"):
        compose_spec.PyCompose.from_yaml(text.replace("read_only: true\n    cap", "read_onyl: true\n    cap"))
