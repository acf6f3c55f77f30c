"""Exact resume of a private run that was killed: adapter, Adam's moments and steps done, written atomically.

A seeded run that was killed and resumed ends with the very bytes of one that was not. The draws of a step are a
function of the run's key and the step's number, so no generator is saved, and none can be put back to before
noise that was released: repeated steps of a seeded run repeat the same values on the same rows (the file is bound
to them), and a run on the operating system's entropy takes a new key, so its repeated steps carry fresh noise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.files import PRIVATE, replace_file
from gradtf_fl.safetensors_header import metadata_of

if TYPE_CHECKING:
    from gradtf_fl.tasks import TokenRows
    from gradtf_fl.training.private_adam import PrivateAdam

_FORMAT = 1


class AnotherRun(ConfigError):
    """A checkpoint is of a run on other rows, from another model or with other arguments."""


@dataclass(frozen=True)
class DpCheckpoint:
    """Where and how often `train_dp` saves itself (mode 0600), and where it resumes from.

    What is charged: all steps of the run, once; the file is part of that release and adds nothing to it. Steps
    that were done after the last save and died with the process were seen by nobody and are not charged. A run that
    ends by an error saves itself first, since somebody may see the error: no step of it is done twice. Where noise
    was added and the adapter only half moved there is nothing whole to save: the file goes, and the run can't be
    resumed. The last save is that of the finished run: calling again gives the same adapter without a new step. Two
    things make a new release, to be reserved in the ledger by itself: an older copy of the file put back after its
    run was released, and an adapter that a ``progress`` callback took out of a run that was later killed.

    The file holds the mean loss, which epsilon does not cover: it stays in the organization. Delete it when the
    run is settled.

    Attributes:
        path: the file.
        every: steps between saves.
    """

    path: Path
    every: int = 10

    def open(self, model: nn.Module, rows: TokenRows, arguments: tuple[Any, ...], optimizer: PrivateAdam) -> DpRun:
        """Begin or resume: ``optimizer`` and the adapter continue where the file's run stands.

        Args:
            arguments: whatever else decides what the run computes.

        Raises:
            ConfigError: ``every`` below 1.
            AnotherRun: the file belongs to a different run: other rows, model or arguments.
            CorruptFile: the file is damaged.
        """
        if self.every < 1:
            raise ConfigError(f"checkpoint: there must be at least 1 step between saves, not {self.every}")
        run = DpRun(self, optimizer, fingerprint(model, rows, arguments))
        if self.path.exists():
            run.resume()
        return run


class DpRun:
    """One run with its file."""

    def __init__(self, checkpoint: DpCheckpoint, optimizer: PrivateAdam, identity: str) -> None:
        self._checkpoint, self._optimizer, self._identity = checkpoint, optimizer, identity
        self.loss_sum = 0.0

    def after_step(self, loss_sum: float, last: bool) -> None:
        """Save if it is time to."""
        self.loss_sum = loss_sum
        if last or self._optimizer.steps % self._checkpoint.every == 0:
            replace_file(self._checkpoint.path, self._pack(), PRIVATE)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Save, or where that can't be done delete the file, when the steps within end by an error."""
        try:
            yield
        except BaseException:
            path = self._checkpoint.path
            try:
                if self._optimizer.releasing:
                    path.unlink(missing_ok=True)
                else:
                    replace_file(path, self._pack(), PRIVATE)
            except OSError:  # a full disk: an older file would have steps done twice
                path.unlink(missing_ok=True)
            raise

    def resume(self) -> None:
        """Put adapter, Adam and the number of steps to where the file has them."""
        path = self._checkpoint.path
        header, tensors = _unpack(path)
        if header.get("identity") != self._identity:
            raise AnotherRun(
                f"checkpoint {path} belongs to a different run (rows, model or arguments changed); "
                "delete it to start over"
            )
        optimizer = self._optimizer
        with torch.no_grad():
            for name, p in optimizer.sampler.parameters.items():
                p.copy_(tensors[f"adapter/{name}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, key, *rest = name.split("/")
            if kind == "adam":
                moments.setdefault(int(key), {})[rest[0]] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        optimizer.steps = int(header["steps"])
        self.loss_sum = float(header["loss_sum"])

    def _pack(self) -> bytes:
        optimizer = self._optimizer
        tensors = {f"adapter/{name}": p.detach() for name, p in optimizer.sampler.parameters.items()}
        for key, state in optimizer.state_dict()["state"].items():
            tensors.update({f"adam/{key}/{kind}": tensor for kind, tensor in state.items()})
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = {
            "format": _FORMAT,
            "identity": self._identity,
            "steps": optimizer.steps,
            "loss_sum": self.loss_sum.hex(),
        }
        header["sha256"] = _checksum(header, tensors)
        packed: bytes = save(tensors, {"dp_sgd": json.dumps(header)})
        return packed


def fingerprint(model: nn.Module, rows: TokenRows, arguments: tuple[Any, ...]) -> str:
    """SHA-256 (hex) of all that a run computes from: the model with its adapter as given, the rows, the arguments.

    Repeating a seeded step on anything else would put the same noise on two different sums, and their difference
    would show the rows bare.
    """
    digest = hashlib.sha256(repr(arguments).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + b"\0" + repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(_raw(tensor))
    for tensor in (rows.input_ids, rows.attention_mask, rows.labels):
        digest.update(repr(tuple(tensor.shape)).encode() + _raw(tensor))
    return digest.hexdigest()


def _unpack(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(header, tensors) of a file; CorruptFile when it is not what was written."""
    try:
        content = path.read_bytes()
        tensors = load(content)
        header = metadata_of(content, "dp_sgd")
        checksum = header.pop("sha256")
        header["loss_sum"], loss_sum = str(header["loss_sum"]), float.fromhex(header["loss_sum"])
        intact = header["format"] == _FORMAT and checksum == _checksum(header, tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"checkpoint {path}: unreadable ({type(error).__name__})") from error
    if not intact:
        raise CorruptFile(f"checkpoint {path}: its content does not match its checksum")
    return {**header, "loss_sum": loss_sum}, tensors


def _checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0" + _raw(tensors[name]))
    return digest.hexdigest()


def _raw(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
