"""The text format that Prometheus scrapes."""

import pytest

from pdserve.wire.exposition import Registry


def test_counters_and_gauges() -> None:
    registry = Registry()
    seen = registry.counter("seen_total", "Seen\nthings.", ("who",))
    seen.inc(0, "a")
    seen.inc(2, 'b"\\\n')
    registry.gauge("level", "Level.").set(1.5)
    assert registry.render().decode().splitlines() == [
        "# HELP seen_total Seen\\nthings.",
        "# TYPE seen_total counter",
        'seen_total{who="a"} 0',
        'seen_total{who="b\\"\\\\\\n"} 2',
        "# HELP level Level.",
        "# TYPE level gauge",
        "level 1.5",
    ]


def test_histogram_series_with_bounds_of_their_own() -> None:
    registry = Registry()
    h = registry.histogram("t_seconds", "T.", ("s",), (1.0, 2.0))
    h.create("x", buckets=(0.5,))
    h.observe(0.5, "x")
    h.observe(9.0, "x")
    h.observe(1.5, "y")
    lines = registry.render().decode().splitlines()[2:]
    assert lines == [
        't_seconds_bucket{s="x",le="0.5"} 1',
        't_seconds_bucket{s="x",le="+Inf"} 2',
        't_seconds_sum{s="x"} 9.5',
        't_seconds_count{s="x"} 2',
        't_seconds_bucket{s="y",le="1.0"} 0',
        't_seconds_bucket{s="y",le="2.0"} 1',
        't_seconds_bucket{s="y",le="+Inf"} 1',
        't_seconds_sum{s="y"} 1.5',
        't_seconds_count{s="y"} 1',
    ]


def test_a_series_is_forgotten_and_a_name_is_taken_once() -> None:
    registry = Registry()
    gauge = registry.gauge("g", "G.", ("i",))
    gauge.set(1, "a")
    gauge.remove("a")
    gauge.remove("a")
    assert b"g{" not in registry.render()
    with pytest.raises(ValueError, match="registered twice"):
        registry.counter("g", "again")
