"""``gradtf org adapter``: which LLM adapter an organization uses, whether it is the signed one, and its exports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradtf_fl.cli.options import console, emit_json, json_option
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import CURRENT_ADAPTER, ORGANIZATION_CONFIG
from gradtf_fl.shown import shown

if TYPE_CHECKING:
    from clients import KeptAdapter

DTYPES = ("float32", "bfloat16", "float16")
FORMS = {"merged": Path("merged"), "gguf": Path("adapter.gguf")}
"""What an adapter is exported as, and where to."""


@click.command(
    short_help="Show, verify, choose, export LLM adapters.",
    epilog="Example: gradtf org adapter /srv/gradtf/org-1 --rollback 2, then "
    "gradtf org adapter /srv/gradtf/org-1 --export merged --dtype bfloat16",
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--latest", is_flag=True, help="The newest one, also while another is pinned.  [default: the one in use]")
@click.option("--round", "round_number", type=click.IntRange(min=1), metavar="N", help="The one of round N.")
@click.option("--list", "listed", is_flag=True, help="All that are kept.")
@click.option("--rollback", type=click.IntRange(min=1), metavar="N", help="Use round N's, and stay there: a pin.")
@click.option("--unpin", is_flag=True, help="Use the newest again, and each that comes.")
@click.option("--verify", is_flag=True, help="Check signature and files; exits with 5 when something was changed.")
@click.option(
    "--export",
    "form",
    type=click.Choice(list(FORMS)),
    help="Verify, and write it in another form: the LLM with the adapter merged in, or a LoRA file for llama.cpp.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="PATH", help="Of --export.  [default: ./merged, ./adapter.gguf]"
)
@click.option("--dtype", type=click.Choice(DTYPES), help="Of --export merged.  [default: the base model's]")
@click.option(
    "--provider-key", metavar="HEX", help="Key that signed, if another than organization.toml pins (an earlier one)."
)
@json_option
def adapter(
    folder: Path,
    latest: bool,
    round_number: int | None,
    listed: bool,
    rollback: int | None,
    unpin: bool,
    verify: bool,
    form: str | None,
    out: Path | None,
    dtype: str | None,
    provider_key: str | None,
    as_json: bool,
) -> None:
    """Show, verify, choose and export the LLM adapters in an organization's folder DIR.

    DIR/current_adapter is a link to the one in use: programs that load it follow every delivery, until --rollback
    pins one.
    """
    chosen = {"--latest": latest, "--round": round_number, "--list": listed, "--rollback": rollback, "--unpin": unpin}
    work = {"--verify": verify, "--export": form, "--out": out, "--dtype": dtype}
    _check(folder, chosen, work, provider_key)
    if listed:
        _print_list(folder, provider_key, as_json)
        return
    from clients import current, newest, of_round, pin
    from clients import unpin as follow_again

    if rollback is not None:
        found = pin(folder, rollback)
    elif unpin:
        found = follow_again(folder)
    elif round_number is not None:
        found = of_round(folder, round_number)
    else:
        found = newest(folder) if latest else current(folder)
    verdict = _verified(folder, found, provider_key, as_json) if verify or form is not None else {}
    document = _document(folder, found) | verdict
    if form is not None:
        place = out if out is not None else FORMS[form]
        document["export"] = _export(found, document["base_model"], form, place, dtype)
    if as_json:
        emit_json(document)
    else:
        click.echo("\n".join(_lines(folder, document)))


def _check(folder: Path, chosen: Mapping[str, Any], work: Mapping[str, Any], provider_key: str | None) -> None:
    """Every problem of the command line at once."""
    problems = []
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder")
    given = [name for name, value in chosen.items() if value]
    if len(given) > 1:
        problems.append(f"{', '.join(given)}: only one of them at a time")
    needless = [name for name, value in work.items() if value]
    if needless and set(given) & {"--list", "--rollback", "--unpin"}:
        problems.append(f"{', '.join(needless)}: not together with {given[0]}")
    if work["--dtype"] and work["--export"] != "merged":
        problems.append("--dtype: only with --export merged")
    if work["--out"] and not work["--export"]:
        problems.append("--out: only with --export")
    if provider_key is not None:
        if len(provider_key) != 64 or set(provider_key) - set("0123456789abcdef"):
            problems.append("--provider-key: expected 64 lower-case hexadecimal digits")
        if not (work["--verify"] or work["--export"] or chosen["--list"]):
            problems.append("--provider-key: only with --verify, --export or --list")
    if work["--export"]:
        from clients import refuse_existing, refuse_occupied

        try:
            refuse = refuse_existing if work["--export"] == "gguf" else refuse_occupied
            refuse(work["--out"] or FORMS[work["--export"]])
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def _document(folder: Path, found: KeptAdapter) -> dict[str, Any]:
    from clients import is_pinned, newest

    path = found.path.absolute()
    pinned = is_pinned(folder)
    statement = found.statement
    in_use = (folder / CURRENT_ADAPTER).resolve() == path.resolve()
    base = _base_model(found)
    return {
        "path": str(path),
        "round": found.round,
        "run_id": statement.run_id if statement else None,
        "received": statement.received if statement else None,
        "sha256": found.sha256(),
        "base_model": base,
        "in_use": in_use,
        "pinned": in_use and pinned,
        "newest_round": newest(folder).round,
        "load": _snippet(base, str(path)),
    }


def _base_model(found: KeptAdapter) -> str:
    path = found.path / "adapter_config.json"
    try:
        return str(json.loads(path.read_text())["base_model_name_or_path"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: damaged; have the adapter delivered again, or take another round") from error


def _snippet(base: str, path: str) -> str:
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({base!r})\n"
        f"model = PeftModel.from_pretrained(base, {path!r})"
    )


def _key(folder: Path, provider_key: str | None) -> str:
    """The key that counts: the pinned one, which no delivery can change."""
    if provider_key is not None:
        return provider_key
    from gradtf_fl.config import OrganizationConfig, load_toml

    return load_toml(OrganizationConfig, folder / ORGANIZATION_CONFIG).secagg.provider_key


def _verified(folder: Path, found: KeptAdapter, provider_key: str | None, as_json: bool) -> dict[str, Any]:
    key = _key(folder, provider_key)
    if as_json and (problems := found.problems(key)):
        emit_json({"path": str(found.path), "round": found.round, "verified": False, "problems": problems})
    found.verify(key)
    return {"verified": True, "provider_key": key}


def _export(found: KeptAdapter, base_model: str, form: str, out: Path, dtype: str | None) -> dict[str, Any]:
    if form == "gguf":
        from clients import export_gguf

        written = export_gguf(found.path, base_model, out, f"LLM adapter of round {found.round}")
        return {"form": form, **asdict(written), "out": str(written.out.absolute())}
    from clients import export_merged

    made = export_merged(found.path, base_model, out, dtype, lambda step: click.echo(f"export: {step}", err=True))
    return {
        "form": form,
        "out": str(made.out.absolute()),
        "dtype": made.dtype,
        "max_logit_error": made.max_error,
        "adapter_effect": made.adapter_effect,
        "largest_logit": made.largest_logit,
    }


def _lines(folder: Path, document: Mapping[str, Any]) -> list[str]:
    state = ["pinned" if document["pinned"] else "in use"] if document["in_use"] else ["not in use"]
    if document["round"] != document["newest_round"]:
        state.append(f"the newest is round {document['newest_round']}")
    if document["received"]:
        state.append(f"received {document['received']}")
    lines = [document["path"], f"round {document['round']}, {', '.join(state)}", f"SHA-256 {document['sha256']}"]
    if document.get("verified"):
        lines.append(f"verified: as signed by {document['provider_key']}")
    if (made := document.get("export")) is not None:
        return [*lines, *(_gguf_lines(made) if made["form"] == "gguf" else _merged_lines(made))]
    if document["in_use"]:
        lines.append(f"{folder / CURRENT_ADAPTER} leads there")
    return [*lines, "", document["load"]]


def _merged_lines(made: Mapping[str, Any]) -> list[str]:
    return [
        f"{made['out']}: merged, in {made['dtype']}; its logits are within {made['max_logit_error']:.1e} of the "
        f"PEFT model's (the adapter moves them by up to {made['adapter_effect']:.1e})",
        "",
        "from transformers import AutoModelForCausalLM",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({made['out']!r})",
    ]


def _gguf_lines(made: Mapping[str, Any]) -> list[str]:
    return [
        f"{made['out']}: LoRA of rank {made['rank']} on {made['layers']} layers, for a base of architecture "
        f"{made['architecture']} in GGUF",
        "",
        f"llama-cli -m BASE.gguf --lora {made['out']}",
    ]


def _print_list(folder: Path, provider_key: str | None, as_json: bool) -> None:
    from clients import is_pinned, kept
    from gradtf_fl.adapters import WEIGHTS

    key = _key(folder, provider_key)
    used, pinned = (folder / CURRENT_ADAPTER).resolve(), is_pinned(folder)
    rows = []
    for found in kept(folder):
        problems = found.problems(key)
        rows.append(
            {
                "round": found.round,
                "path": str(found.path.absolute()),
                "run_id": found.statement.run_id if found.statement else None,
                "received": found.statement.received if found.statement else None,
                "sha256": None if problems and not (found.path / WEIGHTS).is_file() else found.sha256(),
                "in_use": found.path.resolve() == used,
                "verified": not problems,
                "problems": problems,
            }
        )
    if as_json:
        emit_json({"adapters": rows, "pinned": pinned})
        return
    _print_table(rows, pinned)


def _print_table(rows: list[dict[str, Any]], pinned: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False)
    for heading in ("round", "run", "received", "SHA-256", "as signed", ""):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(
            str(row["round"]),
            Text(shown(row["run_id"] or "?")),
            Text(row["received"] or "?"),
            (row["sha256"] or "?")[:16],
            Text("yes", style="green") if row["verified"] else Text("NO", style="red"),
            ("pinned" if pinned else "in use") if row["in_use"] else "",
        )
    terminal = console()
    terminal.print(table)
    for problem in (problem for row in rows for problem in row["problems"]):
        terminal.print(Text(shown(problem)))
