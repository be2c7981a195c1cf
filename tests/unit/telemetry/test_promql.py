"""Query texts and the rows that come back."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pdserve.engines import registry
from pdserve.telemetry.promql import (
    SeriesKey,
    duration,
    escape,
    increase,
    parse,
    parse_time,
    queries,
    selector,
)

LABELS = {"namespace": "ns", "service": "shop", "scenario": "chat", "pod": "gw-1"}
KEY = SeriesKey("ns", "shop", "chat", "gw-1")


def row(value: str, **labels: str) -> dict[str, Any]:
    return {"metric": {**LABELS, **labels}, "value": [1000.0, value]}


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("plain", "plain"),
        ('it"s', r"it\"s"),
        ("back\\slash", "back\\\\slash"),
        ("two\nlines", r"two\nlines"),
        ('"} or vector(1) #', r"\"} or vector(1) #"),
    ],
)
def test_values_cannot_leave_their_quotes(value: str, want: str) -> None:
    assert escape(value) == want
    assert selector("up", {"a": value}) == f'up{{a="{want}"}}'


def test_increase_groups_by_who_and_where() -> None:
    assert increase(("x_total",), {"b": "2", "a": "1"}, "60s") == (
        'sum by (namespace, service, scenario, pod) (increase(x_total{a="1",b="2"}[60s]))'
    )


def test_engines_of_before_are_read_under_their_names() -> None:
    by = "sum by (namespace, service, scenario, pod)"
    assert increase(("pdserve_engine_x_total", "pdserve:x_total"), {"a": "{}"}, "60s") == (
        f'{by} (increase(pdserve_engine_x_total{{a="{{}}"}}[60s])'
        ' or increase(pdserve:x_total{a="{}"}[60s]))'
    )
    ages = [q.text for q in queries((60.0,), {}, registry.series()) if q.name == "engine_age"]
    assert ages == [
        "time() - max by (namespace, service, scenario, pod) "
        "(timestamp(pdserve_engine_slots) or timestamp(pdserve:slots))"
    ]


@pytest.mark.parametrize(("seconds", "want"), [(60.0, "60s"), (7.5, "7500ms"), (0.25, "250ms")])
def test_durations(seconds: float, want: str) -> None:
    assert duration(seconds) == want


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.0001])
def test_no_window_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="want more than"):
        duration(seconds)


def test_one_query_per_quantity_whatever_the_number_of_scenarios() -> None:
    asked = queries((60.0, 180.0, 600.0), {}, registry.series())
    names = [query.name for query in asked]
    assert len(names) == len(set(names)) == 3 + 3 * 11 + 5 + 12 + 6
    assert all("service=" not in query.text for query in asked)
    shared = queries((60.0,), {"cluster": "a"}, registry.series())
    assert all('cluster="a"' in query.text for query in shared)


def test_rows() -> None:
    assert parse([row("2.5")]) == {KEY: 2.5}
    odd = parse([row("NaN"), row("+Inf", pod="gw-2")])
    assert math.isnan(odd[KEY])
    assert odd[KEY._replace(pod="gw-2")] == math.inf


def test_rows_without_our_labels_are_skipped() -> None:
    assert parse([row("1", scenario=""), {"metric": {}, "value": [0, "1"]}]) == {}


def test_rows_of_others_are_skipped() -> None:
    rows = [row("1"), row("2", pod="another"), row("3", namespace="elsewhere")]
    assert parse(rows, wanted={KEY}) == {KEY: 1.0}


@pytest.mark.parametrize(
    "bad",
    [
        None,
        {"a": 1},
        "text",
        [1],
        [{}],
        [{"metric": {}}],
        [{"metric": {}, "value": [1]}],
        [{"metric": {}, "value": [1, "many"]}],
        [{"metric": [], "value": [1, "2"]}],
    ],
)
def test_an_answer_that_is_no_vector_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="instant vector"):
        parse(bad)


def test_time() -> None:
    assert parse_time([{"metric": {}, "value": [5, "1700000000.5"]}]) == 1700000000.5
    for bad in ([], None, [{"value": [1, "NaN"]}], [{"value": [1, "x"]}], {"a": 1}):
        with pytest.raises(ValueError, match="not a time"):
            parse_time(bad)
