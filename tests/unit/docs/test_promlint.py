"""K6.9: `promtool check metrics` would find nothing in what the processes expose on /metrics.

Its rules, from the Prometheus documentation on naming and from `promtool`'s own messages, applied
to every declared family, so that no program has to be there. Series under vLLM's names stand on a
path of their own and are exempt from one rule, the colon: they are vLLM's names.
"""

from __future__ import annotations

import re

import pytest
from tests.unit.docs import registries

from pdserve.exposition import Registry

ABBREVIATIONS = ("s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d")
OTHER_UNITS = ("minutes", "hours", "days", "weeks", "bits")
PREFIXES = ("pico", "nano", "micro", "milli", "kilo", "kibi", "mega", "giga", "gibi", "tera")
BASE_UNITS = ("seconds", "bytes", "meters", "grams", "joules", "volts", "amperes")


def problems(name: str, kind: str, help_text: str, labels: tuple[str, ...]) -> list[str]:
    """What promlint says of one family."""
    parts, found = name.lower().split("_"), []
    if not help_text:
        found.append("no help text")
    if ":" in name:
        found.append("metric names should not contain ':'")
    if (kind == "counter") != name.endswith("_total"):
        found.append("counters, and only they, end in _total")
    if kind in parts:
        found.append(f"the name includes its type {kind}")
    if any(re.search("[a-z][A-Z]", word) for word in (name, *labels)):
        found.append("snake_case")
    if set(parts[1:]) & set(ABBREVIATIONS):
        found.append("abbreviated unit")
    if any(p in OTHER_UNITS or p in {a + u for a in PREFIXES for u in BASE_UNITS} for p in parts):
        found.append("not a base unit")
    if kind != "histogram" and parts[-1] in ("bucket", "count", "sum"):
        found.append(f"suffix _{parts[-1]} is a histogram's")
    if {"le", "quantile"} & set(labels):
        found.append("label le or quantile is reserved")
    return found


def lint(registry: Registry) -> dict[str, list[str]]:
    found = {
        f.name: problems(f.name, f.kind, f.help, f.label_names) for f in registry.families.values()
    }
    return {name: said for name, said in found.items() if said}


def test_gateway() -> None:
    assert lint(registries.gateway_registry()) == {}


def test_engine() -> None:
    assert lint(registries.engine_metrics().registry) == {}


async def test_operator() -> None:
    assert lint(await registries.operator_registry()) == {}


def test_names_of_vllm_break_one_rule_only() -> None:
    found = lint(registries.engine_metrics().vllm)
    assert found
    for name, said in found.items():
        assert name.startswith("vllm:") and said == ["metric names should not contain ':'"]


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("x_count", "gauge", "suffix"),
        ("x_ms", "gauge", "abbreviated"),
        ("x_milliseconds", "gauge", "base unit"),
        ("x_minutes", "gauge", "base unit"),
        ("x", "counter", "_total"),
        ("x_total", "gauge", "_total"),
        ("x:y", "gauge", "':'"),
        ("x_gauge", "gauge", "its type"),
        ("xY", "gauge", "snake"),
    ],
)
def test_the_rules_find_what_they_are_for(name: str, kind: str, said: str) -> None:
    (found,) = problems(name, kind, "Text.", ())
    assert said in found
