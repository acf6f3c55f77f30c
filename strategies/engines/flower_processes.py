"""Flower's command line from here: how a SuperLink is started, and what ``flwr`` answers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradtf_fl.deployment import FlowerFailed, FlowerSilent


def superlink_command(port: int, *options: str) -> list[str]:
    """``flower-superlink`` on loopback."""
    fixed = ["--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
    return ["flower-superlink", *fixed, *options]


def write_connection(home: Path, name: str, settings: Mapping[str, Any]) -> None:
    """``$FLWR_HOME/config.toml`` with one SuperLink connection."""
    import tomlkit

    home.mkdir(parents=True, exist_ok=True)
    text = tomlkit.dumps({"superlink": {"default": name, name: dict(settings)}})
    (home / "config.toml").write_text(text, encoding="utf-8")


def flwr(arguments: Sequence[str], env: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """``flwr ARGUMENTS --format json``: its JSON answer; FlowerSilent after ``seconds``, else FlowerFailed."""
    try:
        done = subprocess.run(
            ["flwr", *arguments, "--format", "json"],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise FlowerSilent(f"flwr {arguments[0]} gave no answer in {seconds:g} s") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        words = (done.stderr or done.stdout).strip()[-300:]
        raise FlowerFailed(f"flwr {arguments[0]} ended with {done.returncode}: {words}") from None
    if done.returncode != 0 or answer.get("success") is False:
        raise FlowerFailed(f"flwr {arguments[0]}: {answer.get('error-message', done.stderr.strip()[-300:])}")
    return answer
