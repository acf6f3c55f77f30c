"""Setting up an organization's folder: keys and policy (``org init``), and who takes part (``org join``)."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from clients.organization import read_config, with_stand_ins
from gradtf_fl.adapters import EMBEDDED, model_folder
from gradtf_fl.config import (
    ROW,
    ComputeSection,
    OrganizationConfig,
    RowFormat,
    declared_of,
    to_toml,
    validate,
    with_values,
)
from gradtf_fl.deployment import (
    Enrolment,
    Invitation,
    canonical,
    changed_keys,
    enrol,
    filled,
    public_of,
    read_invitation,
    write_node_key,
)
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import (
    CA_CERTIFICATE,
    ENROLMENT,
    IDENTITY_KEY,
    INVITATION,
    ORGANIZATION_CONFIG,
    ORGANIZATION_PRIVATE,
)
from gradtf_fl.files import PRIVATE, PUBLIC, exposed, replace_file
from gradtf_fl.privacy import Unit
from gradtf_fl.secagg import Identity
from gradtf_fl.tasks import count_units, read_rows


def make_organization(
    folder: Path,
    name: str,
    data: Path,
    test: Path | None,
    budget: float,
    delta: float,
    tiny: str,
    llm: str,
    form: RowFormat | None = None,
    compute: ComputeSection | None = None,
    declare: int | None = None,
    unit: str = ROW,
) -> Enrolment:
    """Write keys, ``organization.toml`` and ``enrolment.json``. Nothing stays when something is wrong.

    The policy's defaults are the strictest that work: at least three organizations, nothing about metrics, no rows of
    fewer than the plan's noise. What is not known before the invitation (roster, provider, server) is left empty, so
    the folder cannot be served yet.

    Args:
        form: how rows become tokens, as all who take part have it; None: by the first row.
        compute: where and how this organization trains; None: on the CPU.
        declare: rows (persons) that the organization makes public; None: those of ``data``, rounded down by
            `declared_of`.
        unit: whose the budget's epsilon is: row, or the field of a row that says whose it is.

    Raises:
        ConfigError: every bad value at once; a folder that is not empty; data that cannot be read, or has fewer rows
            than ``declare``.
    """
    problems = [
        f"--{what}: {path}: no such file"
        for what, path in (("data", data), ("test", test))
        if path is not None and not path.exists()
    ]
    for option, model in (("tiny", tiny), ("llm", llm)):
        try:
            model_folder(model)
        except ConfigError as error:
            problems += [f"--{option}: {problem}" for problem in error.problems]
    ending = {"end": False} if tiny in EMBEDDED else {}  # two digits: what ends after them was never trained
    rows = ending if form is None else form.model_dump(include=set(RowFormat.model_fields), exclude_none=True)
    counts, person = {}, None if unit == ROW else unit
    for what, path in (("data", data), ("test", test)):
        try:
            if path is not None and path.exists():
                counts[what] = count_units(read_rows(path, None, RowFormat(**rows), person if what == "data" else None))
        except ConfigError as error:
            problems += [f"--{what}: {problem}" for problem in error.problems]
    found = counts.get("data", 0)
    if found and declare is not None and not 1 <= declare <= found:
        problems.append(f"--declare: {declare}: at least 1 and at most the {found} {Unit(person).plural} of {data}")
    declared = declared_of(found) if declare is None and found else max(1, declare or 1)
    values = {
        "name": name,
        "models": {"tiny": tiny, "llm": llm},
        "data": {"train": str(data.absolute())} | ({"test": str(test.absolute())} if test is not None else {}) | rows,
        "privacy": {"budget": budget, "delta": delta, "declared": declared, "unit": unit},
        "compute": {} if compute is None else compute.model_dump(),
    }
    options = {"privacy.budget": "--budget", "privacy.delta": "--delta", "privacy.unit": "--unit", "name": "--name"}
    try:
        config = validate(OrganizationConfig, with_stand_ins(values), lambda key: options.get(key, key))
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    with filled(folder, "an organization"):
        identity = Identity.generate()
        identity.save(folder / IDENTITY_KEY)
        private, _ = write_node_key(folder)
        enrolment = enrol(name, identity.private, public_of(private))
        replace_file(folder / ENROLMENT, (json.dumps(enrolment.model_dump(), indent=1) + "\n").encode(), PUBLIC)
        unnamed = config.secagg.model_copy(update={"roster": (), "provider_key": ""})
        text = to_toml(config.model_copy(update={"secagg": unnamed}))
        replace_file(folder / ORGANIZATION_CONFIG, text.encode(), PRIVATE)
    return enrolment


def join_federation(folder: Path, invitation: Invitation) -> list[str]:
    """Pin the invitation's roster, provider, server and authority in ``organization.toml``.

    Nothing else in that file changes: comments, order and layout stay as the operator left them.

    Returns: what differs from the invitation joined before, in words; empty the first time.

    Raises:
        ConfigError: this organization is not in the roster; the folder's own configuration is wrong, or somebody else
            owns or may read what is private in it.
    """
    path = folder / ORGANIZATION_CONFIG
    if problems := exposed([folder, *(folder / name for name in ORGANIZATION_PRIVATE)]):
        raise ConfigError(problems)
    identity = Identity.load(folder / IDENTITY_KEY)
    if identity.public.hex() not in invitation.roster:
        raise ConfigError(
            f"the invitation's roster is without this organization ({identity.public.hex()[:16]}...): "
            f"send {folder / ENROLMENT} to the server's operator"
        )
    read_config(folder)
    pinned: dict[str, dict[str, object]] = {
        "secagg": {"roster": list(invitation.roster), "provider_key": invitation.provider_key},
        "server": {"address": invitation.server, "ca": CA_CERTIFICATE},
    }
    text = with_values(path.read_bytes().decode(), OrganizationConfig, pinned)
    validate(OrganizationConfig, tomllib.loads(text), lambda key: f"{path}: {key}")
    old = folder / INVITATION
    changed = differences(read_invitation(old), invitation) if old.exists() else []
    replace_file(folder / CA_CERTIFICATE, invitation.ca.encode(), PUBLIC)
    replace_file(old, canonical(invitation).encode(), PUBLIC)
    replace_file(path, text.encode(), PRIVATE)
    return changed


def differences(old: Invitation, new: Invitation) -> list[str]:
    """What an operator should ask about before relying on the new invitation."""
    found = [f"{key.name} has other keys than before" for key in changed_keys(old, new)]
    before, after = ({one.name for one in invitation.organizations} for invitation in (old, new))
    found += [f"{name} is new" for name in sorted(after - before)]
    found += [f"{name} has left" for name in sorted(before - after)]
    parts = (
        ("the key that signs adapters", "provider_key"),
        ("the server's address", "server"),
        ("its authority", "ca"),
    )
    return found + [f"{what} is another one" for what, name in parts if getattr(old, name) != getattr(new, name)]
