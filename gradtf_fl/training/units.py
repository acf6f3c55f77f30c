"""What is drawn and clipped as one: a row, or a person with a bounded number of their rows.

One person's rows reach a step as ONE gradient, that of the mean of their losses, of norm C at most. Adding or removing
a person then moves a step's sum by at most C, whatever the number of their rows: the subsampled Gaussian of a row, with
persons in the rows' place.

Who has more rows than ``rows_per_person`` gives others in every step: each of their rows has an equal chance, decided
by a keystream of its own that knows nobody else's rows. Sensitivity is C for any choice; drawing again lets all rows
count in the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradtf_fl.errors import ConfigError
from gradtf_fl.training.randomness import Draws

if TYPE_CHECKING:
    from gradtf_fl.tasks import Persons, TokenRows


@dataclass(frozen=True)
class Drawn:
    """Rows [B] of one step, person by person; ``owners`` [B] counts the persons from 0. None: each row for itself."""

    rows: Tensor
    owners: Tensor | None = None


@dataclass(frozen=True)
class Part:
    """Whose the rows of one forward pass are.

    Attributes:
        owners: [rows], counted from 0 in this part, ascending.
        shares: [rows], 1 / (rows of the same person in the whole step): their mean has these weights.
        places: [rows], how many rows of the same person stand before it in this part.
        goes_on: the last person has more rows in the next part.
    """

    owners: Tensor
    shares: Tensor
    places: Tensor
    goes_on: bool

    def by_unit(self, gradients: Tensor, begun: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Persons' gradients [persons, size] from those of their rows [rows, size], and that of one who goes on.

        Rows are added one after the other, so that neither a device nor the parts' borders change a bit.

        Args:
            begun: what an earlier part left of the first person.
        """
        if not len(gradients):
            return gradients, begun
        sums = gradients.new_zeros(int(self.owners[-1]) + 1, gradients.shape[1])
        if begun is not None:
            sums[0] = begun
        for place in range(int(self.places.max()) + 1):
            rows = (self.places == place).nonzero().view(-1)
            sums.index_add_(0, self.owners[rows], gradients[rows])  # one row a person: no order to choose
        return (sums[:-1], sums[-1].clone()) if self.goes_on else (sums, None)


def parts_of(owners: Tensor, size: int, device: torch.device) -> list[Part]:
    """Rows of ``owners`` [B] in parts of ``size``; one part of no rows, where there are none."""
    owners = owners.to(device)
    counts = torch.bincount(owners, minlength=1)
    shares = 1 / counts.float()
    parts = []
    for start in range(0, max(1, len(owners)), size):
        own = owners[start : start + size]
        first = own[:1]
        local = own - first if len(own) else own
        before = torch.arange(len(own), device=device) - torch.searchsorted(own, own)
        after = owners[start + size : start + size + 1]
        goes_on = len(after) > 0 and bool(after[0] == own[-1])
        parts.append(Part(local, shares[own], before, goes_on))
    return parts


class Units:
    """All units of a run: its rows, or its persons."""

    def __init__(self, count: int, persons: Persons | None) -> None:
        self._count, self._persons = count, persons
        if persons is not None:
            self._sizes = torch.tensor(persons.sizes)
            self._rows = torch.tensor([row for own in persons.rows for row in own])
            self._starts = self._sizes.cumsum(0) - self._sizes

    @classmethod
    def of(cls, rows: TokenRows, persons: Persons | None) -> Units:
        """Units of ``rows``.

        Raises:
            ConfigError: not every row is one person's, or persons may have no rows at all.
        """
        if persons is not None:
            if sorted(row for own in persons.rows for row in own) != list(range(len(rows))):
                raise ConfigError(f"persons: each of the {len(rows)} rows must be one person's")
            if persons.most < 1 or not all(persons.rows):
                raise ConfigError("persons: everybody must have a row, and rows_per_person must be at least 1")
        return cls(len(rows), persons)

    def __len__(self) -> int:
        return self._count if self._persons is None else len(self._persons)

    @property
    def most(self) -> int:
        """Rows of one unit in one step at most."""
        return 1 if self._persons is None else min(self._persons.most, int(self._sizes.max()))

    def drawn(self, draws: Draws, step: int, q: float) -> Drawn:
        """Each unit with probability ``q``; of a person's rows, so many as may be."""
        chosen = draws.rows(step, len(self), q)
        if self._persons is None:
            return Drawn(chosen)
        most = self._persons.most
        order = draws.order(step, self._count) if bool((self._sizes > most).any()) else None
        rows, owners = [], []
        for number, person in enumerate(chosen.tolist()):
            start, size = int(self._starts[person]), int(self._sizes[person])
            own = self._rows[start : start + size]
            if order is not None and size > most:
                own = own[order[own].argsort()[:most].sort().values]
            rows.append(own)
            owners.append(torch.full((len(own),), number))
        nobody = torch.zeros(0, dtype=torch.long)
        return Drawn(torch.cat([nobody, *rows]), torch.cat([nobody, *owners]))
