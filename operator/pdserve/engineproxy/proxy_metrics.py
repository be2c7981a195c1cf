"""Metric families of the proxy, under the names of `wire.metrics`.

What the proxy sees itself is counted here; counters that only the engine has (steps) are read from
its exposition at each scrape (`--series`). Time of computing is time in which at least one request
was with the engine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Final

from pdserve import __version__
from pdserve.engineproxy.places import Places
from pdserve.engineproxy.stream_end import TokenCounts
from pdserve.exposition import Counter, Registry
from pdserve.exposition.process_metrics import tell_process
from pdserve.terms import Role
from pdserve.wire import metrics

_SAMPLE: Final = re.compile(
    r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^\n]*\})?[ \t]+([^ \t\n]+)", re.MULTILINE
)


class BusyTime:
    """Seconds in which at least one request was under way."""

    def __init__(self, counter: Counter) -> None:
        self._counter, self._running, self._since = counter, 0, 0.0

    def begin(self) -> None:
        """A request begins."""
        self.count()
        self._running += 1

    def end(self) -> None:
        """A request has ended."""
        self.count()
        self._running -= 1

    def count(self) -> None:
        """Count what has passed until now."""
        now = time.monotonic()
        if self._running:
            self._counter.labels().inc(now - self._since)
        self._since = now


class ProxyMetrics:
    """All series of one proxy process."""

    def __init__(
        self, role: Role, slots: int, places: Places, series: Mapping[str, str],
        *, pulls: bool = True,
    ) -> None:  # fmt: skip
        """`series`: as in `ProxyConfig`; `pulls`: transfers of KV are seen here."""
        self.registry = Registry()
        tell_process(self.registry, "engine-proxy", __version__)
        self._role, self._slots, self._places = role, slots, places
        self._sources = series
        self._last: dict[str, float] = {}
        """Newest value of each of the engine's counters, by our name."""
        counter = self.registry.counter
        self._state = self.registry.gauge(metrics.SLOTS, "Slots by state", ["state"])
        self._rejections = counter(metrics.REJECTIONS, "Requests refused by reason", ["reason"])
        if role == "prefill":
            seconds = counter(metrics.PREFILL_COMPUTE_SECONDS, "Time with prompts at the engine")
            self._requests = counter(metrics.PREFILL_REQUESTS, "Prompts completed")
            self._tokens = counter(metrics.PREFILL_TOKENS, "Uncached prompt tokens computed")
            self._squared = counter(
                metrics.PREFILL_TOKENS_SQUARED, "Squares of uncached prompt lengths"
            )
            if pulls:
                self._wait = counter(
                    metrics.KV_WAIT_DECODE_SECONDS, "Time until a decode began to pull KV"
                )
                self._transfer = counter(metrics.KV_TRANSFER_SECONDS, "Time of KV transfers")
                self._transfers = counter(metrics.KV_TRANSFERS, "KV transfers")
        else:
            seconds = counter(metrics.DECODE_STEP_SECONDS, "Time with requests at the engine")
            self._made = counter(metrics.DECODE_STEP_REQUESTS, "Tokens made")
            self._context = counter(
                metrics.DECODE_STEP_CONTEXT, "Context tokens of the requests in these steps"
            )
        self.busy = BusyTime(seconds)
        for name, source in series.items():
            counter(name, f"The engine's {source}")
        self.registry.on_collect(self._collect)

    def rejected(self, reason: str) -> None:
        """Count a refused request."""
        self._rejections.labels(reason).inc()

    def prefilled(self, counts: TokenCounts) -> None:
        """Count a finished prefill."""
        uncached = max(0, counts.prompt - counts.cached)
        self._requests.labels().inc()
        self._tokens.labels().inc(uncached)
        self._squared.labels().inc(uncached**2)

    def pulled(self, held: float, transfer: float) -> None:
        """Count a pull; both in seconds: since the reply, and of the transfer alone."""
        transfer = min(max(0.0, transfer), max(0.0, held))
        self._wait.labels().inc(max(0.0, held) - transfer)
        self._transfer.labels().inc(transfer)
        self._transfers.labels().inc()

    def decoded(self, counts: TokenCounts) -> None:
        """Count a finished reply of a decode: step i of it had the prompt and i tokens."""
        self._made.labels().inc(counts.made)
        steps = counts.made
        self._context.labels().inc(steps * counts.prompt + steps * (steps - 1) // 2)

    def read_engine(self, exposition: str) -> None:
        """Take over the counters of the engine's exposition; one that went down began anew."""
        sums = dict.fromkeys(self._sources.values(), 0.0)
        seen = set()
        for name, value in _SAMPLE.findall(exposition):
            if name in sums:
                number = _number(value)
                if number is not None:
                    sums[name] += number
                    seen.add(name)
        for ours, theirs in self._sources.items():
            if theirs in seen:
                value, before = sums[theirs], self._last.get(ours, 0.0)
                grown = value - before if value >= before else value
                self.registry.counter(ours, f"The engine's {theirs}").labels().inc(grown)
                self._last[ours] = value

    def _collect(self) -> None:
        self.busy.count()
        executing, holding = self._places.executing, self._places.holding
        states = {"total": self._slots, "executing": executing, "holding": holding}
        if self._role == "decode":
            running = min(executing, self._slots)
            states = {"total": self._slots, "running": running, "prefetching": executing - running}
        for state, count in states.items():
            self._state.labels(state).set(count)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None
