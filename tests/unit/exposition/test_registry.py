"""What a registry renders, and what a declaration or a use refuses."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from pdserve.exposition import MetricError, Registry


def test_exposition_of_all_kinds() -> None:
    registry = Registry()
    requests = registry.counter("requests_total", "Requests by code.", ("code",))
    requests.labels("200").inc()
    requests.labels("500").inc(2)
    registry.gauge("waiting", "Waiting now.").set(1.5)
    seconds = registry.histogram("wait_seconds", "Wait.", ("leg",), buckets=(0.1, 1))
    for value in (0.05, 0.1, 0.5, 3):
        seconds.labels("a").observe(value)
    assert registry.render() == (
        "# HELP requests_total Requests by code.\n"
        "# TYPE requests_total counter\n"
        'requests_total{code="200"} 1\n'
        'requests_total{code="500"} 2\n'
        "# HELP wait_seconds Wait.\n"
        "# TYPE wait_seconds histogram\n"
        'wait_seconds_bucket{leg="a",le="0.1"} 2\n'
        'wait_seconds_bucket{leg="a",le="1.0"} 3\n'
        'wait_seconds_bucket{leg="a",le="+Inf"} 4\n'
        'wait_seconds_sum{leg="a"} 3.65\n'
        'wait_seconds_count{leg="a"} 4\n'
        "# HELP waiting Waiting now.\n"
        "# TYPE waiting gauge\n"
        "waiting 1.5\n"
    )


def test_metrics_without_labels_start_at_zero() -> None:
    registry = Registry()
    registry.counter("a_total", "A.")
    assert "a_total 0\n" in registry.render()


def test_label_values_and_help_are_escaped() -> None:
    registry = Registry()
    registry.counter("a_total", "Line one.\nTwo \\ three.", ("x",)).labels('q"\\\n').inc()
    text = registry.render()
    assert "# HELP a_total Line one.\\nTwo \\\\ three.\n" in text
    assert 'a_total{x="q\\"\\\\\\n"} 1\n' in text


@pytest.mark.parametrize(
    ("value", "want"),
    [(math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN"), (0.1, "0.1"), (1e20, "1e+20")],
)
def test_special_numbers(value: float, want: str) -> None:
    registry = Registry()
    registry.gauge("g", "G.").set(value)
    assert f"g {want}\n" in registry.render()


def test_declaring_alike_shares_declaring_differently_is_refused() -> None:
    registry = Registry()
    first = registry.counter("a_total", "A.", ("x",))
    assert registry.counter("a_total", "A.", ("x",)) is first
    for wrong in (
        lambda: registry.counter("a_total", "A.", ("y",)),
        lambda: registry.counter("a_total", "B.", ("x",)),
        lambda: registry.gauge("a_total", "A.", ("x",)),
    ):
        with pytest.raises(MetricError, match="already declared differently"):
            wrong()


@pytest.mark.parametrize(
    ("name", "help_text", "labels", "message"),
    [
        ("a-b", "A.", (), "metric name 'a-b'"),
        ("", "A.", (), "metric name ''"),
        ("1a", "A.", (), "metric name '1a'"),
        ("a", " ", (), "help text is required"),
        ("a", "A.", ("__x",), "label '__x'"),
        ("a", "A.", ("le",), "label 'le'"),
        ("a", "A.", ("x:y",), "label 'x:y'"),
    ],
)
def test_bad_declarations(name: str, help_text: str, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        Registry().gauge(name, help_text, labels)


@pytest.mark.parametrize("buckets", [(), (1, 1), (2, 1), (math.inf,), (math.nan,), (-math.inf, 1)])
def test_bad_buckets(buckets: tuple[float, ...]) -> None:
    with pytest.raises(MetricError, match="buckets"):
        Registry().histogram("h", "H.", buckets=buckets)
    with pytest.raises(MetricError, match="buckets"):
        Registry().histogram("h", "H.", ("x",)).create("a", buckets=buckets)


def test_bad_use() -> None:
    registry = Registry()
    counter = registry.counter("a_total", "A.", ("x", "y"))
    for wrong in (
        lambda: counter.labels("1"),
        lambda: counter.labels("1", "2", "3"),
        lambda: counter.labels(),
        lambda: counter.inc(),
        lambda: registry.gauge("g", "G.", ("x",)).set(1),
        lambda: registry.histogram("of_x", "H.", ("x",)).observe(1),
        lambda: registry.histogram("of_x", "H.", ("x",)).create("1", "2", buckets=(1,)),
        lambda: counter.labels("1", "2").inc(-1),
        lambda: counter.labels("1", "2").inc(math.nan),
        lambda: registry.histogram("h", "H.").observe(math.nan),
    ):
        with pytest.raises(MetricError):
            wrong()


def test_a_refused_use_leaves_no_trace() -> None:
    registry = Registry()
    counter = registry.counter("a_total", "A.", ("x",))
    seconds = registry.histogram("h", "H.")
    for wrong in (lambda: counter.labels("1", "2"), lambda: seconds.observe(math.nan)):
        with pytest.raises(MetricError):
            wrong()
    assert counter.known() == []
    assert registry.value("h") == 0
    assert "h_sum 0\n" in registry.render()


def test_histogram_series_with_bounds_of_their_own() -> None:
    registry = Registry()
    seconds = registry.histogram("t_seconds", "T.", ("s",), (1.0, 2.0))
    own = seconds.create("x", buckets=(0.5, math.inf))
    own.observe(0.5)
    own.observe(9.0)
    seconds.labels("y").observe(1.5)
    assert registry.render().splitlines()[2:] == [
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


def test_a_series_keeps_the_bounds_it_was_made_with() -> None:
    seconds = Registry().histogram("t_seconds", "T.", ("s",), (1.0, 2.0))
    first = seconds.create("x", buckets=(0.5,))
    assert seconds.create("x", buckets=(7.0,)) is first
    assert seconds.labels("x") is first
    assert first.bounds == (0.5,)


def test_a_series_is_looked_up_once_and_then_kept() -> None:
    registry = Registry()
    counter = registry.counter("a_total", "A.", ("x", "y"))
    series = counter.labels("1", "2")
    series.inc()
    series.inc(0)
    counter.labels("1", "2").inc(2)
    assert registry.value("a_total", "1", "2") == 3
    assert 'a_total{x="1",y="2"} 3\n' in registry.render()


def test_removed_series_are_no_longer_exposed() -> None:
    registry = Registry()
    gauge = registry.gauge("g", "G.", ("pod",))
    for pod in ("a", "b"):
        gauge.labels(pod).set(1)
    gauge.remove("a")
    gauge.remove("a")
    gauge.remove("never there")
    assert gauge.known() == [("b",)]
    assert registry.render().splitlines()[2:] == ['g{pod="b"} 1']
    gauge.remove("b")
    assert "g{" not in registry.render()


def test_hooks_run_before_exposition() -> None:
    registry = Registry()
    gauge = registry.gauge("g", "G.")
    registry.on_collect(lambda: gauge.set(7))
    assert registry.value("g") == 7
    assert "g 7\n" in registry.render()


def test_values_are_read_by_name() -> None:
    registry = Registry()
    seconds = registry.histogram("h", "H.", ("x",), (1,))
    seconds.labels("a").observe(3)
    seconds.labels("a").observe(0)
    assert registry.value("h", "a") == 2
    assert registry.value("h", "never seen") == 0
    assert seconds.known() == [("a",)], "reading makes no series"
    with pytest.raises(KeyError):
        registry.value("undeclared")


def test_it_needs_the_standard_library_alone() -> None:
    """The gateway's and the engine's images have little else, and start fast."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import pdserve.exposition\n"
        "added = set(sys.modules) - before - {'pdserve'}\n"
        "foreign = {name for name in added if not name.startswith('pdserve.exposition')\n"
        "           and name.partition('.')[0] not in sys.stdlib_module_names}\n"
        "sys.exit(str(foreign) if foreign else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
