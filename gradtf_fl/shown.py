"""Text of strangers, made fit for a terminal, a log and a page. Every one of them goes through `shown`."""

from __future__ import annotations

LONGEST = 4000
"""Characters of one line."""


def shown(text: object, most: int = LONGEST) -> str:
    """``text`` as one line of at most about ``most`` characters, with whatever a reader would obey spelled out.

    That is what `str.isprintable` denies: control characters and escape sequences, line ends of any kind, marks that
    reverse the writing, lone surrogates.

    >>> shown("bank/ledger.sqlite: sound\\n\\x1b[2J")
    'bank/ledger.sqlite: sound\\\\n\\\\x1b[2J'
    """
    line = str(text)
    left_out = len(line) - most
    if left_out > 0:
        line = line[:most]
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in line)
    return f"{line} ... ({left_out:,} more characters)" if left_out > 0 else line
