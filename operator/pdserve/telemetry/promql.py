"""The queries: one per quantity, for every scenario of the cluster at once.

All group by (namespace, service, scenario, pod), so that series of deleted or cold pods can
be left out and two services of one name in two namespaces never mix. Counters are read with
`increase()`, which absorbs resets. Pure text; `prometheus` sends it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pdserve.terms.shown import shown
from pdserve.wire import metrics

LABELS = "namespace, service, scenario, pod"
"""`namespace` and `pod` are the scrape target's, put on by the scrape job (as the Prometheus
operator does by itself) and never taken from what a pod exposes (`honor_labels: false`): no pod
writes into another namespace. `service` comes from the pod's label; `scenario` too for engines,
while a gateway states it, because it serves several."""


LATEST = 253_402_300_799.0
"""The last second of the year 9999, since the epoch."""


class SeriesKey(NamedTuple):
    """Whose value a row is."""

    namespace: str
    service: str
    scenario: str
    pod: str


Rows = dict[SeriesKey, float]


@dataclass(frozen=True, slots=True)
class Query:
    """A named quantity and its PromQL."""

    name: str
    text: str


WINDOWED = {
    "offered": metrics.GATEWAY_OFFERED,
    "met": metrics.GATEWAY_SLO_MET,
    "ttft_met": metrics.GATEWAY_TTFT_MET,
    "completed": metrics.GATEWAY_COMPLETED,
    "prompt_tokens": metrics.GATEWAY_PROMPT_TOKENS,
    "output_tokens": metrics.GATEWAY_OUTPUT_TOKENS,
    "cached_tokens": metrics.GATEWAY_CACHED_TOKENS,
    "arrived": metrics.GATEWAY_ARRIVED,
    "arrived_tokens": metrics.GATEWAY_ARRIVED_PROMPT_TOKENS,
    "infeasible": metrics.GATEWAY_INFEASIBLE,
}
"""Gateway counters read over every window."""

RECENT = 0.5
"""Part of the shortest window over which the newest arrivals are read: two scrapes of four."""

GATEWAY_SHORTEST = {
    "decode_overload": (metrics.GATEWAY_OUTCOME, {"outcome": "decode_overload"}),
    "expired": (metrics.GATEWAY_OUTCOME, {"outcome": "expired"}),
    "failed": (metrics.GATEWAY_OUTCOME, {"outcome": "failed"}),
    "ttft_sum": (f"{metrics.GATEWAY_TTFT}_sum", {}),
    "ttft_count": (f"{metrics.GATEWAY_TTFT}_count", {}),
}
"""Gateway counters read over the shortest window."""

RECENT_GATEWAY = {
    "recent_arrived": metrics.GATEWAY_ARRIVED,
    "recent_arrived_tokens": metrics.GATEWAY_ARRIVED_PROMPT_TOKENS,
    "recent_completed": metrics.GATEWAY_COMPLETED,
}
RECENT_ENGINE = {
    "recent_requests": "requests",
    "recent_tokens": "tokens",
    "recent_steps": "step_requests",
}
"""Quantities of engines that are read over that part."""

Series = Mapping[str, Sequence[str]]
"""Names of engines' series by quantity (`wire.metrics.ENGINE_SERIES`), of all engine types."""


def queries(windows: Iterable[float], matchers: Mapping[str, str], engines: Series) -> list[Query]:
    """Everything one round asks, in a fixed order.

    `windows`: seconds, one or more; gateways' counters are read over each, engines' over the
    shortest. `matchers` (label: value) narrow every selector; `engines` has names of series for
    every quantity.

    Raises:
        ValueError: a window is shorter than a millisecond.
    """
    sizes = sorted(windows)
    found = [
        Query("gateway_age", _age((metrics.GATEWAY_OFFERED,), matchers)),
        Query("engine_age", _age(engines[metrics.ALIVE], matchers)),
        Query("waiting", f"sum by ({LABELS}) ({selector(metrics.GATEWAY_WAITING, matchers)})"),
    ]
    for index, seconds in enumerate(sizes):
        span = duration(seconds)
        offered = selector(metrics.GATEWAY_OFFERED, matchers)
        found.append(
            Query(f"scrapes@{index}", f"max by ({LABELS}) (count_over_time({offered}[{span}]))")
        )
        found += [
            Query(f"{name}@{index}", increase((metric,), matchers, span))
            for name, metric in WINDOWED.items()
        ]
    span = duration(sizes[0])
    found += [
        Query(name, increase((metric,), {**matchers, **extra}, span))
        for name, (metric, extra) in GATEWAY_SHORTEST.items()
    ]
    found += [
        Query(name, increase(engines[name], matchers, span))
        for name in (*metrics.PREFILL_QUANTITIES, *metrics.DECODE_QUANTITIES)
    ]
    return found + _recent(sizes[0] * RECENT, matchers, engines)


def _recent(seconds: float, matchers: Mapping[str, str], engines: Series) -> list[Query]:
    """What arrived of late, and what was computed."""
    read: dict[str, Sequence[str]] = {n: (metric,) for n, metric in RECENT_GATEWAY.items()}
    read |= {name: engines[quantity] for name, quantity in RECENT_ENGINE.items()}
    span = duration(seconds)
    return [Query(name, increase(series, matchers, span)) for name, series in read.items()]


def increase(series: Sequence[str], matchers: Mapping[str, str], span: str) -> str:
    """Increase of a counter over a span, summed to one value per pod and scenario.

    `series` are its names; what a pod exposes under the first of them counts.
    """

    def rise(selected: str) -> str:
        return f"increase({selected}[{span}])"

    return f"sum by ({LABELS}) ({_either(series, matchers, rise)})"


def selector(metric: str, matchers: Mapping[str, str]) -> str:
    """`metric{label="value",...}` with every value escaped."""
    inside = ",".join(f'{name}="{escape(value)}"' for name, value in sorted(matchers.items()))
    return f"{metric}{{{inside}}}" if inside else metric


def escape(value: str) -> str:
    """A label value inside double quotes (PromQL string literal, Go escapes)."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def duration(seconds: float) -> str:
    """A PromQL duration of so many seconds, rounded to whole milliseconds.

    Raises:
        ValueError: it rounds to 0 or less.
    """
    milliseconds = round(seconds * 1000)
    if milliseconds <= 0:
        raise ValueError(f"window of {seconds} s: want more than 0.001 s")
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"


def parse(result: object, wanted: Container[SeriesKey] | None = None) -> Rows:
    """Rows of an instant vector. NaN and infinities stay what they are; see `assemble`.

    Rows without one of the four labels are not ours and are skipped, and so are those that are not
    `wanted` (None: all are).

    Raises:
        ValueError: the answer is not an instant vector.
    """
    if not isinstance(result, list):
        raise ValueError(f"want an instant vector, got {type(result).__name__}")
    rows: Rows = {}
    for row in result:
        try:
            labels, (_, text) = row["metric"], row["value"]
            key = SeriesKey(*(str(labels.get(name, "")) for name in SeriesKey._fields))
            value = float(text)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a row of an instant vector: {shown(row)}") from error
        if all(key) and (wanted is None or key in wanted):
            rows[key] = value
    return rows


def parse_time(result: Any) -> float:
    """The server's clock from the answer to `vector(time())`: seconds since 1970-01-01 UTC.

    Raises:
        ValueError: the answer is no such vector, or the time is negative or after the year 9999.
    """
    try:
        value = float(result[0]["value"][1])
    except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"not a time: {shown(result)}") from error
    if not 0.0 <= value <= LATEST:
        raise ValueError(f"not a time: {value}")
    return value


def _age(series: Sequence[str], matchers: Mapping[str, str]) -> str:
    """Seconds since the newest sample of each pod."""
    return f"time() - max by ({LABELS}) ({_either(series, matchers, 'timestamp({})'.format)})"


def _either(
    series: Sequence[str], matchers: Mapping[str, str], function: Callable[[str], str]
) -> str:
    """`function` of the first of these series that a pod exposes."""
    return " or ".join(function(selector(name, matchers)) for name in series)
