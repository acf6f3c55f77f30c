"""On PYTHONPATH this makes a Python program believe in another time: GRADTF_TEST_CLOCK seconds from now."""

import datetime
import os
import time

SHIFT = float(os.environ.get("GRADTF_TEST_CLOCK", "0"))
_time, _datetime = time.time, datetime.datetime


class Shifted(_datetime):
    """`datetime` by the shifted clock."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _datetime:
        return _datetime.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> _datetime:
        return _datetime.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)


if SHIFT:
    time.time = lambda: _time() + SHIFT
    datetime.datetime = Shifted  # type: ignore[misc]
