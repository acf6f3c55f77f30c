"""How identifiable each organization is by the sums that the server has opened, from its records of rounds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gradtf_fl.secagg import Identifiability, identifiability

Records = Iterable[Mapping[str, Any]]


def identifiability_of(records: Records) -> Identifiability[str]:
    """Of every organization (hex key) that is in a sum, those of rejected rounds included."""
    return identifiability([keys for record in records for keys in _sums(record)])


def _sums(record: Mapping[str, Any]) -> list[Collection[str]]:
    if opened := record.get("opened"):
        return list(opened)
    sums = record.get("sums") or [record.get("included", ())]  # a record of an earlier version
    return [keys for keys in sums if keys]


def identifiability_document(records: Records) -> dict[str, Any]:
    """JSON form: rank, organizations, those identified, and each one's share."""
    found = identifiability_of(records)
    return {
        "rank": found.rank,
        "organizations": len(found.shares),
        "identified": list(found.identified),
        "shares": {key: round(share, 6) for key, share in found.shares.items()},
    }


def identifiability_in_words(records: Records, names: Mapping[str, str] | None = None) -> str:
    """One sentence; empty before the first sum.

    Args:
        names: hex key -> what to call that organization; without it, the key's first digits.
    """
    found, names = identifiability_of(records), names or {}
    if not found.shares:
        return ""
    text = f"{found.rank} independent over {len(found.shares)} organizations: "
    if not found.identified:
        return text + f"no update follows from them (at most {max(found.shares.values()):.2f} of one)"
    who = [names.get(key) or key[:8] for key in found.identified]
    more = f" and {len(who) - 5} more" if len(who) > 5 else ""
    return text + f"they give the update of {', '.join(who[:5])}{more}, as far as it is alike in all rounds"
