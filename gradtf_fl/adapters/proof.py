"""Whether a stored adapter folder still is what was signed: its packed bytes, made again from the files.

A provider signs the SHA-256 of an adapter's packed bytes (`gradtf_fl.adapters.pack_adapter`): a safetensors header,
which holds names, shapes, adapter spec and base model, then float32 values. The header is kept beside the folder; with
the values in the folder's files it gives the very bytes again, whatever version of safetensors wrote either. Any
change of a value, name, shape or of the spec gives another hash. adapter_config.json, which the hash does not cover, is
compared with the signed spec and with its hash in gradtf.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gradtf_fl.adapters.spec import AdapterSpec
from gradtf_fl.adapters.switches import switches
from gradtf_fl.errors import CorruptFile
from gradtf_fl.safetensors_header import LENGTH_BYTES, header_text

WEIGHTS, NATIVE, CONFIG = "adapter_model.safetensors", "gradtf.safetensors", "adapter_config.json"
FLOAT32_BYTES = 4
UNUSED = ("lora_dropout", "fan_in_fan_out", "auto_mapping", "revision")
"""Entries that `save_adapter` leaves empty, though another value would not change what the matrices do."""


@dataclass(frozen=True)
class _Slot:
    """Where a tensor lies in the packed bytes, after the header."""

    name: str
    shape: tuple[int, ...]
    start: int
    end: int


def packed_header(packed: bytes) -> str:
    """The header of packed bytes, as text that `repacked` takes.

    Raises:
        CorruptFile: no safetensors bytes, or values of another type than float32.
    """
    header = header_text(packed)
    slots, _, _ = _parsed(header)
    if len(packed) != LENGTH_BYTES + len(header.encode()) + (slots[-1].end if slots else 0):
        raise CorruptFile("packed adapter: its length is not the one in its header")
    return header


def repacked(folder: Path, header: str) -> bytes:
    """The packed bytes of the adapter in ``folder``.

    Raises:
        CorruptFile: its files do not hold the tensors of the header, or can't be read.
    """
    slots, spec, _ = _parsed(header)
    tensors = _tensors(folder / (WEIGHTS if spec.kind == "lora" else NATIVE))
    if set(tensors) != {slot.name for slot in slots}:
        raise CorruptFile(f"{folder}: holds other tensors than the signed ones")
    parts = []
    for slot in slots:
        dtype, shape, data = tensors[slot.name]
        if (dtype, shape) != ("F32", slot.shape):
            raise CorruptFile(f"{folder}: {slot.name} has another shape or type than the signed one")
        parts.append(data)
    text = header.encode()
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + b"".join(parts)


def folder_problems(folder: Path, header: str, adapter_sha256: str) -> list[str]:
    """What in a PEFT folder differs from the signed adapter, whose packed bytes have that SHA-256 (hex)."""
    try:
        _, spec, _ = _parsed(header)
        if hashlib.sha256(repacked(folder, header)).hexdigest() != adapter_sha256:
            return [f"{folder}: values differ from the signed ones"]
    except CorruptFile as error:
        return list(error.problems)
    problems = _config_problems(folder, spec)
    if spec.kind != "lora" and not _plain_fits(folder):
        problems.append(f"{folder / WEIGHTS}: is not the plain LoRA form of {NATIVE}")
    return problems


def _parsed(header: str) -> tuple[list[_Slot], AdapterSpec, str]:
    """(tensors in the order of their bytes, spec, base model)."""
    try:
        document = json.loads(header)
        own = json.loads(document.pop("__metadata__")["gradtf"])
        spec, base = AdapterSpec.from_json(own["spec"]), str(own["base_model"])
        slots = [
            _Slot(name, tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
            for name, entry in document.items()
        ]
        kinds = {entry["dtype"] for entry in document.values()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptFile("packed adapter: its header is damaged") from error
    slots.sort(key=lambda slot: (slot.start, slot.end))
    ends = [0, *(slot.end for slot in slots)]
    sizes = [prod(slot.shape) * FLOAT32_BYTES for slot in slots]
    if kinds != {"F32"} or any(
        (slot.start, slot.end) != (end, end + size) for slot, end, size in zip(slots, ends, sizes, strict=False)
    ):
        raise CorruptFile("packed adapter: expected contiguous float32 tensors")
    return slots, spec, base


def _tensors(path: Path) -> Mapping[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> (type, shape, little-endian bytes), read as PEFT's own reader reads them."""
    from safetensors import SafetensorError, deserialize

    try:
        read: Any = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise CorruptFile(f"{path}: cannot be read ({error.strerror})") from error
    except (SafetensorError, ValueError) as error:
        raise CorruptFile(f"{path}: damaged ({error})") from error
    return {name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in read}


def _config_problems(folder: Path, spec: AdapterSpec) -> list[str]:
    path = folder / CONFIG
    try:
        text = path.read_bytes()
        config: dict[str, Any] = json.loads(text)
        about = json.loads((folder / "gradtf.json").read_text())
        recorded = about["config_sha256"]
        rank, alpha, targets = (
            int(config["r"]),
            float(config["lora_alpha"]),
            {*config["target_modules"], *(config.get("target_parameters") or ())},
        )
        scale = alpha / rank
        switched = switches(config) + [f"{name} is set" for name in UNUSED if config.get(name)]
        switched += [] if config.get("peft_type") == "LORA" else ["peft_type"]
    except (OSError, AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        return [f"{path} or gradtf.json: damaged ({type(error).__name__})"]
    problems = []
    if scale != spec.scale or targets != set(spec.targets):
        problems.append(f"{path}: scale or target modules are not the signed ones")
    if spec.kind == "lora" and rank != spec.rank:
        problems.append(f"{path}: rank {rank} is not the signed one ({spec.rank})")
    if switched:
        problems.append(f"{path}: {', '.join(switched)} change what the signed values do")
    if hashlib.sha256(text).hexdigest() != recorded:
        problems.append(f"{path}: changed since it was stored")
    return problems


def _plain_fits(folder: Path) -> bool:
    """Whether what PEFT loads has the effect of the signed state; products are equal up to rounding."""
    import torch
    from safetensors.torch import load_file

    from gradtf_fl.adapters.kinds import to_plain_lora

    plain, wanted = load_file(folder / WEIGHTS), to_plain_lora(load_file(folder / NATIVE))
    return set(plain) == set(wanted) and all(
        plain[name].shape == wanted[name].shape and torch.allclose(plain[name], wanted[name], rtol=1e-5, atol=1e-7)
        for name in wanted
    )
