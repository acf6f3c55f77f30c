"""Folders of a simulated federation: the same configuration, keys and data files as in deployment."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gradtf_fl.adapters import load_encoder, model_folder
from gradtf_fl.config import (
    NO_TRANSFORMER,
    DataSection,
    DropPoint,
    ModelsSection,
    OrganizationConfig,
    OrganizationSimulation,
    PolicySection,
    PrivacySection,
    RowFormat,
    SecAggSection,
    SimulationConfig,
    to_toml,
)
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import IDENTITY_KEY, ORGANIZATION_CONFIG, ORGANIZATIONS, PROMPTS, PROVIDER_KEY
from gradtf_fl.files import PRIVATE, replace_file
from gradtf_fl.preparation import ProviderWork, seen_rows_differ
from gradtf_fl.round_messages import MAX_ALPHA, MAX_RANK, MIN_ALPHA, Stage
from gradtf_fl.secagg import Identity
from gradtf_fl.tasks import FederationData, count_units, rows_as_tokens, write_rows

PUBLIC_PROMPTS = 1536


@dataclass(frozen=True)
class FederationFolders:
    """Where a simulation lives.

    Attributes:
        out: ``--out``.
        organizations: one folder per organization, in the order of node numbers.
        provider_key: PEM of the Ed25519 key that signs LLM adapters.
        prompts: public prompts that the provider refines on; None where it does not.
    """

    out: Path
    organizations: tuple[Path, ...]
    provider_key: Path
    prompts: Path | None

    @property
    def organizations_dir(self) -> Path:
        """Parent of the organizations' folders."""
        return self.out / ORGANIZATIONS


def check_inputs(config: SimulationConfig) -> None:
    """Whether every model and file that ``config`` names is there; ConfigError lists all that are not."""
    problems: list[str] = []
    for name in dict.fromkeys((config.tiny, config.adapted_model)):
        try:
            model_folder(name)
        except ConfigError as error:
            problems += error.problems
    if config.transformer != NO_TRANSFORMER:
        problems += _not_prepared(config)
    if config.refine and config.task.format == "text":
        problems.append("refine: windows of text have no prompts to refine on; take --no-refine")
    if problems:
        raise ConfigError(problems)


def _not_prepared(config: SimulationConfig) -> list[str]:
    """What of the provider's files is missing, and what to do about it."""
    files = (("transformer", config.transformer), ("controls", config.controls))
    missing = [f"{what} {name}: no such file" for what, name in files if name != "embedded" and not Path(name).exists()]
    if missing:
        missing.append("gradtf prepare makes them; --no-transformer runs the federation of the TinyLM without them")
    elif config.transformer != "embedded" and config.controls != "embedded" and not config.task.is_house_rules:
        missing += [why for why in (seen_rows_differ(ProviderWork.of(config)),) if why is not None]
    return missing


def check_rows(config: SimulationConfig, data: FederationData) -> None:
    """Whether both models can take every organization's rows; ConfigError lists what a round would refuse."""
    form = rows_form(config, data)
    sides = [(name, part) for name in dict.fromkeys((config.tiny, config.adapted_model)) for part in ("train", "test")]
    encoders = {name: load_encoder(name) for name, _ in sides}
    first: dict[tuple[str, str], ConfigError] = {}
    failing: Counter[tuple[str, str]] = Counter()
    for organization in data.organizations:
        for name, part in sides:
            model_config, tokenizer = encoders[name]
            where = f"{part} rows of {organization.name} for {name}"
            try:
                rows_as_tokens(getattr(organization, part), tokenizer, form, model_config, where)
            except ConfigError as error:
                first.setdefault((name, part), error)
                failing[name, part] += 1
    problems: list[str] = []
    for side in sides:
        more = f" ({failing[side] - 1} more organizations can't use theirs)" if failing[side] > 1 else ""
        problems += [problem + more for problem in first[side].problems] if side in first else []
    if problems:
        raise ConfigError(problems)


def rows_form(config: SimulationConfig, data: FederationData) -> RowFormat:
    """How the rows are encoded, at every organization."""
    return RowFormat(max_tokens=config.task.max_tokens, end=data.end, max_cut=config.task.max_cut)


def build_folders(config: SimulationConfig, data: FederationData, out: Path) -> FederationFolders:
    """Write every organization's folder: identity, roster, rows, policy; and the provider's key.

    Identities come from the seed, so that a run can be repeated: such keys are for simulations only. Each organization
    declares all of its rows, not a rounded figure: there is nobody to hide them from, and figures stay comparable.
    """
    provider_key = out / PROVIDER_KEY
    entropy = np.random.default_rng([config.seed, 0x4B455953])
    provider = Identity.generate(entropy.bytes)
    provider.save(provider_key)
    identities = [Identity.generate(entropy.bytes) for _ in data.organizations]
    roster = tuple(identity.public.hex() for identity in identities)
    seeds = np.random.SeedSequence([config.seed, 0x4F5247]).generate_state(len(identities), np.uint32)
    files = _OrganizationFiles(config, rows_form(config, data), roster, provider.public.hex())
    folders = []
    for number, (organization, identity) in enumerate(zip(data.organizations, identities, strict=True)):
        folder = out / ORGANIZATIONS / organization.name
        folder.mkdir(parents=True, mode=0o700)
        identity.save(folder / IDENTITY_KEY)
        write_rows(folder / "train.jsonl", organization.train, config.person)
        write_rows(folder / "test.jsonl", organization.test)
        text = files.text(organization.name, count_units(organization.train), int(seeds[number]), number)
        replace_file(folder / ORGANIZATION_CONFIG, text.encode(), PRIVATE)
        folders.append(folder)
    prompts = out / PROMPTS if refines(config) else None
    if prompts is not None:
        write_rows(prompts, data.public[:PUBLIC_PROMPTS])
    return FederationFolders(out, tuple(folders), provider_key, prompts)


@dataclass(frozen=True)
class _OrganizationFiles:
    """Every organization's ``organization.toml``. All pin the same roster, so that each text is N keys long and takes a
    fifth of a second for a thousand: it is written once, and name and seed are put in."""

    config: SimulationConfig
    form: RowFormat
    roster: tuple[str, ...]
    provider_key: str
    _texts: dict[tuple[int, tuple[DropPoint, ...]], str] = field(default_factory=dict)

    def text(self, name: str, declared: int, seed: int, number: int) -> str:
        """The file of organization ``number``, which declares this many rows (persons)."""
        drop = drop_points(self.config, number)
        if (declared, drop) not in self._texts:
            self._texts[declared, drop] = to_toml(self._values("NAME", declared, 0, drop))
        text = self._texts[declared, drop]
        for line, value in (('name = "NAME"', f'name = "{name}"'), ("seed = 0", f"seed = {seed}")):
            before, found, after = text.partition(f"\n{line}\n")
            assert found
            assert f"\n{line}\n" not in after
            text = f"{before}\n{value}\n{after}"
        return text

    def _values(self, name: str, declared: int, seed: int, drop: tuple[DropPoint, ...]) -> OrganizationConfig:
        config = self.config
        return OrganizationConfig(
            name=name,
            models=ModelsSection(tiny=config.tiny, llm=config.adapted_model),
            data=DataSection(train=Path("train.jsonl"), test=Path("test.jsonl"), **self.form.model_dump()),
            privacy=PrivacySection(
                budget=config.lifetime_budget,
                delta=config.delta,
                declared=declared,
                unit=config.unit,
                rows_per_person=config.rows_per_person,
            ),
            secagg=SecAggSection(
                roster=self.roster,
                provider_key=self.provider_key,
                n_min=min(3, len(self.roster)),
                max_bits=config.bits,
                max_clip=config.update_clip,
                allow_two=config.allow_two,
            ),
            policy=permitting(config),
            compute=config.compute,
            simulation=OrganizationSimulation(seed=seed, keep_updates=True, drop=drop),
        )


def permitting(config: SimulationConfig) -> PolicySection:
    """The default policy, widened where the simulation's own plan asks for more.

    The adapter is the Grad-Transformer's, and sigma comes from the plan's epsilon and an organization's rows: those
    bounds are open.
    """
    default = PolicySection()
    return PolicySection(
        clip=_with(default.clip, config.clip),
        rate=_with(default.rate, config.rate),
        max_rank=MAX_RANK,
        alpha=(MIN_ALPHA, MAX_ALPHA),
        max_steps=max(default.max_steps, config.steps),
        max_round_epsilon=max(default.max_round_epsilon, config.epsilon),
        min_sigma=0.0,
        min_rows=1,
        weight_rules=(config.weight_rule,),
        groups=config.groups,
    )


def _with(bounds: tuple[float, float], value: float) -> tuple[float, float]:
    return min(bounds[0], value), max(bounds[1], value)


def refines(config: SimulationConfig) -> bool:
    """Whether the provider refines: as told, else where answers are short enough to ask for thousands (House Rules)."""
    return config.transformer != NO_TRANSFORMER and (
        config.task.is_house_rules if config.refine is None else config.refine
    )


def drop_points(config: SimulationConfig, number: int) -> tuple[DropPoint, ...]:
    """Where organization ``number`` (0-based) vanishes: ``--drop`` takes the last ones first."""
    stages: list[Stage] = [rule.stage for rule in config.drop for _ in range(rule.count)]
    place = config.organizations - 1 - number
    return (DropPoint(stage=stages[place]),) if place < len(stages) else ()
