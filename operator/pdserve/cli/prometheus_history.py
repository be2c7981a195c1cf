"""Rates of a scenario over hours, by range queries to a Prometheus."""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass

from pdserve.wire import metrics
from pdserve.wire.bounds import WireError, parse_json

STEP = 60
TIMEOUT = 60.0
MOST_BYTES = 32_000_000
QUANTITIES = {
    "arrived": metrics.GATEWAY_ARRIVED,
    "arrived_tokens": metrics.GATEWAY_ARRIVED_PROMPT_TOKENS,
    "completed": metrics.GATEWAY_COMPLETED,
    "prompt_tokens": metrics.GATEWAY_PROMPT_TOKENS,
    "output_tokens": metrics.GATEWAY_OUTPUT_TOKENS,
    "cached_tokens": metrics.GATEWAY_CACHED_TOKENS,
}
Ranges = dict[str, dict[float, float]]
"""Per quantity: time (seconds since the epoch) -> rate per second."""


class PrometheusError(Exception):
    """The Prometheus gives no such history; the message says why."""


@dataclass(frozen=True, slots=True)
class RangeQuestion:
    """Whose rates, and over how long."""

    service: str
    scenario: str
    hours: float


def read_ranges(url: str, question: RangeQuestion) -> Ranges:
    """The rate of each quantity a minute, over the hours up to now.

    Raises:
        PrometheusError: it does not answer, or with something else than a matrix.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise PrometheusError(f"{url!r:.80}: want a URL such as http://prometheus:9090")
    end = math.floor(time.time() / STEP) * STEP
    matchers = f"service={json.dumps(question.service)},scenario={json.dumps(question.scenario)}"
    found: Ranges = {}
    for name, series in QUANTITIES.items():
        asked = {
            "query": f"sum(rate({series}{{{matchers}}}[{2 * STEP}s]))", "step": str(STEP),
            "start": str(end - int(question.hours * 3600)), "end": str(end),
        }  # fmt: skip
        query = urllib.parse.urlencode(asked)
        found[name] = _matrix(url, _read(f"{url.rstrip('/')}/api/v1/query_range?{query}"))
    if not found["arrived"]:
        raise PrometheusError(
            f"{url}: no {metrics.GATEWAY_ARRIVED} of {question.service}/{question.scenario} in the "
            f"last {question.hours:g} h"
        )
    return found


def _read(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310 -- checked above
            return bytes(answer.read(MOST_BYTES))
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise PrometheusError(f"{url.split('?')[0]}: {error}") from error


def _matrix(url: str, body: bytes) -> dict[float, float]:
    """The one row of a sum; rates that are not finite are left out."""
    try:
        raw = parse_json(body.decode("utf-8"))
        rows = raw["data"]["result"]
        if not rows:
            return {}
        values = [(float(at), float(text)) for at, text in rows[0]["values"]]
    except (WireError, UnicodeDecodeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise PrometheusError(f"{url}: not the answer of a range query: {error}") from error
    return {at: value for at, value in values if math.isfinite(value) and value >= 0.0}
