"""Odd values: wrong, huge, deep, non-finite, foreign or missing.

Each function draws one value. All of them are values that the API server, an engine or Prometheus
can really return: quantities are valid Kubernetes quantities, annotations and ConfigMap data are
any text, engine answers are any JSON.
"""

from __future__ import annotations

import random

QUANTITIES = (
    "1e3", "1E6", "1T", "1Ti", "1Pi", "2Ei", "100m", "1500m", "0.5", "1.5Gi", "0", "7k", "12e-1",
    "9223372036854775807", "1n", "3u", "+2", ".5", "1.",
)  # fmt: skip
"""Valid quantities that are no plain integer."""
TEXTS = (
    "", " ", "null", "[]", "{}", "0", "-1", "true", "NaN", "Infinity", "1e999", '"', "\u0000",
    "[" * 4000, "{" * 500, '{"a":' * 300, "[1e999]", '[{"id":1e999}]', '[{"id":-1,"ip":5}]',
    '[{"id":0,"ip":"10.0.0.1"}]' * 2, "0,1,x", ",,,", "99999999999999999999", "é" * 70000,
    "2026-13-45T99:99:99Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z",
)  # fmt: skip
TIMES = (
    "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "2026-01-01T00:00:00Z",
    "2262-04-11T23:47:16Z",
)  # fmt: skip
"""Times the API server stores."""
NUMBERS = (
    float("nan"), float("inf"), float("-inf"), 1e308, -1e308, -1.0, 5e-324, 1.7976931348623157e308,
)  # fmt: skip


def quantity(rng: random.Random) -> str:
    """A quantity that is no plain integer."""
    return rng.choice(QUANTITIES)


def text(rng: random.Random) -> str:
    """One of TEXTS, which readers may not expect."""
    return rng.choice(TEXTS)


def when(rng: random.Random) -> str:
    """A time far from now."""
    return rng.choice(TIMES)


def number(rng: random.Random) -> float:
    """A number that no measured quantity can be."""
    return rng.choice(NUMBERS)


def json_value(rng: random.Random) -> object:
    """A JSON value of any kind, also of extreme size or depth."""
    deep: object = []
    for _ in range(rng.choice((1, 30, 900))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return rng.choice(
        (None, True, 0, -1, 2**63, 10**400, 1e308, float("inf"), float("nan"), "", "x" * 100_000,
         [], {}, [None] * 1000, deep)
    )  # fmt: skip


def spoiled(value: object, rng: random.Random) -> object:
    """A copy of a JSON value with one part replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        changed = dict(value)
        draw = rng.random()
        if draw < 0.2:
            del changed[key]
        elif draw < 0.3:
            changed[text(rng)[:50]] = json_value(rng)
        else:
            changed[key] = spoiled(changed[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = rng.randrange(len(value))
        return [*value[:at], spoiled(value[at], rng), *value[at + 1 :]]
    return json_value(rng)
