"""The root command: help without torch, and one exit code for each kind of error."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from gradtf_fl.cli.main import VERBS, cli, report_error
from gradtf_fl.errors import (
    BudgetExhausted,
    ConfigError,
    CorruptFile,
    GradtfError,
    RoundAborted,
    VerificationFailed,
)


def gradtf(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_help_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys, gradtf_fl.cli.main as m\n"
        "try: m.cli.main(['--help'])\n"
        "except SystemExit as e: assert not e.code\n"
        "print(sorted({'torch', 'transformers', 'flwr', 'numpy', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert time.monotonic() - began < 1.0
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    result = gradtf(verb, "--help")
    assert result.exit_code == 0
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    if not isinstance(command, click.Group):
        assert "Example: gradtf " + verb in result.output
        assert "--json" in result.output
        assert "--debug" in result.output


def test_verb_help_imports_no_torch() -> None:
    code = (
        "import sys, gradtf_fl.cli.main as m\n"
        f"for verb in {list(VERBS)}:\n"
        "  try: m.cli.main([verb, '--help'])\n"
        "  except SystemExit as e: assert not e.code\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("arguments", [["nonsense"], ["simulate", "--rounds", "many"], ["simulate", "--wrong"], []])
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    assert gradtf(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GradtfError("x"), 1),
        (ConfigError("x"), 2),
        (CorruptFile("x"), 2),
        (BudgetExhausted("x"), 3),
        (RoundAborted("mask", {"mask": 2}), 4),
        (VerificationFailed("x"), 5),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (click.UsageError("x"), 2),
        (RuntimeError("boom"), 1),
        (SystemExit(7), 7),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert report_error(error, debug=False) == code


def test_config_problems_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    report_error(ConfigError(["first", "second"]), debug=False)
    assert capsys.readouterr().err == "gradtf: first\ngradtf: second\n"


def test_unexpected_errors_are_one_line_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise PermissionError(13, "denied\nreally", "/secret")
    except PermissionError as error:
        report_error(error, debug=False)
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "PermissionError" in text
    assert "owner and mode" in text
    assert "--debug" in text
    assert Path(__file__).name in text


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.toml")
    assert "Traceback" not in gradtf("simulate", "--config", missing).stderr
    for place in (["--debug", "simulate"], ["simulate", "--debug"]):
        assert "Traceback" in gradtf(*place, "--config", missing).stderr
