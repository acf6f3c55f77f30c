"""Who holds which rows: the usual ways to share a data set out among organizations, by labels.

They mean what the partitioners of the same names in Flower Datasets mean:

    iid           at random, equal sizes
    dirichlet     of each label, shares drawn from Dirichlet(alpha) over organizations (Hsu et al. 2019)
    shards        sorted by label, cut into equal pieces, some pieces for each organization (McMahan et al. 2017)
    pathological  some labels for each organization, a label's rows shared evenly among those that have it
    sizes         at random, sizes in given proportions
    natural       one organization for each label
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.config import SharingOut
from gradtf_fl.errors import ConfigError

Indices = NDArray[np.int64]
DRAWS = 200
"""Of Dirichlet shares, until every organization has enough rows."""
_KEY = 0x50415254


def share_out(labels: Sequence[str], organizations: int, settings: SharingOut, least: int, seed: int) -> list[Indices]:
    """Indices of each organization's rows, in random order; every row is held by at most one.

    Args:
        labels: of each row.
        least: rows that an organization needs.
        seed: of all draws.

    Raises:
        ConfigError: an organization would have too few rows, or labels and organizations do not fit together.
    """
    rng = np.random.default_rng([seed, _KEY])
    names = np.array(labels)
    parts = _PARTITIONS[settings.partition](names, organizations, settings, least, rng)
    small = [f"org-{i} would hold {len(part)}" for i, part in enumerate(parts, 1) if len(part) < least]
    if small:
        raise ConfigError(
            f"partition {settings.partition}: {', '.join(small)} of {len(labels)} private rows, and an organization "
            f"needs {least} (the batch); fewer organizations, a smaller batch, or another partition"
        )
    return [rng.permutation(part) for part in parts]


def share_out_alike(labels: Sequence[str], like: Sequence[str], parts: Sequence[Indices], seed: int) -> list[Indices]:
    """Other rows, shared out in the proportions in which ``parts`` hold rows of the same label.

    Args:
        labels: of the rows to share out.
        like: of the rows that ``parts`` point to.
    """
    rng = np.random.default_rng([seed, _KEY, 1])
    names, held = np.array(labels), np.array(like)
    whole = np.array([len(part) for part in parts], dtype=float)
    made: list[list[int]] = [[] for _ in parts]
    for label in sorted(set(labels)):
        counts = np.array([(held[part] == label).sum() for part in parts], dtype=float)
        shares = counts if counts.sum() else whole
        for part, chosen in zip(made, _cut(rng.permutation(np.flatnonzero(names == label)), shares), strict=True):
            part.extend(chosen.tolist())
    return [rng.permutation(np.array(part, dtype=np.int64)) for part in made]


def _iid(
    names: NDArray[np.str_], count: int, settings: SharingOut, least: int, rng: np.random.Generator
) -> list[Indices]:
    return _cut(rng.permutation(len(names)), np.ones(count))


def _sizes(
    names: NDArray[np.str_], count: int, settings: SharingOut, least: int, rng: np.random.Generator
) -> list[Indices]:
    return _cut(rng.permutation(len(names)), np.array(settings.sizes))


def _dirichlet(
    names: NDArray[np.str_], count: int, settings: SharingOut, least: int, rng: np.random.Generator
) -> list[Indices]:
    kinds = _several(names, "dirichlet")
    for _ in range(DRAWS):
        parts: list[list[Indices]] = [[] for _ in range(count)]
        for kind in kinds:
            rows = rng.permutation(np.flatnonzero(names == kind))
            for part, chosen in zip(parts, _cut(rows, rng.dirichlet([settings.alpha] * count)), strict=True):
                part.append(chosen)
        made = [np.concatenate(part) for part in parts]
        if min(map(len, made)) >= least:
            break
    return made


def _shards(
    names: NDArray[np.str_], count: int, settings: SharingOut, least: int, rng: np.random.Generator
) -> list[Indices]:
    _several(names, "shards")
    order = rng.permutation(len(names))
    order = order[np.argsort(names[order], kind="stable")]
    pieces = np.array_split(order, count * settings.labels_each)
    chosen = rng.permutation(len(pieces)).reshape(count, settings.labels_each)
    return [np.concatenate([pieces[i] for i in mine]) for mine in chosen]


def _pathological(
    names: NDArray[np.str_], count: int, settings: SharingOut, least: int, rng: np.random.Generator
) -> list[Indices]:
    kinds, each = _several(names, "pathological"), settings.labels_each
    if each > len(kinds):
        raise ConfigError(f"partition pathological: labels_each is {each}, the rows have {len(kinds)} labels")
    turns = rng.permutation(len(kinds))  # every label has an organization, as far as there are enough
    owned = [{int(turns[(i * each + k) % len(kinds)]) for k in range(each)} for i in range(count)]
    parts: list[list[Indices]] = [[] for _ in range(count)]
    for number, kind in enumerate(kinds):
        owners = [i for i, mine in enumerate(owned) if number in mine]
        rows = rng.permutation(np.flatnonzero(names == kind))
        for owner, chosen in zip(owners, _cut(rows, np.ones(max(1, len(owners)))), strict=False):
            parts[owner].append(chosen)
    return [np.concatenate(part) if part else np.empty(0, np.int64) for part in parts]


def _natural(
    names: NDArray[np.str_], count: int, settings: SharingOut, least: int, rng: np.random.Generator
) -> list[Indices]:
    largest = [kind for kind, _ in Counter(names.tolist()).most_common(count)]
    if len(largest) < count:
        raise ConfigError(
            f"partition natural: {settings.by} has {len(largest)} values, and {count} organizations are required"
        )
    return [np.flatnonzero(names == kind) for kind in largest]


_PARTITIONS = {
    "iid": _iid,
    "sizes": _sizes,
    "dirichlet": _dirichlet,
    "shards": _shards,
    "pathological": _pathological,
    "natural": _natural,
}


def _several(names: NDArray[np.str_], partition: str) -> list[str]:
    kinds = sorted(set(names.tolist()))
    if len(kinds) < 2:
        raise ConfigError(
            f"partition {partition}: all rows have one label, {kinds[0]!r}; name the field that tells them apart (by), "
            "several sources, or take iid"
        )
    return kinds


def _cut(rows: Indices, shares: NDArray[np.float64]) -> list[Indices]:
    """``rows`` in consecutive parts in these proportions; a row that is left goes to the largest remainder."""
    wanted = shares / shares.sum() * len(rows)
    counts = np.floor(wanted).astype(int)
    for place in np.argsort(counts - wanted, kind="stable")[: len(rows) - int(counts.sum())]:
        counts[place] += 1
    return np.split(rows, np.cumsum(counts)[:-1])
