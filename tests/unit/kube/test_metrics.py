"""The text exposition, and what a declaration refuses."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from pdserve.kube.metrics import MetricError, Registry


def test_exposition_of_all_kinds() -> None:
    registry = Registry()
    requests = registry.counter("requests_total", "Requests by code.", ("code",))
    requests.labels("200").inc()
    requests.labels(code="500").inc(2)
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
        'wait_seconds_bucket{leg="a",le="1"} 3\n'
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


@pytest.mark.parametrize("buckets", [(), (1, 1), (2, 1), (math.inf,)])
def test_bad_buckets(buckets: tuple[float, ...]) -> None:
    with pytest.raises(MetricError, match="buckets"):
        Registry().histogram("h", "H.", buckets=buckets)


def test_bad_use() -> None:
    registry = Registry()
    counter = registry.counter("a_total", "A.", ("x", "y"))
    for wrong in (
        lambda: counter.labels("1"),
        lambda: counter.labels("1", "2", "3"),
        lambda: counter.labels(x="1"),
        lambda: counter.labels("1", y="2"),
        lambda: counter.labels("1", "2").inc(-1),
        lambda: counter.labels("1", "2").inc(math.nan),
        lambda: registry.histogram("h", "H.").observe(math.nan),
    ):
        with pytest.raises(MetricError):
            wrong()


def test_removed_series_are_no_longer_exposed() -> None:
    registry = Registry()
    gauge = registry.gauge("g", "G.", ("pod",))
    gauge.labels("a").set(1)
    gauge.labels("b").set(1)
    gauge.remove("a")
    gauge.remove("never there")
    assert 'pod="a"' not in registry.render()
    gauge.clear()
    assert "g{" not in registry.render()


def test_hooks_run_before_exposition() -> None:
    registry = Registry()
    gauge = registry.gauge("g", "G.")
    registry.on_collect(lambda: gauge.set(7))
    assert registry.value("g") == 7
    assert "g 7\n" in registry.render()


def test_importing_metrics_loads_no_kubernetes_client() -> None:
    """The gateway's and the engine's images have no such library, nor the start-up time."""
    code = (
        "import sys, pdserve.kube.metrics, pdserve.kube.httpd\n"
        "heavy = {'kubernetes', 'kopf', 'aiohttp', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
