"""A small real federation for tests: untrained models, organizations' folders, and a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clients.client_app import app as client_app
from experiments.embedded.pretrain_pair import build_model, build_tokenizer
from gradtf_fl.adapters import AdaptedModel, AdapterSpec
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
    to_toml,
)
from gradtf_fl.files import PRIVATE, replace_file
from gradtf_fl.secagg import Identity, ReplayRandomness
from gradtf_fl.tasks import Row, write_rows
from gradtf_fl.transformer import GradTransformer
from gradtf_fl.transformer.model import Backbone, GradTransformerModel, Standardisation
from strategies import InProcessGrid

SPEC = AdapterSpec()
TRANSFORMER = "transformer.safetensors"
ROWS = 64


def write_transformer(path: Path, pair: tuple[str, str], tiny_spec: AdapterSpec = SPEC) -> GradTransformer:
    """A small untrained Grad-Transformer of the pair, saved and loaded again."""
    sides = [AdaptedModel.load(name, spec).space for name, spec in zip(pair, (tiny_spec, SPEC), strict=True)]
    torch.manual_seed(7)
    standards = [
        Standardisation(
            torch.zeros(side.layout.blocks, side.layout.block_dim),
            torch.full((side.layout.blocks, side.layout.block_dim), 0.05),
        )
        for side in sides
    ]
    backbone = Backbone(width=16, feed_forward=16, heads=1, head_dim=16, encoder_layers=1, decoder_layers=1)
    GradTransformer(GradTransformerModel(backbone, *standards), backbone, *sides).save(path)
    return GradTransformer.load(path)


@dataclass(frozen=True)
class Kit:
    """A federation on disk."""

    plan: FederationPlan
    folders: tuple[Path, ...]
    generator: GradTransformer

    def grid(self) -> InProcessGrid:
        """The in-process grid over these organizations."""
        return InProcessGrid(
            client_app, [{"organization-dir": str(folder), "simulated": True} for folder in self.folders]
        )

    def config(self, number: int) -> OrganizationConfig:
        """``organization.toml`` of organization ``number``."""
        import tomllib

        return OrganizationConfig.model_validate(
            tomllib.loads((self.folders[number] / "organization.toml").read_text())
        )

    def change(self, number: int, **sections: object) -> None:
        """Rewrite parts of an organization's configuration."""
        changed = self.config(number).model_copy(update=sections)
        (self.folders[number] / "organization.toml").write_text(to_toml(changed))


def write_pair(folder: Path) -> tuple[str, str]:
    """An untrained pair of the embedded shapes, as Hugging Face folders."""
    for number, name in enumerate(("tiny", "llm")):
        build_model(name, number).save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    return str(folder / "tiny"), str(folder / "llm")


def random_rows(seed: int, count: int) -> list[Row]:
    """House Rules sums: ``[_][_][_]37?58=95``."""
    pairs = np.random.default_rng(seed).integers(0, 100, (count, 2))
    return [Row(f"[_][_][_]{a:02d}?{b:02d}=", f"{(a + b) % 100:02d}") for a, b in pairs]


def build(
    out: Path,
    pair: tuple[str, str],
    generator: GradTransformer,
    organizations: int = 3,
    drop: dict[int, tuple[DropPoint, ...]] | None = None,
    budget: float = 8.0,
    **plan: object,
) -> Kit:
    """Write ``organizations`` folders with their own rows, keys and ledgers, and the plan of a cheap run."""
    settings: dict[str, object] = {
        "transformer": str(Path(pair[0]).parent / TRANSFORMER),
        "tiny": pair[0],
        "llm": pair[1],
        "organizations": organizations,
        "rounds": 2,
        "steps": 2,
        "batch": 16,
        "deadline_s": 60.0,
        "join_s": 5.0,
        "out": out,
        "organizations_dir": out / "organizations",
    }
    asked = FederationPlan.model_validate(settings | plan)
    provider = Identity.generate()
    out.mkdir(parents=True)
    provider.save(out / "provider.key")
    identities = [Identity.generate(ReplayRandomness(bytes([n]))) for n in range(organizations)]
    roster = tuple(identity.public.hex() for identity in identities)
    folders = []
    for number, identity in enumerate(identities):
        folder = out / "organizations" / f"org-{number + 1}"
        folder.mkdir(mode=0o700, parents=True)
        identity.save(folder / "identity.key")
        write_rows(folder / "train.jsonl", random_rows(number, ROWS))
        write_rows(folder / "test.jsonl", random_rows(100 + number, 8))
        config = OrganizationConfig(
            name=folder.name,
            models=ModelsSection(tiny=pair[0], llm=pair[1]),
            data=DataSection(train=Path("train.jsonl"), test=Path("test.jsonl")),
            privacy=PrivacySection(budget=budget, declared=ROWS),
            secagg=SecAggSection(roster=roster, provider_key=provider.public.hex()),
            policy=PolicySection(groups=asked.groups, weight_rules=(asked.weight_rule,)),
            simulation=OrganizationSimulation(seed=number, keep_updates=True, drop=(drop or {}).get(number, ())),
        )
        replace_file(folder / "organization.toml", to_toml(config).encode(), PRIVATE)
        folders.append(folder)
    return Kit(asked, tuple(folders), generator)
