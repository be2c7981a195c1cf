"""`scenarios[].schedule`: times of day at which a scenario is to be larger than its load asks."""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

from pydantic import Field

from pdserve.api.base import ApiModel, Int, Items, Number, Rule, Text
from pdserve.api.common import MAX_GROUPS, MAX_INSTANCES
from pdserve.api.strings import Meaningful, ScenarioName
from pdserve.terms.zones import is_zone

Day = Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
DAYS: Final[tuple[Day, ...]] = get_args(Day)
_CLOCK: Final = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?"
MAX_WINDOWS: Final = 16


class WindowCounts(ApiModel):
    """Fewest P/D groups and instances in a window; what is absent is as outside it."""

    rules = (
        Rule(
            "has(self.groups) || has(self.prefill) || has(self.decode)",
            "at least one of groups, prefill, decode is needed",
            lambda v: (v.groups, v.prefill, v.decode) != (None, None, None),
        ),
    )

    groups: Annotated[int, Int(1, MAX_GROUPS)] | None = None
    """P/D groups."""
    prefill: Annotated[int, Int(1, MAX_INSTANCES)] | None = None
    """Prefill instances in each."""
    decode: Annotated[int, Int(1, MAX_INSTANCES)] | None = None
    """Decode instances in each."""


class Window(ApiModel):
    """A time of day, on some days of the week, and what is to be there when it begins.

    Instances are started ahead, by as long as they take. What is not needed any more after the
    window's end goes as after any other load. Of windows that overlap, the largest figures count.
    """

    rules = (
        Rule(
            "has(self.least) || has(self.requestsPerSecond)",
            "at least one of least, requestsPerSecond is needed",
            lambda w: w.least is not None or w.requests_per_second is not None,
        ),
    )

    name: ScenarioName
    """Name, unique in the scenario; decisions name it as their reason."""
    time_zone: Annotated[
        str,
        Text(
            64,
            pattern=r"^(UTC|[A-Z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){1,2})$",
            says="the name of a time zone, such as Asia/Shanghai, or UTC",
        ),
        Meaningful(
            "timestamp('2026-01-01T00:00:00Z').getHours(self) >= 0",
            "must be a time zone of the IANA database, such as Asia/Shanghai",
            is_zone,
        ),
    ]
    """IANA name of the time zone of `from` and `to`, or `UTC`."""
    days: Annotated[tuple[Day, ...], Items(7)] = ()
    """Days of the week on which it begins; absent: every day."""
    from_: Annotated[
        str,
        Text(8, pattern=f"^{_CLOCK}$", says="a time of day, 00:00 to 23:59:59"),
        Field(alias="from"),
    ]
    """Its first moment by the clock, `HH:MM` or `HH:MM:SS`. One that clocks leave out as they go
    forward is when they do; of two equal ones the first counts."""
    to: Annotated[str, Text(8, pattern=f"^({_CLOCK}|24:00)$", says="a time of day, 00:00 to 24:00")]
    """Its end; where this is not after `from`, of the next day. Of two equal times the second
    counts."""
    least: WindowCounts | None = None
    """Fewest P/D groups and instances; absent: as `requestsPerSecond` needs."""
    requests_per_second: Annotated[float, Number(0.001, 1_000_000)] | None = None
    """Offered requests per second to be ready for, sized as measured load is, by its lengths or
    those of `expected`; absent: as measured."""


Schedule = Annotated[tuple[Window, ...], Items(MAX_WINDOWS, keys=("name",))]
