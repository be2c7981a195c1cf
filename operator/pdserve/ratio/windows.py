"""Windows by clock: what a scenario is to hold at given times of given days, in a time zone.

A window is open from the first moment of its day at which the clock shows `start` or more, to the
last at which it shows less than `end`. So where clocks go forward over `start` it opens as they do,
and one that lies wholly in the hour that is left out is not open that day; where clocks go back, it
opens at the first of the two equal times and closes at the second. It holds from `lead` seconds
before it opens, so that what it asks for serves when it does. Of windows that overlap, each of the
counts and the rate is the largest.

1 The days around now, in the window's zone. 2 The moments of each. 3 What holds now, and until
when. Pure: the time is an argument; zones are read by `terms.zones`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo

from pdserve.ratio.types import LoopSettings, WindowFloor
from pdserve.terms.zones import zone_of

DAY = 86_400
MARGIN = 1.25
"""A start may take longer than the median of the last ones by that factor."""
MAX_LEAD = float(DAY)
"""Seconds; a start that takes longer is not waited for."""
_BEFORE, _AFTER = 3, 10
"""Days that are looked at: a window lasts up to a day, and a weekly one comes again in seven."""


@dataclass(frozen=True, slots=True)
class TrafficWindow:
    """A time of day, on some days of the week, and what is to be there then."""

    name: str
    days: tuple[int, ...]
    """Days on which it opens, Monday 0; none: every day."""
    start: int
    """Seconds after midnight by the clock of `zone`, 0 to 86,399."""
    end: int
    """Likewise, up to 86,400; not after `start`: of the next day."""
    zone: str
    """IANA name of the time zone."""
    groups: int = 0
    """Fewest P/D groups; 0: as the bounds say. Likewise the next two, in each P/D group."""
    prefill: int = 0
    decode: int = 0
    rate: float = 0.0
    """Requests per second to be ready for; 0: as measured."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A window on one day; seconds since the epoch."""

    window: TrafficWindow
    opens: float
    closes: float


@dataclass(frozen=True, slots=True)
class WindowsNow:
    """What windows say at one moment."""

    floor: WindowFloor | None
    """None: none holds."""
    open: tuple[Occurrence, ...]
    """Those that hold now, also before they open; by when they open, then by name."""
    coming: Occurrence | None
    """The next that will hold."""
    next_change: float
    """When this may be different; infinite where never."""


NO_WINDOWS = WindowsNow(None, (), None, math.inf)


def lead_of(settings: LoopSettings) -> float:
    """Seconds before a window opens from which on it holds: a start with margin, and two rounds."""
    return min(MARGIN * settings.cold_start + 2.0 * settings.fast_period, MAX_LEAD)


def windows_at(windows: Iterable[TrafficWindow], now: float, lead: float) -> WindowsNow:
    """What the windows say at `now`; `lead`: seconds for which they hold before they open.

    Raises:
        KeyError, ValueError, OSError: a zone is not known (`terms.zones.is_zone`).
    """
    found = sorted(
        (o for window in windows for o in _around(window, now)),
        key=lambda o: (o.opens, o.window.name),
    )
    if not found:
        return NO_WINDOWS
    held = tuple(o for o in found if o.opens - lead <= now < o.closes)
    later = [o for o in found if o.opens - lead > now]
    moments = [o.opens - lead for o in later] + [o.closes for o in held]
    moments += [o.opens for o in held if o.opens > now]
    # Windows of days that are not looked at yet: not before this.
    moments.append(now + (_AFTER - 1) * DAY - lead)
    return WindowsNow(_floor(held), held, later[0] if later else None, min(moments))


def _floor(held: Sequence[Occurrence]) -> WindowFloor | None:
    if not held:
        return None
    return WindowFloor(
        names=tuple(dict.fromkeys(o.window.name for o in held)),
        groups=max(o.window.groups for o in held),
        prefill=max(o.window.prefill for o in held),
        decode=max(o.window.decode for o in held),
        rate=max(o.window.rate for o in held),
        opens=held[-1].opens,
        closes=max(o.closes for o in held),
    )


def _around(window: TrafficWindow, now: float) -> Iterator[Occurrence]:
    """The window on the days around `now`; days on which it is empty are left out."""
    zone = zone_of(window.zone)
    today = datetime.fromtimestamp(now, zone).date()
    for offset in range(-_BEFORE, _AFTER + 1):
        day = today + timedelta(days=offset)
        if window.days and day.weekday() not in window.days:
            continue
        opens = _first(_wall(day, window.start), zone)
        closes = _last(_wall(day, window.end + DAY * (window.end <= window.start)), zone)
        if opens < closes:
            yield Occurrence(window, opens, closes)


def _wall(day: date, seconds: int) -> datetime:
    """The clock's time so many seconds after midnight, as if no clock were ever changed."""
    return datetime.combine(day, time()) + timedelta(seconds=seconds)


def _first(wall: datetime, zone: tzinfo) -> float:
    """The first moment at which the clock shows `wall` or more."""
    one, other = (_moment(wall, zone, fold) for fold in (0, 1))
    return one if one <= other else _jump(wall, zone, other, one)


def _last(wall: datetime, zone: tzinfo) -> float:
    """The moment from which on the clock shows `wall` or more for good."""
    one, other = (_moment(wall, zone, fold) for fold in (0, 1))
    return other if one <= other else _jump(wall, zone, other, one)


def _moment(wall: datetime, zone: tzinfo, fold: int) -> float:
    return wall.replace(tzinfo=zone, fold=fold).timestamp()


def _jump(wall: datetime, zone: tzinfo, early: float, late: float) -> float:
    """When clocks go forward over `wall`, to the second: between `early` and `late` (PEP 495)."""
    low, high = math.floor(early) - 1, math.ceil(late)
    while high - low > 1:
        middle = (low + high) // 2
        shown = datetime.fromtimestamp(middle, zone).replace(tzinfo=None)
        low, high = (low, middle) if shown >= wall else (middle, high)
    return float(high)
