"""The model card of an adapter folder: README.md, with the YAML metadata that a model hub reads.

PEFT's own card is a template of open questions. This one says what the folder's writer knows: base, origin, privacy,
what that does not cover, results, hashes and signature. No hash and no signature covers the card itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtf_fl.adapters.models import EMBEDDED, snapshot
from gradtf_fl.adapters.spec import AdapterSpec
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import MODEL_CARD
from gradtf_fl.files import PUBLIC, replace_file
from gradtf_fl.shown import shown
from gradtf_fl.version import __version__

TAGS = ("lora", "federated-learning", "differential-privacy", "secure-aggregation", "gradtf-fl")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
MOST_BYTES = 1 << 20  # of a base model's own card that is read
RESULTS = "## Results"
UNSAID = "Not known to the writer of this folder."
Rows = Sequence[tuple[str, str]]
"""Label and text, a line of a table each."""


@dataclass(frozen=True)
class ModelCard:
    """What the writer of an adapter folder knows beyond its files.

    Attributes:
        title: what it is an adapter of, e.g. ``Round 3 of a federation``.
        origin: where it comes from: run, round, organizations.
        privacy: epsilon with all that gives it a meaning; empty where nothing is known.
        limits: what this does not cover, a sentence or two each.
        results: what it scored, where that is shared.
        signed: what was signed, by whom, and the signature.
    """

    title: str = "A LoRA adapter"
    origin: Rows = ()
    privacy: Rows = ()
    limits: Sequence[str] = ()
    results: Rows = ()
    signed: Rows = ()

    def text(self, spec: AdapterSpec, base_model: str, values_sha256: str) -> str:
        """The whole file.

        Args:
            spec: of the adapter.
            base_model: folder or hub id, as in adapter_config.json.
            values_sha256: `state_hash` (hex).
        """
        licence = base_license(base_model)
        base = [
            ("Base model", code(base_label(base_model))),
            ("Licence of the base", licence or "not stated in its folder"),
        ]
        hashes = [("Values (SHA-256)", code(values_sha256)), *self.signed]
        return "\n".join(
            [
                _metadata(base_model, licence),
                f"# {self.title}",
                "",
                f"{_described(spec)} gradtf-fl {__version__} wrote this page together with the adapter.",
                "",
                *_section("## Origin", [*base, *self.origin]),
                *_section("## Privacy", self.privacy),
                "## What this does not cover",
                "",
                *(f"- {limit}" for limit in (*self.limits, BASE_LIMIT)),
                "",
                *_section(RESULTS, self.results),
                *_section("## Hash and signature", hashes),
                NOT_COVERED_BY_HASH,
                "",
            ]
        )


UNKNOWN = ModelCard()
"""Of a folder whose writer knows its files alone."""
NOT_COVERED_BY_HASH = (
    "The first hash covers the adapter's names, shapes and values. What is signed covers its spec and base, too. "
    "Neither covers this page."
)
BASE_LIMIT = (
    "The data that the base model was trained on, and any fault that it has. Nobody checked what the adapter answers "
    "for safety, bias or memorized text."
)


def add_results(folder: Path, results: Rows) -> None:
    """Put ``results`` into the card in ``folder``; a folder without one, from an earlier version, stays as it is.

    Raises:
        OSError: the card can't be replaced.
    """
    path = folder / MODEL_CARD
    if not path.is_file():
        return
    before, found, after = path.read_text(encoding="utf-8").partition(f"{RESULTS}\n")
    if found:
        section = "\n".join(_section(RESULTS, results))
        replace_file(path, f"{before}{section}\n## {after.partition('## ')[2]}".encode(), PUBLIC)


def merged_card(text: str, dtype: str) -> str:
    """An adapter's card as that of the base with the adapter merged in."""
    said = f"This folder holds the base model with this adapter merged in, in {dtype}. The hashes are the adapter's."
    text = text.replace("library_name: peft\n", "library_name: transformers\n", 1)
    return re.sub(r"^# .*\n", lambda title: f"{title[0]}\n{said}\n", text, count=1, flags=re.MULTILINE)


def code(text: object) -> str:
    """Text of a stranger as code in a table's cell: one line, in which nothing is a link, a tag or a new cell."""
    return "`" + (shown(text, 200).replace("`", "'").replace("|", "/") or " ") + "`"


def base_label(base_model: str) -> str:
    """What a card calls a base model: its hub id or its name here; of a folder the last part alone."""
    for name, folder in EMBEDDED.items():
        if str(folder) == base_model:
            return name
    return base_model if _hub_id(base_model) else Path(base_model).name


def base_license(base_model: str) -> str:
    """The licence that the base's own card or config.json states, as a hub's identifier; "" where none does."""
    from huggingface_hub import metadata_load

    try:
        folder = snapshot(base_model)
    except ConfigError:  # written for a base that is not here
        return ""
    if folder is None:
        return ""
    readers: Mapping[str, Callable[[Path], Any]] = {
        MODEL_CARD: metadata_load,
        "config.json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    }
    for name, read in readers.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            continue
        try:
            found = (read(path) or {}).get("license")
        except Exception:  # whoever wrote it: a card without a licence is no error of ours
            continue
        if isinstance(found, str) and LICENSE.fullmatch(found):
            return found
    return ""


def _metadata(base_model: str, licence: str) -> str:
    """The YAML block. A base in a folder has no name that a hub knows, so it is left out there."""
    from huggingface_hub import ModelCardData

    hub_id = base_model if _hub_id(base_model) else None
    tags = [f"base_model:adapter:{hub_id}", *TAGS] if hub_id else list(TAGS)
    data = ModelCardData(
        base_model=hub_id, library_name="peft", license=licence or None, pipeline_tag="text-generation", tags=tags
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---\n"


def _hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _described(spec: AdapterSpec) -> str:
    size = "" if spec.kind == "full" else f" of rank {spec.rank} and alpha {spec.alpha:g}"
    plain = "" if spec.kind == "lora" else "; `adapter_model.safetensors` holds its plain LoRA form"
    return f"An adapter of kind `{spec.kind}`{size} on {', '.join(map(code, spec.targets))}{plain}."


def _section(heading: str, rows: Rows) -> list[str]:
    if not rows:
        return [heading, "", UNSAID, ""]
    return [heading, "", "| | |", "|---|---|", *(f"| {label} | {text} |" for label, text in rows), ""]
