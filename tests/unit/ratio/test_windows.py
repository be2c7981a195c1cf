"""Windows by clock: when they hold, over midnight, changes of clocks and in several zones."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.ratio.types import LoopSettings
from pdserve.ratio.windows import (
    DAY,
    MAX_LEAD,
    NO_WINDOWS,
    TrafficWindow,
    WindowsNow,
    lead_of,
    windows_at,
)

HOUR = 3600
ZONES = (
    "UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York", "America/Sao_Paulo",
    "Asia/Beirut", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu", "Africa/Casablanca",
)  # fmt: skip
"""Half hours, changes at midnight and of half an hour, a day that was left out, two changes a year
besides the usual ones."""


def clock(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * HOUR + int(minutes) * 60


def daily(start: str, end: str, zone: str = "UTC", **over: Any) -> TrafficWindow:
    values: dict[str, Any] = {"name": "day", "days": (), "groups": 2}
    return TrafficWindow(start=clock(start), end=clock(end), zone=zone, **(values | over))


def at(text: str, zone: str = "UTC", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def holds(window: TrafficWindow, when: float, lead: float = 0.0) -> bool:
    return windows_at([window], when, lead).floor is not None


@pytest.mark.parametrize(
    ("window", "moment", "want"),
    [
        # 2026-06-01 is a Monday.
        (daily("08:00", "22:00"), "2026-06-01T07:59:59", False),
        (daily("08:00", "22:00"), "2026-06-01T08:00:00", True),
        (daily("08:00", "22:00"), "2026-06-01T21:59:59", True),
        (daily("08:00", "22:00"), "2026-06-01T22:00:00", False),
        (daily("22:00", "06:00"), "2026-06-01T23:30:00", True),
        (daily("22:00", "06:00"), "2026-06-02T05:59:59", True),
        (daily("22:00", "06:00"), "2026-06-02T06:00:00", False),
        (daily("22:00", "06:00", days=(0,)), "2026-06-01T05:00:00", False),
        (daily("22:00", "06:00", days=(0,)), "2026-06-02T05:00:00", True),
        (daily("22:00", "06:00", days=(0,)), "2026-06-03T05:00:00", False),
        (daily("00:00", "24:00", days=(0,)), "2026-06-01T23:59:59", True),
        (daily("00:00", "24:00", days=(0,)), "2026-06-02T00:00:00", False),
        (daily("09:00", "09:00", days=(0,)), "2026-06-02T08:59:59", True),
        (daily("09:00", "09:00", days=(0,)), "2026-06-02T09:00:00", False),
    ],
)
def test_a_window_holds_by_the_clock(window: TrafficWindow, moment: str, want: bool) -> None:
    assert holds(window, at(moment)) is want


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/New_York", "Asia/Kathmandu"])
def test_the_clock_is_that_of_its_zone(zone: str) -> None:
    window = daily("08:00", "22:00", zone)
    assert not holds(window, at("2026-06-01T07:59:59", zone))
    assert holds(window, at("2026-06-01T08:00:00", zone))


BERLIN = "Europe/Berlin"
"""Forward on 2026-03-29 from 02:00 to 03:00, back on 2026-10-25 from 03:00 to 02:00."""


def test_a_window_whose_start_is_left_out_opens_as_the_clocks_go_forward() -> None:
    window, jump = daily("02:30", "05:00", BERLIN), at("2026-03-29T01:00:00")
    assert not holds(window, jump - 1)
    assert holds(window, jump)


def test_a_window_whose_end_is_left_out_closes_as_the_clocks_go_forward() -> None:
    window, jump = daily("01:00", "02:30", BERLIN), at("2026-03-29T01:00:00")
    assert holds(window, jump - 1)
    assert not holds(window, jump)


def test_a_window_in_the_hour_left_out_is_not_open_that_day() -> None:
    window = daily("02:10", "02:50", BERLIN)
    sunday = at("2026-03-29T00:00:00", BERLIN)
    assert not any(holds(window, sunday + minute * 60) for minute in range(23 * 60))
    assert holds(window, at("2026-03-30T02:30:00", BERLIN))


def test_a_window_at_the_hour_that_comes_twice_holds_through_both() -> None:
    window = daily("02:15", "02:45", BERLIN)
    first, second = (at("2026-10-25T02:15:00", BERLIN, fold) for fold in (0, 1))
    assert second - first == HOUR
    found = [holds(window, first + seconds) for seconds in (-1, 0, HOUR, HOUR + 1799, HOUR + 1800)]
    assert found == [False, True, True, True, False]


def test_a_day_that_a_zone_left_out_has_no_window() -> None:
    """Samoa went over the date line: no 30 December 2011, a Friday."""
    window = daily("08:00", "10:00", "Pacific/Apia", days=(4,))
    start = at("2011-12-29T00:00:00", "Pacific/Apia")
    assert not any(holds(window, start + minute * 600) for minute in range(2 * 144))


def test_it_holds_ahead_by_the_lead_and_not_beyond_its_end() -> None:
    window, opens = daily("08:00", "09:00"), at("2026-06-01T08:00:00")
    found = windows_at([window], opens - 90, 90)
    assert found.floor is not None
    assert (found.floor.opens, found.floor.closes) == (opens, opens + HOUR)
    assert found.next_change == opens
    assert not holds(window, opens - 91, 90)
    assert not holds(window, opens + HOUR, 90)


def test_of_overlapping_windows_each_figure_is_the_largest() -> None:
    day = daily("08:00", "20:00", name="day", groups=2, prefill=3, rate=4.0)
    peak = daily("12:00", "14:00", name="peak", groups=1, decode=5, rate=9.0)
    found = windows_at([peak, day], at("2026-06-01T13:00:00"), 0.0)
    assert found.floor is not None
    assert found.floor.names == ("day", "peak")
    assert (found.floor.groups, found.floor.prefill, found.floor.decode) == (2, 3, 5)
    assert found.floor.rate == 9.0
    assert found.next_change == at("2026-06-01T14:00:00")


def test_the_coming_window_is_found() -> None:
    found = windows_at([daily("08:00", "09:00", days=(6,))], at("2026-06-01T08:00:00"), 60.0)
    assert found.floor is None
    assert found.coming is not None
    assert found.coming.opens == at("2026-06-07T08:00:00")
    assert found.next_change == found.coming.opens - 60.0


def test_without_windows_nothing_ever_changes() -> None:
    assert windows_at([], 0.0, 60.0) == NO_WINDOWS
    assert windows_at([], 0.0, 60.0).next_change == math.inf


def test_the_lead_is_a_start_with_margin_and_bounded() -> None:
    assert lead_of(LoopSettings(cold_start=100.0, fast_period=5.0)) == 135.0
    assert lead_of(LoopSettings(cold_start=1e9)) == MAX_LEAD


@pytest.mark.parametrize("zone", ["Mars/Phobos", "../../etc/passwd", "Asia"])
def test_an_unknown_zone_raises(zone: str) -> None:
    with pytest.raises((KeyError, ValueError, OSError)):
        windows_at([daily("08:00", "09:00", zone)], 0.0, 0.0)


# --- properties -------------------------------------------------------------------------------

TIMES = st.integers(0, 24 * 12 - 1).map(lambda n: n * 300)
WINDOWS = st.builds(
    TrafficWindow,
    name=st.sampled_from(["a", "b"]),
    days=st.lists(st.integers(0, 6), max_size=3, unique=True).map(tuple),
    start=TIMES,
    end=TIMES | st.just(DAY),
    zone=st.sampled_from(ZONES),
    groups=st.integers(0, 4),
    prefill=st.integers(0, 4),
    rate=st.sampled_from([0.0, 3.0]),
)
MOMENTS = st.datetimes(datetime(2008, 1, 1), datetime(2030, 1, 1)).map(
    lambda d: float(int(d.replace(tzinfo=UTC).timestamp()))
)


def shown(window: TrafficWindow, when: float) -> tuple[int, datetime]:
    there = datetime.fromtimestamp(when, ZoneInfo(window.zone))
    return there.hour * HOUR + there.minute * 60 + there.second, there


def by_the_clock(window: TrafficWindow, when: float) -> bool:
    """The rule read off a clock on the wall; not near a change of clocks."""
    seconds, there = shown(window, when)
    days = window.days or tuple(range(7))
    today, yesterday = there.weekday(), (there - timedelta(days=1)).weekday()
    if window.start < window.end:
        return today in days and window.start <= seconds < window.end
    return (today in days and seconds >= window.start) or (
        yesterday in days and seconds < window.end
    )


def near_a_change(window: TrafficWindow, when: float) -> bool:
    zone = ZoneInfo(window.zone)
    offsets = {
        datetime.fromtimestamp(when + hours * HOUR, zone).utcoffset() for hours in range(-52, 53, 2)
    }
    return len(offsets) > 1


@given(WINDOWS, MOMENTS)
def test_away_from_changes_of_clocks_it_is_what_a_clock_shows(
    window: TrafficWindow, when: float
) -> None:
    if not near_a_change(window, when):
        assert holds(window, when) is by_the_clock(window, when)


@given(WINDOWS, MOMENTS)
def test_what_a_clock_shows_inside_is_never_missed(window: TrafficWindow, when: float) -> None:
    """Near changes it may hold longer than the clock shows, never less."""
    seconds, there = shown(window, when)
    if window.start < window.end and (not window.days or there.weekday() in window.days):
        assert holds(window, when) or not window.start <= seconds < window.end


@given(st.lists(WINDOWS, max_size=4), MOMENTS, st.sampled_from([0.0, 75.0, 7200.0]))
def test_nothing_changes_before_the_next_change(
    windows: list[TrafficWindow], when: float, lead: float
) -> None:
    now = windows_at(windows, when, lead)
    assert now.next_change > when
    end = min(now.next_change, when + 40 * DAY)
    for part in (0.25, 0.5, 0.75):
        assert same(windows_at(windows, when + part * (end - when), lead), now)
    assert same(windows_at(windows, math.ceil(end) - 1, lead), now)


def same(one: WindowsNow, other: WindowsNow) -> bool:
    return (one.floor, one.open) == (other.floor, other.open)


@given(WINDOWS, MOMENTS, st.sampled_from([75.0, 7200.0]))
def test_what_holds_with_a_lead_opens_within_it(
    window: TrafficWindow, when: float, lead: float
) -> None:
    assert holds(window, when, lead) or not holds(window, when)
    for found in windows_at([window], when, lead).open:
        assert found.opens - lead <= when < found.closes
        assert 0 < found.closes - found.opens <= 49 * HOUR


@given(st.lists(WINDOWS, min_size=1, max_size=4), MOMENTS)
def test_together_they_ask_for_the_most_of_any(windows: list[TrafficWindow], when: float) -> None:
    together = windows_at(windows, when, 60.0).floor
    alone = [f for w in windows if (f := windows_at([w], when, 60.0).floor) is not None]
    assert (together is None) == (not alone)
    if together is not None:
        for part in ("groups", "prefill", "decode", "rate"):
            assert getattr(together, part) == max(getattr(f, part) for f in alone)
