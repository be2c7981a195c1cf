"""From rows of many queries to one sample per scenario (pure).

An instance counts when it is live (the caller's list) and **fresh** (its anchor series has a
sample young enough). Live ones that are not fresh are reported as missing. For a fresh instance an
absent counter is zero, because processes create labelled counters when they first need them; the
anchors (`offered` of a gateway, slots of an engine) are always there. A value that is no count
(NaN, infinite, negative, above `MAX_COUNT`) makes the whole quantity Unknown: pods write these
series, and sums and products of what is left stay finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pdserve.ratio.types import (
    DecodeWindow,
    InstanceWindow,
    PrefillWindow,
    Quantity,
    RecentWindow,
    RequestWindow,
    ScenarioSample,
    Unknown,
)
from pdserve.telemetry.promql import RECENT, WINDOWED, Rows, SeriesKey
from pdserve.telemetry.source import LiveInstances, ScenarioKey
from pdserve.terms import Role
from pdserve.wire.metrics import DECODE_QUANTITIES, PREFILL_QUANTITIES

NAMED_MISSING = 10
MAX_COUNT = 1e18
"""Of one series in one window; the largest honest one is a sum of squared prompt lengths."""
MAX_SKEW = 60.0
"""Seconds by which a sample may seem to come from the future (scrape times are the server's)."""


@dataclass(frozen=True, slots=True)
class Answers:
    """One round's answers: rows by query name, or why a query failed."""

    at: float
    lag: float
    """Seconds from `at` to the time of asking."""
    windows: tuple[float, ...]
    stale_after: float
    rows: Mapping[str, Rows | Unknown]
    shift: float = 0.0
    """Seconds of `lag` by which `at` was set back to the newest sample. Ages count from before."""

    def fresh(self, name: str, key: ScenarioKey, live: frozenset[str]) -> dict[str, float] | None:
        """Seconds since the newest sample of each live instance that has a young enough one.

        None when the query `name` failed; an instance without a fresh sample is left out.
        """
        rows = self.rows[name]
        if isinstance(rows, Unknown):
            return None
        ages = {who: rows.get(SeriesKey(*key, who), math.nan) for who in sorted(live)}
        most = self.stale_after - self.shift
        return {who: age for who, age in ages.items() if -MAX_SKEW <= age <= most}

    def total(self, name: str, key: ScenarioKey, instances: Sequence[str]) -> Quantity:
        """Sum over instances of one quantity, in its own unit; a missing row counts as 0.

        Unknown when the query failed, there is no instance, or a value is negative, not finite or
        above MAX_COUNT.
        """
        rows = self.rows[name]
        if isinstance(rows, Unknown):
            return rows
        if not instances:
            return Unknown("no instance reports")
        values = [rows.get(SeriesKey(*key, who), 0.0) for who in instances]
        for who, value in zip(instances, values, strict=True):
            if not _is_count(value):
                return Unknown(f"{name} of {who} is {value}")
        return math.fsum(values)


def assemble(key: ScenarioKey, live: LiveInstances, answers: Answers) -> ScenarioSample | Unknown:
    """The sample of one scenario; Unknown when its gateways' anchor could not be asked."""
    gateways = answers.fresh("gateway_age", key, live.gateways)
    engines = answers.fresh("engine_age", key, live.prefill | live.decode)
    if gateways is None or engines is None:
        failed = answers.rows["gateway_age" if gateways is None else "engine_age"]
        return failed if isinstance(failed, Unknown) else Unknown("anchor query failed")
    expected = live.gateways | live.prefill | live.decode
    missing = sorted(expected - set(gateways) - set(engines))
    names = sorted(gateways)
    windows = tuple(
        _window(answers, key, names, index, seconds)
        for index, seconds in enumerate(answers.windows)
    )
    prefill = sorted(live.prefill & set(engines))
    decode = sorted(live.decode & set(engines))

    def gateway(name: str) -> Quantity:
        return answers.total(name, key, names)

    return ScenarioSample(
        at=answers.at,
        age=_oldest(answers, key, live.gateways),
        windows=windows,
        prefill=PrefillWindow(
            len(prefill), *(answers.total(name, key, prefill) for name in PREFILL_QUANTITIES)
        ),
        decode=DecodeWindow(
            len(decode), *(answers.total(name, key, decode) for name in DECODE_QUANTITIES)
        ),
        decode_overload=gateway("decode_overload"),
        expired=gateway("expired"),
        failed=gateway("failed"),
        waiting=gateway("waiting"),
        ttft_seconds=_mean(gateway("ttft_sum"), gateway("ttft_count")),
        live=len(expected),
        missing=tuple(missing[:NAMED_MISSING]),
        missing_count=len(missing),
        lag=answers.lag,
        recent=RecentWindow(
            answers.windows[0] * RECENT,
            gateway("recent_arrived"),
            gateway("recent_arrived_tokens"),
            answers.total("recent_requests", key, prefill),
            answers.total("recent_tokens", key, prefill),
            gateway("recent_completed"),
            answers.total("recent_steps", key, decode),
        ),
        instances=(
            *_instances(answers, key, "prefill", prefill),
            *_instances(answers, key, "decode", decode),
        ),
    )


_TIMES: dict[Role, tuple[str, str, str, str]] = {
    "prefill": ("batches", "compute_seconds", "tokens", "tokens_squared"),
    "decode": ("steps", "step_seconds", "step_requests", "step_context"),
}
"""Quantities of an `InstanceWindow`, in its order."""


def _instances(
    answers: Answers, key: ScenarioKey, role: Role, names: Sequence[str]
) -> Iterator[InstanceWindow]:
    """Times of each of these instances that computed; none where a query failed."""
    columns = [answers.rows[name] for name in _TIMES[role]]
    known = [rows for rows in columns if not isinstance(rows, Unknown)]
    if len(known) < len(columns):
        return
    for who in names:
        count, seconds, first, second = (rows.get(SeriesKey(*key, who), 0.0) for rows in known)
        if all(map(_is_count, (count, seconds, first, second))) and count > 0.0 < seconds:
            yield InstanceWindow(who, role, count, seconds, first, second)


def _window(
    answers: Answers, key: ScenarioKey, names: Sequence[str], index: int, seconds: float
) -> RequestWindow:
    totals = (answers.total(f"{name}@{index}", key, names) for name in WINDOWED)
    return RequestWindow(seconds, _fewest(answers, key, names, index), *totals)


def _fewest(answers: Answers, key: ScenarioKey, names: Sequence[str], index: int) -> Quantity:
    """Scrapes in a window, of the gateway that has the fewest."""
    rows = answers.rows[f"scrapes@{index}"]
    if isinstance(rows, Unknown):
        return rows
    if not names:
        return Unknown("no gateway reports")
    counts = [rows.get(SeriesKey(*key, who), 0.0) for who in names]
    return min(counts) if all(map(_is_count, counts)) else Unknown("scrapes are no counts")


def _oldest(answers: Answers, key: ScenarioKey, gateways: frozenset[str]) -> Quantity:
    """Age of the most outdated gateway that is known at all, fresh or not."""
    rows = answers.rows["gateway_age"]
    if isinstance(rows, Unknown):
        return rows
    found = {who: rows.get(SeriesKey(*key, who)) for who in sorted(gateways)}
    ages = {who: age for who, age in found.items() if age is not None}
    if not ages:
        return Unknown("no live gateway has samples for this scenario")
    for who, age in ages.items():
        if not -MAX_SKEW <= age <= MAX_COUNT:  # false for NaN
            return Unknown(f"the newest sample of {who} is {age} s old")
    # Scrape timestamps have milliseconds; an evaluation in the same one may come out below zero.
    return max(0.0, *ages.values()) + answers.shift


def _is_count(value: float) -> bool:
    return 0.0 <= value <= MAX_COUNT  # false for NaN


def _mean(total: Quantity, count: Quantity) -> Quantity:
    if isinstance(total, Unknown):
        return total
    if isinstance(count, Unknown):
        return count
    return total / count if count > 0.0 else Unknown("nothing was counted")
