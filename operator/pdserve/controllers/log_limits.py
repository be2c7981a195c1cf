"""Keeps a lasting failure, or one of a thousand objects at once, from filling the log.

The same cause is met again at every tick, and a tenant can make as many bad objects as a namespace
holds. The log gets the first lines of a kind, and later how many like them were left out;
conditions, Events and metrics still report each. Lines with fields report actions (`kube.lines`):
their number follows the work, so all of them are written, and so is everything below INFO.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from pdserve.kube.lines import FIELDS

SAME_BURST: Final = 5
"""Lines of one place in the code about one subject (its first two arguments) written at once."""
SAME_REFILL: Final = 600.0
"""Seconds after which one more of them is written."""
PLACE_BURST: Final = 200
"""Lines of one place in the code written at once, whatever they are about."""
PLACE_REFILL: Final = 10.0
"""Seconds after which one more of them is written."""
MAX_REMEMBERED: Final = 4096
MAX_SUBJECT: Final = 200
"""Characters of a subject that tell it from others."""


@dataclass(slots=True)
class _Allowance:
    left: float
    at: float


class Sparing(logging.Filter):
    """Lets a record through while its subject and its place in the code have lines left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: monotonic seconds."""
        super().__init__()
        self._clock = clock
        self._allowances: OrderedDict[Hashable, _Allowance] = OrderedDict()
        self._left_out: dict[Hashable, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """See the class; the next line of a place says how many were left out before it."""
        if getattr(record, FIELDS, None) or record.levelno < logging.INFO:
            return True
        place = (record.pathname, record.lineno)
        args = record.args if isinstance(record.args, tuple) else ()
        subject = tuple(str(a)[:MAX_SUBJECT] for a in (record.msg, *args[:2]))
        allowed = self._allowed((place, subject), SAME_BURST, SAME_REFILL)
        if not (allowed and self._allowed(place, PLACE_BURST, PLACE_REFILL)):
            self._left_out[place] = self._left_out.get(place, 0) + 1
            return False
        if missing := self._left_out.pop(place, 0):
            record.msg = f"{record.msg} ({missing} lines like this were left out)"
        return True

    def _allowed(self, key: Hashable, burst: int, refill: float) -> bool:
        now = self._clock()
        held = self._allowances.setdefault(key, _Allowance(burst, now))
        self._allowances.move_to_end(key)
        if len(self._allowances) > MAX_REMEMBERED:
            self._allowances.popitem(last=False)
        held.left, held.at = min(burst, held.left + (now - held.at) / refill), now
        if held.left < 1:
            return False
        held.left -= 1
        return True
