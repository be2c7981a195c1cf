"""Windows by clock: which are open and which comes next, by the operator's own reckoning."""

from __future__ import annotations

from datetime import datetime

from pdserve.api import PDService, Scenario
from pdserve.cli.columns import age
from pdserve.desired.ratio_input import windows_of
from pdserve.ratio.windows import Occurrence, TrafficWindow, windows_at
from pdserve.terms.zones import zone_of


def render_schedules(service: PDService, scenario: str | None, now: float) -> str:
    """A line for each window that is open, and for the next of each scenario; empty without any.

    `scenario`: only this one; `now`: seconds since the epoch.
    """
    lines = []
    for wanted in service.spec.scenarios:
        if scenario in (None, wanted.name):
            lines += _lines(wanted, now)
    return "\n".join(["Windows by clock", *(f"  {line}" for line in lines)]) if lines else ""


def _lines(scenario: Scenario, now: float) -> list[str]:
    if not scenario.schedule:
        return []
    mode = scenario.ratio.mode
    if mode in ("Fixed", "External"):
        return [f"{scenario.name}: not followed in mode {mode}"]
    # Instances start ahead by what the operator measured; people read the clock.
    found = windows_at(windows_of(scenario), now, 0.0)
    lines = [
        f"{scenario.name}: {o.window.name} is open until {_shown(o, o.closes)}, for another "
        f"{age(o.closes - now)}: {_asks(o.window)}"
        for o in found.open
    ]
    if found.coming is not None:
        coming = found.coming
        lines.append(
            f"{scenario.name}: {coming.window.name} opens {_shown(coming, coming.opens)}, in "
            f"{age(coming.opens - now)}: {_asks(coming.window)}; instances start before"
        )
    return lines


def _shown(occurrence: Occurrence, moment: float) -> str:
    """`Mon 08:00 Asia/Shanghai`."""
    zone = occurrence.window.zone
    there = datetime.fromtimestamp(moment, zone_of(zone))
    return f"{there:%a %H:%M} {zone}"


def _asks(window: TrafficWindow) -> str:
    parts = [
        f"{count} {what}"
        for count, what in (
            (window.groups, "P/D groups"),
            (window.prefill, "prefill each"),
            (window.decode, "decode each"),
        )
        if count
    ]
    least = [f"at least {', '.join(parts)}"] if parts else []
    return "; ".join([*least, *([f"ready for {window.rate:g} requests/s"] if window.rate else [])])
