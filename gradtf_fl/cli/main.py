"""``gradtf``: finds the verb, imports only that verb, and maps every error to its exit code.

Exit codes: 0 done; 1 unexpected; 2 usage or configuration; 3 privacy budget exhausted; 4 round aborted;
5 audit or verification failed; 130 interrupted. Problems go to stderr, one line each.
"""

from __future__ import annotations

import errno
import sqlite3
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from gradtf_fl.errors import ConfigError, GradtfError, VerificationFailed
from gradtf_fl.shown import shown
from gradtf_fl.version import __version__

INTERRUPTED = 130
LIBRARIES = ("opacus", "peft", "transformers", "torch")


@dataclass(frozen=True)
class Verb:
    """Where a verb lives (``module:attribute``) and its line in ``gradtf --help``."""

    where: str
    summary: str


VERBS = {
    "init": Verb("gradtf_fl.cli.init:init", "Write a project's federation.toml."),
    "check": Verb("gradtf_fl.cli.check:check", "Say everything that is wrong with a project."),
    "prepare": Verb("gradtf_fl.cli.prepare:prepare", "Provider: all of its work for a project."),
    "simulate": Verb("gradtf_fl.cli.simulate:simulate", "Run a whole federation on this machine."),
    "curate": Verb("gradtf_fl.cli.curate:curate", "Provider: make tuples from public data."),
    "train": Verb("gradtf_fl.cli.train:train", "Provider: train a Grad-Transformer on tuples."),
    "generate": Verb("gradtf_fl.cli.generate:generate", "Turn one TinyLM adapter into an LLM adapter."),
    "evaluate": Verb("gradtf_fl.cli.evaluate:evaluate", "Score a model, with or without an adapter."),
    "readiness": Verb("gradtf_fl.cli.readiness:readiness", "Compare your rows with public ones, locally."),
    "org": Verb("gradtf_fl.cli.org.org:org", "Organization: keys, checks, node, adapters."),
    "member": Verb("gradtf_fl.cli.member:member", "Organization: averages of any Flower app."),
    "server": Verb("gradtf_fl.cli.server.server:server", "Provider: run and watch a federation."),
    "dashboard": Verb("gradtf_fl.cli.dashboard:dashboard", "Show runs, budgets, adapters in a browser."),
    "audit": Verb("gradtf_fl.cli.audit.audit:audit", "Privacy ledgers: report, verify, state, plan."),
    "certs": Verb("gradtf_fl.cli.certs:certs", "Make and check the server's TLS files."),
    "bench": Verb("gradtf_fl.cli.bench:bench", "Measure against peers and machine limits."),
    "experiment": Verb("gradtf_fl.cli.experiment:experiment", "Tables and figures of the paper."),
    "doctor": Verb("gradtf_fl.cli.doctor:doctor", "Check this machine and say what to mend."),
}


@dataclass
class Session:
    """State of one invocation."""

    debug: bool = False


class Gradtf(click.Group):
    """The root command. `main` is the one place where an exception becomes an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module, _, attribute = VERBS[name].where.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        _accept_debug(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = "gradtf", **extra: Any
    ) -> Any:
        """Run and exit. Never returns normally."""
        session = Session()
        _quiet_libraries()
        _print_any_name()
        standalone = extra.pop("standalone_mode", True)
        try:
            code = super().main(args, prog_name, standalone_mode=False, obj=session, **extra)
        except BaseException as error:
            if not standalone:
                raise
            code = report_error(error, session.debug)
        sys.exit(code if isinstance(code, int) else 0)


def report_error(error: BaseException, debug: bool) -> int:
    """Print ``error`` for a person on stderr; returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if debug and not isinstance(error, click.exceptions.Exit):
        traceback.print_exception(error)
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        _say(str(error) or "interrupted")
        return INTERRUPTED
    if isinstance(error, GradtfError):
        lines = error.problems if isinstance(error, ConfigError | VerificationFailed) else str(error).splitlines()
        for line in lines:
            _say(line)
        return error.exit_code
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return 1
    if (problem := _place_problem(error)) is not None:
        _say(problem)
        return ConfigError.exit_code
    cause = " ".join(str(error).split()) or "no message"
    hint = "" if debug else "; run again with --debug for the traceback"
    _say(f"unexpected {type(error).__name__}: {cause} (at {_innermost(error)}){_remedy(error)}{hint}")
    return 1


def _print_any_name() -> None:
    """Names of files that are not UTF-8 are spelled out on stdout, as on stderr; they end no verb."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _quiet_libraries() -> None:
    """Keep libraries' notes to programmers off a user's terminal; python -W default brings them back."""
    if sys.warnoptions:
        return
    for module in LIBRARIES:
        warnings.filterwarnings("ignore", module=rf"{module}\b.*")
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # expected: the base is frozen


def _say(line: str) -> None:
    click.echo(f"gradtf: {shown(line)}", err=True)


def _place_problem(error: BaseException) -> str | None:
    """What is wrong with the place that was named, where that is all: nothing can be written there, or no name is."""
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"{error.filename or 'a file'}: {error.strerror}; name a place that can be written"
    if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
        return f"a database there: {error}; name a place that can be written"
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return f"{error.object}: its name is not UTF-8; rename it"
    return None


def _remedy(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "; use fewer organizations or rows, or a machine with more memory"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "; free disk space and run again"
    if isinstance(error, PermissionError):
        return "; check the owner and mode of that file"
    if isinstance(error, ImportError):
        return "; reinstall gradtf-fl, `gradtf doctor` shows what is missing"
    return ""


def _innermost(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "start"


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and isinstance(ctx.obj, Session):
        ctx.obj.debug = True


def _accept_debug(command: click.Command) -> None:
    """Give ``command`` and its subcommands ``--debug``, so that it may stand anywhere on the line."""
    if any("--debug" in parameter.opts for parameter in command.params):
        return
    command.params.append(_debug_option())
    if isinstance(command, click.Group):
        for child in command.commands.values():
            _accept_debug(child)


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks of errors."
    )


cli = Gradtf(
    name="gradtf",
    params=[_debug_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
    help="Federated LLM fine-tuning without sharing data.\n\nExample: gradtf simulate --organizations 5 --epsilon 8",
    epilog="gradtf VERB --help shows a verb's options and an example. Exit codes: 0 done, 1 unexpected, "
    "2 usage or configuration, 3 privacy budget exhausted, 4 round aborted, 5 verification failed.",
)
click.version_option(__version__, prog_name="gradtf")(cli)


def main() -> None:
    """Entry point of the ``gradtf`` script."""
    cli.main()


if __name__ == "__main__":
    main()
