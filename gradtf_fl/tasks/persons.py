"""Whose rows are whose, where an epsilon is a person's and not a row's.

A person is a value of one field (`[privacy] unit`): all rows that have it, in whatever file, are one person's. Case and
spacing do not tell two persons apart, nor do two ways to write a letter in Unicode or characters that nobody sees, nor
7, 7.0 and 007, as one table has what another has otherwise: where two names may be one person's, taking them for one
protects both.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

from gradtf_fl.tasks.columns import value_at
from gradtf_fl.tasks.reading import MalformedRow
from gradtf_fl.tasks.rows import Row
from gradtf_fl.tasks.text_tasks import same_text

K = TypeVar("K", bound=Hashable)
_LARGE = re.compile(r"-?[0-9](\.[0-9]+)?e\+([0-9]{2}|[12][0-9]{2})")  # a float from 1e16 on, as Python writes it
_WHOLE = re.compile(r"(-?)0*(\d+?)(?:\.0+)?")


def person_of(fields: Mapping[str, Any], field: str) -> str:
    """The person that ``field`` names. MalformedRow where it has no value, or one that is neither text nor a number."""
    try:
        value = value_at(fields, field)
    except MalformedRow as reason:
        raise MalformedRow(f"{reason}, which says whose row it is (privacy.unit)") from None
    if _LARGE.fullmatch(value):
        value = str(int(float(value)))
    seen = (letter for letter in unicodedata.normalize("NFKC", value) if unicodedata.category(letter) != "Cf")
    text = same_text(unicodedata.normalize("NFKC", "".join(seen)))
    if not text or value == "nan":  # a table's hole, of a column of numbers
        raise MalformedRow(f"its {field!r} is empty, which says whose row it is (privacy.unit)")
    number = _WHOLE.fullmatch(text)
    return "".join(number.groups()) if number else text


@dataclass(frozen=True)
class Persons:
    """All rows, person by person.

    >>> from gradtf_fl import Persons, Row
    >>> persons = Persons.of([Row("2+2=", "4", person=name) for name in ("ann", "bo", "ann")], most=1)
    >>> len(persons), persons.rows, persons.left_out
    (2, ((0, 2), (1,)), 1)

    Attributes:
        rows: of each person, the numbers of their rows, in order; persons in order of appearance.
        most: rows that a person adds to one step at most.
    """

    rows: tuple[tuple[int, ...], ...]
    most: int

    @classmethod
    def of(cls, rows: Iterable[Row], most: int) -> Persons:
        """The persons of ``rows``, each of which has one."""
        found = grouped(row.person for row in rows)
        assert None not in found, "a row without its person"
        return cls(tuple(tuple(own) for own in found.values()), most)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> list[int]:
        """Rows of each person."""
        return [len(own) for own in self.rows]

    @property
    def left_out(self) -> int:
        """Rows that a step leaves out even if it draws everybody."""
        return sum(max(0, size - self.most) for size in self.sizes)

    def __str__(self) -> str:
        sizes = self.sizes
        middle = median(sizes)
        return (
            f"{len(sizes):,} persons of {min(sizes):,} to {max(sizes):,} rows (median {middle:,g}), at most "
            f"{self.most} of each in a step"
            + (f": {self.left_out:,} of {sum(sizes):,} rows are beyond that" if self.left_out else "")
        )


def grouped(names: Iterable[K]) -> dict[K, list[int]]:
    """Places of each name, in order of appearance."""
    found: dict[K, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(name, []).append(place)
    return found


def count_units(rows: Iterable[Row]) -> int:
    """How many are drawn as one: persons where ``rows`` name theirs, else the rows."""
    return len(of_each([row.person for row in rows]))


def of_each(names: Sequence[str | None]) -> list[list[int]]:
    """Places of each person's rows; where nobody is named, every row for itself."""
    if None in names:
        return [[place] for place in range(len(names))]
    return list(grouped(names).values())
