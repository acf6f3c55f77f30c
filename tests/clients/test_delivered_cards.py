"""Cards of a federation's adapters: the same facts at the server and at an organization, and nothing private."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from clients.organization import load_organization
from gradtf_fl.privacy import epsilon_prv, read_ledger
from tests.cli.conftest import gradtf
from tests.clients.conftest import Kept

ROUND = 2


def cards(organization: Kept) -> dict[str, ModelCard]:
    """Of one round, by who holds it."""
    places = {"server": organization.kit.plan.out / "rounds" / str(ROUND) / "llm_adapter"}
    places["organization"] = organization.adapter(ROUND)
    return {holder: ModelCard.load(place / "README.md") for holder, place in places.items()}


@pytest.mark.parametrize("holder", ["server", "organization"])
def test_a_card_says_what_was_signed_and_by_which_plan(organization: Kept, holder: str) -> None:
    text = cards(organization)[holder].text
    statement = json.loads((organization.folder / "rounds" / str(ROUND) / "adapter.json").read_text())
    plan = organization.kit.plan
    for value in (statement["llm_adapter_sha256"], statement["signature"], statement["provider_key"]):
        assert f"`{value}`" in text
    assert f"| Run | `{statement['run_id']}` |" in text
    assert f"| Round | {ROUND} of {plan.rounds} |" in text
    assert f"| Epsilon | at most {plan.epsilon:g} in all {plan.rounds} rounds of the run, per organization" in text
    assert f"| Delta | {plan.delta:g} |" in text
    about = json.loads((organization.adapter(ROUND) / "gradtf.json").read_text())
    assert f"| Values (SHA-256) | `{about['sha256']}` |" in text


def test_who_was_in_the_sum_is_told_by_the_server_alone(organization: Kept) -> None:
    found = cards(organization)
    assert "| Organizations | 3 of 3 are in this round's sum |" in found["server"].text
    assert "| Organizations | 3 on the roster |" in found["organization"].text


def test_nothing_of_the_organization_stands_in_its_card(organization: Kept) -> None:
    """People copy adapter folders: no spent epsilon, no declared rows, no name, no path."""
    loaded = load_organization(organization.folder, simulated=True)
    spent = epsilon_prv(read_ledger(loaded.ledger_path).content.events, loaded.config.privacy.delta)
    text = cards(organization)["organization"].content
    for private in (f"{spent:.3f}", "org-1", "declare", str(organization.folder)):
        assert private not in text
    assert "This page states no figure of one" in text


def test_a_card_is_not_signed_and_verification_does_not_ask_for_it(organization: Kept) -> None:
    card = organization.adapter(ROUND) / "README.md"
    card.write_text("anything")
    assert gradtf("org", "adapter", organization.folder, "--round", ROUND, "--verify").exit_code == 0
    card.unlink()  # as version 0.1 left it
    assert gradtf("org", "adapter", organization.folder, "--round", ROUND, "--verify").exit_code == 0
    assert gradtf("org", "adapter", organization.folder, "--rollback", ROUND).exit_code == 0


def test_a_copy_that_is_set_aside_takes_its_card_along(organization: Kept) -> None:
    from clients.adapters.kept import set_aside

    text = (organization.adapter(3) / "README.md").read_text()
    set_aside(organization.folder, 3)
    (aside,) = (organization.folder / "rounds" / "3").glob("earlier-*")
    assert (Path(aside) / "llm_adapter" / "README.md").read_text() == text
