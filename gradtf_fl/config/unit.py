"""Whose an epsilon is: a row's, or a person's with all rows of theirs. The same words in every file."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from gradtf_fl.config.base import Count, Section

ROW = "row"


class UnitSection(Section):
    """What counts as one: added or removed as a whole, drawn as a whole, clipped as a whole.

    Attributes:
        unit: row, or the field of a row that says whose it is (patient, customer.id, author): all rows with one value
            there are one person's, and epsilon is a person's.
        rows_per_person: most rows that a person adds to one step; of more rows, each step draws this many.
    """

    unit: Annotated[str, StringConstraints(min_length=1)] = ROW
    rows_per_person: Count = 4

    @property
    def person(self) -> str | None:
        """The field of a row that says whose it is; None where every row counts for itself."""
        return None if self.unit == ROW else self.unit
