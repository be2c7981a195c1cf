"""Counters, gauges and histograms of one process, and the text Prometheus scrapes (0.0.4).

Operator, gateway and engine all use it, so it stands at the bottom: the standard library alone, no
Kubernetes, nothing of P/D. The users decide what is counted and under which name
(`wire.metrics`, or beside the code that counts); `http1.pages`, the gateway and the engine serve
`Registry.render`. Where to look: `registry` declares, `families` are the metrics, `series` is what
hot paths touch, `exposition_text` the spelling of names, labels and numbers, `process_metrics` what
every process reports about itself.

Not thread-safe: one event loop owns a registry. Histograms have fixed buckets, no exemplars, no
timestamps; that is all a scrape needs.
"""

from pdserve.exposition.exposition_text import CONTENT_TYPE, MetricError
from pdserve.exposition.families import SECONDS_BUCKETS, Counter, Gauge, Histogram
from pdserve.exposition.registry import Registry
from pdserve.exposition.series import CounterSeries, GaugeSeries, HistogramSeries

__all__ = [
    "CONTENT_TYPE",
    "SECONDS_BUCKETS",
    "Counter",
    "CounterSeries",
    "Gauge",
    "GaugeSeries",
    "Histogram",
    "HistogramSeries",
    "MetricError",
    "Registry",
]
