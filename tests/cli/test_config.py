"""The schema: every problem at once, strict types, and files and run configs that come back equal."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from clients.organization import load_organization
from gradtf_fl.config import (
    DataSection,
    DropPoint,
    FederationPlan,
    ModelsSection,
    OrganizationConfig,
    OrganizationSimulation,
    PolicySection,
    PrivacySection,
    SecAggSection,
    SimulationConfig,
    declared_of,
    load_toml,
    read_project,
    to_toml,
    validate,
    with_values,
)
from gradtf_fl.config.toml import descriptions
from gradtf_fl.deployment import ListenSection
from gradtf_fl.errors import ConfigError
from gradtf_fl.files import PRIVATE, replace_file
from gradtf_fl.secagg import ClientPolicy, Identity
from gradtf_fl.simulation.setup import build_folders
from gradtf_fl.tasks import federation_data

ROSTER = ("a" * 64, "b" * 64, "c" * 64)


def organization(**secagg: Any) -> OrganizationConfig:
    return OrganizationConfig(
        name="org-1",
        data=DataSection(train=Path('odd "name".jsonl'), test=Path("test.jsonl")),
        privacy=PrivacySection(budget=8.0, declared=64),
        secagg=SecAggSection(**({"roster": ROSTER, "provider_key": "d" * 64} | secagg)),
        simulation=OrganizationSimulation(seed=3, drop=(DropPoint(stage="mask"), DropPoint(stage="share", round=2))),
    )


def problems(model: type[Any], values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(model, values, lambda key: f"f.toml: {key}")
    return list(caught.value.problems)


def test_organization_toml_comes_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "organization.toml"
    path.write_text(to_toml(organization()))
    assert load_toml(OrganizationConfig, path) == organization()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(name=TEXT, path=TEXT, budget=st.floats(0.01, 1000), n_min=st.integers(2, 3), seed=st.none() | st.integers(0, 9))
def test_whatever_is_written_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, name: str, path: str, budget: float, n_min: int, seed: int | None
) -> None:
    config = organization(n_min=n_min, allow_two=True).model_copy(
        update={
            "models": ModelsSection(tiny=name, llm=name[::-1]),
            "data": DataSection(train=Path(path)),
            "privacy": PrivacySection(budget=budget, declared=64),
            "simulation": None if seed is None else OrganizationSimulation(seed=seed),
        }
    )
    file = tmp_path_factory.getbasetemp() / "organization.toml"
    file.write_bytes(to_toml(config).encode())
    assert load_toml(OrganizationConfig, file) == config
    moved = with_values(to_toml(config), OrganizationConfig, {"models": {"tiny": path, "llm": name}})
    file.write_bytes(moved.encode())
    again = load_toml(OrganizationConfig, file)
    assert again == config.model_copy(update={"models": ModelsSection(tiny=path, llm=name)})


@pytest.mark.parametrize("model", [OrganizationConfig, FederationPlan, ListenSection])
def test_every_key_is_explained(model: type[BaseModel]) -> None:
    models = [model]
    for one in models:
        assert set(descriptions(one)) == set(one.model_fields), one
        assert all(text and "\n" not in text for text in descriptions(one).values())
        for field in one.model_fields.values():
            parts = field.annotation, *get_args(field.annotation)
            models += [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


def test_every_key_is_in_the_file_below_its_explanation() -> None:
    values = organization()
    lines = to_toml(values).splitlines()
    for section in (
        values.models,
        values.data,
        values.privacy,
        values.secagg,
        values.policy,
        values.worker,
        values.simulation,
    ):
        about = descriptions(type(section))
        for key, value in section:
            shown = f"# {key} =" if value is None else f"{key} = "
            (place,) = [number for number, line in enumerate(lines) if line.startswith(shown)]
            assert lines[place - 1] == f"# {about[key]}"
    assert "# t_min =" in lines


def test_the_protocol_gets_every_limit_of_the_file(tmp_path: Path) -> None:
    """`ClientPolicy` is made from ``[secagg]`` field by field: names and defaults are the same."""
    defaults = organization().secagg
    assert all(getattr(defaults, one.name) == one.default for one in fields(ClientPolicy))
    limits = {
        "n_min": 2,
        "t_min": 3,
        "max_bits": 24,
        "max_clip": 2.0,
        "max_weight": 0.5,
        "allow_two": True,
        "colluders": 0.2,
        "trials": 64,
        "min_noise": 1.5,
    }
    Identity.generate().save(tmp_path / "identity.key")
    replace_file(tmp_path / "organization.toml", to_toml(organization(**limits)).encode(), PRIVATE)
    assert asdict(load_organization(tmp_path, simulated=True).policy) == limits


@pytest.mark.parametrize(
    "plan",
    [
        FederationPlan(),
        FederationPlan(threshold=4, out=Path("a b"), provider_key=Path("k"), allow_two=True, epsilon=1),
    ],
)
def test_run_config_comes_back_equal(plan: FederationPlan) -> None:
    run_config = plan.to_run_config()
    assert all(isinstance(value, bool | int | float | str) for value in run_config.values())
    assert FederationPlan.from_run_config({**run_config, "num-server-rounds": 3}) == plan


def test_every_problem_is_reported_with_file_and_key() -> None:
    values = {"organizations": "many", "epsilon": math.nan, "task": {"rules": "odd"}, "typo": 1}
    found = problems(SimulationConfig, values)
    assert sorted(line.split(": ")[1] for line in found) == sorted(["organizations", "epsilon", "task.rules", "typo"])
    assert all(line.startswith("f.toml: ") for line in found)


@pytest.mark.parametrize(
    "values",
    [
        {"organizations": 0},
        {"organizations": 2},
        {"rounds": 0},
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": math.inf},
        {"delta": 0.0},
        {"delta": 1.0},
        {"budget": math.nan},
        {"task": {"rules": "nonsense"}},
        {"engine": "gpu"},
        {"drop": ["nowhere:1"]},
        {"drop": ["mask:0"]},
        {"drop": ["mask"]},
        {"drop": ["mask:3", "unmask:3"]},
        {"seed": -1},
        {"seed": "7"},
        {"batch": 4096},
        {"bits": 23},
        {"compute": {"sampler": "hooks"}},
    ],
)
def test_simulation_refuses(values: dict[str, Any]) -> None:
    assert len(problems(SimulationConfig, values)) == 1


def test_a_simulations_compute_table_is_every_organizations(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    path.write_text('[federation]\norganizations = 3\nrows = 64\ntest_rows = 1\n[compute]\nsampler = "opacus"\n')
    config = read_project(path)
    folders = build_folders(config, federation_data(config.task, config, 3, 64, 0), tmp_path)
    for folder in folders.organizations:
        assert load_toml(OrganizationConfig, folder / "organization.toml").compute.sampler == "opacus"
    assert OrganizationConfig.model_fields["compute"].default.sampler == "lora"


def test_two_organizations_need_an_explicit_word() -> None:
    assert validate(SimulationConfig, {"organizations": 2, "allow_two": True}, str).organizations == 2


def test_organization_policy_refuses_a_pair_and_double_keys() -> None:
    with pytest.raises(ValueError, match="allow_two"):
        organization(n_min=2)
    with pytest.raises(ValueError, match="twice"):
        organization(roster=(*ROSTER, ROSTER[0]))
    with pytest.raises(ValueError, match="n_min is 3"):
        organization(roster=ROSTER[:2])


@pytest.mark.parametrize("text", ["organizations = ", "[models", "\x00"])
def test_a_file_that_is_no_toml_is_one_clear_problem(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.toml: not TOML"):
        read_project(path)


def test_whole_file_problems_name_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[federation]\norganizations = 2\n")
    with pytest.raises(ConfigError) as caught:
        read_project(path)
    assert caught.value.problems[0].startswith(f"{path}: with 2 organizations")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"clip": [1e-41, 1.0]}, "policy.clip.0"),
        ({"rate": [1e-3, 11.0]}, "policy.rate.1"),
        ({"alpha": [1e-12, 1.0]}, "policy.alpha.0"),
        ({"max_rank": 10**6}, "policy.max_rank"),
        ({"clip": [2.0, 1.0], "rate": [1.0, 1e-3]}, "clip: the smallest value comes first; rate: the smallest value"),
        ({"hours": ["20:00-25:00"]}, "policy.hours.0"),
        ({"hours": ["24:01-06:00"]}, "policy.hours.0"),
        ({"hours": ["08:00-08:00"]}, "08:00-08:00 begins when it ends"),
        ({"weight_rules": ["rows"]}, "policy.weight_rules.0"),
        ({"weight_rules": []}, "policy.weight_rules"),
        ({"groups": [1, 3]}, "policy.groups"),
        ({"attempts": 0}, "policy.attempts"),
    ],
)
def test_a_policy_that_bounds_nothing_is_refused_by_file_and_key(values: dict[str, Any], said: str) -> None:
    document = organization().model_dump(mode="json", exclude_none=True) | {"policy": values}
    (problem,) = [one for one in problems(OrganizationConfig, document) if said in one][:1]
    assert problem.startswith("f.toml: policy")


@pytest.mark.parametrize(
    ("key", "value"),
    [("clip", 1e-41), ("clip", 1e7), ("clip", 9e-7), ("update_clip", 1e-41), ("rate", 1e-12), ("lora_alpha", 1e-12)],
)
def test_a_plan_that_every_organization_refuses_is_none(key: str, value: float) -> None:
    (problem,) = problems(FederationPlan, {key: value})
    assert problem.startswith(f"f.toml: {key}: ")


def test_the_default_policy_permits_the_default_plan() -> None:
    plan, policy = FederationPlan(), PolicySection()
    assert not policy.broken_by(
        clip=plan.clip, rate=plan.rate, steps=plan.steps, weight_rule=plan.weight_rule, groups=plan.groups
    )
    assert not policy.broken_by_adapter(plan.adapter, plan.rank, plan.lora_alpha)
    assert plan.epsilon <= policy.max_round_epsilon
    assert ListenSection.model_fields["retries"].default + 1 == policy.attempts


def test_a_simulation_permits_what_its_own_plan_asks(tmp_path: Path) -> None:
    config = SimulationConfig(
        organizations=15,
        groups=3,
        clip=500.0,
        rate=5.0,
        steps=2000,
        epsilon=50.0,
        weight_rule="examples",
        rows=8,
        batch=4,
    )
    folders = build_folders(config, federation_data(config.task, config, 15, 4, 0), tmp_path)
    policy = load_organization(folders.organizations[0], simulated=True).config.policy
    asked = {"clip": 500.0, "rate": 5.0, "steps": 2000, "weight_rule": "examples", "groups": 3}
    assert not policy.broken_by(**asked)  # type: ignore[arg-type]
    assert (policy.max_round_epsilon, policy.min_sigma, policy.min_rows) == (50.0, 0.0, 1)


@pytest.mark.parametrize("declared", [None, 0, -5])
def test_a_file_without_a_declared_figure_says_what_to_add(declared: int | None) -> None:
    values = organization().model_dump(mode="json")
    values["privacy"] = {"budget": -1.0} | ({} if declared is None else {"declared": declared})
    budget, missing = problems(OrganizationConfig, values)
    assert budget.startswith("f.toml: privacy.budget: ")
    assert missing.startswith("f.toml: privacy.declared: missing: add `declared = N`, the number of rows that you make")


@given(st.integers(1, 2**40))
def test_a_declared_figure_has_two_binary_digits_and_leaves_out_at_most_a_third(rows: int) -> None:
    declared = declared_of(rows)
    assert declared <= rows < 1.5 * declared
    assert declared & (declared - 1) == 0 or (declared // 3) & (declared // 3 - 1) == 0
    assert declared_of(declared) == declared
