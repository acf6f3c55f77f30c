"""Flower's arrays as what the protocol sums: one vector of differences, and the hash of where they start.

Float arrays are summed. Others (counters, masks, indices) are not: they stay as the server has them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from gradtf_fl.round_messages import MalformedFields
from gradtf_fl.secagg import Floats

Arrays = dict[str, NDArray[np.generic]]
Model = Mapping[str, NDArray[np.generic]]


def decoded(record: ArrayRecord) -> Arrays:
    """The arrays of a record, in their order.

    Raises:
        MalformedFields: one is not a plain numpy array, or not of the type and shape that its label says: an app may
            read either.
    """
    arrays: Arrays = {}
    for name, array in record.items():
        try:
            arrays[name] = array.numpy()
        except (TypeError, ValueError, OSError, EOFError) as error:
            raise MalformedFields("an array of the model cannot be read as a numpy array") from error
        found = arrays[name]
        if not isinstance(found, np.ndarray) or (str(found.dtype), found.shape) != (array.dtype, tuple(array.shape)):
            raise MalformedFields("an array of the model is another one than its label says")
    return arrays


def encoded(arrays: Model) -> ArrayRecord:
    """A record of these arrays, in their order."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def floats(arrays: Model) -> list[str]:
    """Names of the arrays that are summed."""
    return [name for name, array in arrays.items() if array.dtype.kind == "f"]


def dimension(arrays: Model) -> int:
    """Coordinates of the vector of differences."""
    return sum(arrays[name].size for name in floats(arrays))


def difference(before: Model, after: Model) -> NDArray[np.float32]:
    """What training changed, float32 [`dimension`], array after array in the order of ``before``.

    Raises:
        ValueError: other names or shapes than ``before``, or values that are not finite in float32; all named.
    """
    problems = []
    if lacking := sorted(before.keys() - after.keys()):
        problems.append(f"missing: {', '.join(lacking)}")
    if foreign := sorted(after.keys() - before.keys()):
        problems.append(f"not in the model that was sent: {', '.join(foreign)}")
    vector, at = np.empty(dimension(before), np.float32), 0
    for name in floats(before):
        part, at = vector[at : at + before[name].size], at + before[name].size
        if name not in after:
            continue
        if after[name].shape != before[name].shape or after[name].dtype.kind != "f":
            problems.append(f"{name} is {_form(after[name])}, not {_form(before[name])}")
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            part[:] = np.subtract(after[name], before[name], dtype=np.float64).ravel()
        if not np.isfinite(part).all():
            problems.append(f"{name} has values that are not finite")
    if problems:
        raise ValueError("; ".join(problems))
    return vector


def moved(before: Model, mean: Floats) -> Arrays:
    """``before`` plus a mean difference [`dimension`], each array in its own type; those not float as before."""
    arrays, at = dict(before), 0
    for name in floats(before):
        old = before[name]
        part, at = mean[at : at + old.size].reshape(old.shape), at + old.size
        arrays[name] = (old.astype(np.float64) + part).astype(old.dtype)
    return arrays


def unsummed_kept(before: Model, record: ArrayRecord) -> ArrayRecord:
    """``record``, in which the arrays of ``before`` that are not float are what they were.

    A strategy that multiplies all arrays by a weight turns counters into floats, which would be summed from then on.
    """
    kept = set(before) - set(floats(before))
    return ArrayRecord(
        {name: Array(np.asarray(before[name])) if name in kept else array for name, array in record.items()}
    )


def model_digest(arrays: Model) -> bytes:
    """SHA-256 over names, types, shapes and values, in order; what C binds as the start of a round (32 bytes)."""
    digest = hashlib.sha256(b"gradtf/flower/model/v1\0")
    for name, array in arrays.items():
        for part in (name.encode(errors="surrogatepass"), array.dtype.str.encode()):
            digest.update(len(part).to_bytes(8, "big") + part)
        digest.update(array.ndim.to_bytes(8, "big"))
        for size in (*array.shape, array.nbytes):
            digest.update(size.to_bytes(8, "big"))
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()


def records_digest(content: RecordDict) -> bytes:
    """SHA-256 over records of settings and figures, by name (32 bytes): names, keys, types and values.

    Raises:
        MalformedFields: a record of arrays is among them.
    """
    digest = hashlib.sha256(b"gradtf/flower/records/v1\0")
    for name in sorted(content):
        record = content[name]
        if not isinstance(record, ConfigRecord | MetricRecord):
            raise MalformedFields("a message has more than one record of arrays")
        _take(digest, type(record).__name__, name, str(len(record)))
        for key in sorted(record):
            value = record[key]
            values = value if isinstance(value, list) else [value]
            _take(digest, key, type(value).__name__, str(len(values)))
            for one in values:
                _take(digest, type(one).__name__, one if isinstance(one, bytes) else _text(one))
    return digest.digest()


def _take(digest: hashlib._Hash, *parts: str | bytes) -> None:
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)


def _text(value: object) -> str:
    return value.hex() if isinstance(value, float) and math.isfinite(value) else str(value)


def _form(array: NDArray[np.generic]) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"
