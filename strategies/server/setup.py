"""Setting up a server's folder (``server init``)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradtf_fl.adapters import model_folder
from gradtf_fl.config import NO_TRANSFORMER, FederationPlan, tables_to_toml, validate
from gradtf_fl.deployment import (
    OURS,
    Enrolment,
    Invitation,
    ListenSection,
    canonical,
    check,
    filled,
    read_enrolment,
)
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import ENROLMENTS, INVITATION, PROVIDER_KEY, SERVER_CONFIG
from gradtf_fl.files import PRIVATE, PUBLIC, replace_file
from gradtf_fl.secagg import Identity
from gradtf_fl.transformer import GradTransformer, embedded_checkpoint
from strategies.checkpoints import write_roster
from strategies.provider import agreed_spec


def make_server(
    folder: Path,
    enrolments: Sequence[Path],
    address: str,
    listen: str | None,
    files: Mapping[str, Path],
    plan: Mapping[str, Any],
) -> Invitation:
    """Write ``server.toml``, ``provider.key``, ``roster.txt``, the enrolments and ``invitation.json``.

    Args:
        files: ``ca``, ``certificate`` and ``key``.
        plan: keys of `FederationPlan`, without what the folder decides.

    Raises:
        ConfigError: every problem of all of these at once; then nothing is written.
    """
    problems: list[str] = [f"plan.{key}: is decided by the folder; take it out" for key in OURS if key in plan]
    found: list[Enrolment] = []
    for path in enrolments:
        try:
            found.append(read_enrolment(path))
        except ConfigError as error:
            problems += error.problems
    missing = [f"--{name}: {path}: no such file" for name, path in files.items() if not path.is_file()]
    problems += missing
    listening = {"address": address, "listen": listen or f"0.0.0.0:{address.rpartition(':')[2]}"}
    listening |= {name: str(path.absolute()) for name, path in files.items()}
    options = {"address": "--address", "listen": "--listen"}
    try:
        section = validate(ListenSection, listening, lambda key: options.get(key, key))
    except ConfigError as error:
        problems += error.problems
    else:
        problems += [] if missing else certificate_problems(files, address.rpartition(":")[0].strip("[]"))
    given = {key: value for key, value in plan.items() if key not in OURS}
    try:
        checked = validate(FederationPlan, given | {"organizations": max(3, len(found))}, lambda key: f"plan.{key}")
    except ConfigError as error:
        problems += error.problems
    else:
        absolute = located(checked, problems)
        problems += [] if problems else _other_pair(checked)
        checked = checked.model_copy(update=absolute)
    if len(found) < 3 and not given.get("allow_two") and not problems:
        problems.append(f"--enrolment: {len(found)} organizations; with 2 each learns the other's update: at least 3")
    if problems:
        raise ConfigError(problems)
    provider = Identity.generate()
    values = {
        "server": address,
        "provider_key": provider.public.hex(),
        "ca": files["ca"].read_text(encoding="ascii"),
        "organizations": sorted(found, key=lambda organization: organization.name),
    }
    invitation = validate(Invitation, values, lambda key: f"invitation: {key}" if key else "--enrolment")
    with filled(folder, "a server"):
        provider.save(folder / PROVIDER_KEY)
        (folder / ENROLMENTS).mkdir(mode=0o700)
        for organization in invitation.organizations:
            text = json.dumps(organization.model_dump(), indent=1) + "\n"
            replace_file(folder / ENROLMENTS / f"{organization.name}.json", text.encode(), PUBLIC)
        write_roster(folder, [bytes.fromhex(key) for key in invitation.roster])
        replace_file(folder / INVITATION, canonical(invitation).encode(), PUBLIC)
        tables = {"server": section, "plan": checked, "compute": checked.compute}
        text = tables_to_toml(tables, leave_out=(*OURS, "compute"))
        replace_file(folder / SERVER_CONFIG, text.encode(), PRIVATE)
    return invitation


def located(plan: FederationPlan, problems: list[str]) -> dict[str, Any]:
    """The plan's files by absolute paths; those that are not there, models included, are problems."""
    files = {"prompts": plan.prompts} if plan.prompts is not None else {}
    if plan.transformer not in ("embedded", NO_TRANSFORMER):
        files["transformer"] = Path(plan.transformer)
    problems += [f"plan.{name}: {path}: no such file" for name, path in files.items() if not path.is_file()]
    for name in dict.fromkeys((plan.tiny, plan.llm)):
        try:
            model_folder(name)
        except ConfigError as error:
            problems += [f"plan: {problem}" for problem in error.problems]
    absolute = {name: path.absolute() for name, path in files.items()}
    return {name: str(path) if name == "transformer" else path for name, path in absolute.items()}


def _other_pair(plan: FederationPlan) -> list[str]:
    """Where the Grad-Transformer was made for other models than the plan's, by their files, or for another adapter.

    A model that is on a hub only is compared when the server starts.
    """
    if plan.transformer == NO_TRANSFORMER:
        return []
    path = embedded_checkpoint() if plan.transformer == "embedded" else Path(plan.transformer)
    problems: list[str] = []
    try:
        source, target = GradTransformer.pair(path)
    except ConfigError as error:
        return [f"plan: {problem}" for problem in error.problems]
    try:
        agreed_spec(plan, source.spec)
    except ConfigError as error:
        problems += [f"plan: {problem}" for problem in error.problems]
    sides = (("tiny", "TinyLM", plan.tiny, source), ("llm", "LLM", plan.llm, target))
    return problems + [
        f"plan.{key}: {name}: plan.transformer ({plan.transformer}) was made for another {what}, {space.model} "
        f"({space.model_sha256[:16]})"
        for key, what, name, space in sides
        if Path(model_folder(name)).is_absolute() and not space.is_of(name)
    ]


def certificate_problems(files: Mapping[str, Path], host: str) -> list[str]:
    """Why nodes that connect to ``host`` would refuse the server: what `gradtf certs verify` counts as a failure."""
    try:
        findings = check(files["ca"], files["certificate"], files["key"], [host], datetime.now(UTC))
    except ConfigError as error:
        return [problem.replace("--cert ", "--certificate ", 1) for problem in error.problems]
    failed = [finding for finding in findings if finding.level == "fail"]
    return [f"--certificate: {finding.what}: {finding.found}; {finding.remedy}" for finding in failed]
