"""Which windows by clock `status` and `explain` show."""

from __future__ import annotations

from typing import Any

from tests.unit.cli.test_views import EXAMPLES, service

from pdserve import api
from pdserve.cli import view_status
from pdserve.cli.snapshot import Snapshot
from pdserve.cli.view_schedule import render_schedules
from pdserve.terms.times import epoch_of

DAY = {
    "name": "day", "timeZone": "Asia/Shanghai", "days": ["Thu"], "from": "08:00", "to": "22:00",
    "least": {"groups": 1, "decode": 3}, "requestsPerSecond": 4.5,
}  # fmt: skip
NIGHT = {
    "name": "night",
    "timeZone": "UTC",
    "from": "23:00",
    "to": "01:00",
    "least": {"prefill": 2},
}
FIXED = {"groups": 1, "prefill": 2, "decode": 2}
THURSDAY = epoch_of("2026-01-01T01:30:00Z")
"""Half past nine in Shanghai."""


def with_schedule(*windows: dict[str, Any], mode: str = "Auto") -> api.PDService:
    value = service().to_dict()
    first = value["spec"]["scenarios"][0]
    first["schedule"] = list(windows)
    first["ratio"] |= {"mode": mode, "fixed": FIXED}
    return api.PDService.parse(value)


def test_the_open_window_and_the_next_one_are_shown_by_their_own_clocks() -> None:
    assert EXAMPLES.exists()
    name = service().spec.scenarios[0].name
    assert render_schedules(with_schedule(DAY, NIGHT), None, THURSDAY).splitlines() == [
        "Windows by clock",
        f"  {name}: day is open until Thu 22:00 Asia/Shanghai, for another 12h: at least "
        "1 P/D groups, 3 decode each; ready for 4.5 requests/s",
        f"  {name}: night opens Thu 23:00 UTC, in 21h: at least 2 prefill each; "
        "instances start before",
    ]


def test_status_and_explain_have_them() -> None:
    found = Snapshot(with_schedule(DAY), (), ())
    assert "day is open until" in view_status.render(found, THURSDAY)
    assert render_schedules(found.service, "none", THURSDAY) == ""


def test_modes_that_do_not_follow_a_schedule_say_so() -> None:
    fixed = with_schedule(DAY, mode="Fixed")
    assert "not followed in mode Fixed" in render_schedules(fixed, None, THURSDAY)


def test_without_windows_nothing_is_shown() -> None:
    assert render_schedules(service(), None, THURSDAY) == ""
    assert "Windows" not in view_status.render(Snapshot(service(), (), ()), THURSDAY)
