"""Expositions that play gateways and engines for a real Prometheus, and a source that asks it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from tests.support.prometheus import (
    Exposition,
    exposition,
)

from pdserve.engines import registry
from pdserve.ratio.types import ScenarioSample, Unknown
from pdserve.telemetry.prometheus import PrometheusSettings, PrometheusSource
from pdserve.telemetry.promql import (
    GATEWAY_SHORTEST,
    WINDOWED,
)
from pdserve.telemetry.source import LiveInstances, ScenarioKey
from pdserve.wire import metrics

CHAT = ScenarioKey("ns", "shop", "chat")
LIVE = LiveInstances(frozenset({"gw-1", "gw-2"}), frozenset({"p-1"}), frozenset({"d-1"}))
WINDOW = 4.0
SCRAPE = 0.25


class Pods:
    """Expositions that play gateways and engines: every scrape finds each counter one step on.

    So an increase is (scrapes in the window) x (step of the quantity), whatever the clock does.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """What an answer takes."""
        self.scraped: dict[str, int] = {}
        self.spoiled: dict[str, str | None] = {}
        """By pod: a value to show everywhere instead, or None to answer 503."""
        self.restarts: dict[str, int] = {}
        """By pod: it starts anew after so many scrapes."""
        self._lock = Lock()  # a slow answer and the next one are threads side by side
        self.expositions = {
            name: Exposition(lambda name=name: self.page(name))  # type: ignore[misc]
            for name in ("gw-1", "gw-2", "gw-old", "gw-beside", "gw-rogue", "p-1", "d-1")
        }

    def page(self, name: str) -> str | None:
        time.sleep(self.seconds)
        with self._lock:
            ticks = self.scraped.get(name, 0)
            ticks = 1 if ticks >= self.restarts.get(name, ticks + 1) else ticks + 1
            self.scraped[name] = ticks
            spoiled, instead = name in self.spoiled, self.spoiled.get(name)
        if name == "gw-rogue":
            values = self.rogue(ticks)
        elif name.startswith("gw"):
            values = self.gateway(ticks)
        else:
            values = self.engine(
                ticks, metrics.PREFILL_SERIES if name == "p-1" else metrics.DECODE_SERIES
            )
        if not spoiled:
            return exposition(values)
        return None if instead is None else exposition(dict.fromkeys(values, instead))

    @contextmanager
    def spoil(self, name: str, instead: str | None) -> Iterator[None]:
        with self._lock:
            self.spoiled[name] = instead
        try:
            yield
        finally:
            with self._lock:
                del self.spoiled[name]

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Every answer takes this long."""
        self.seconds = seconds
        try:
            yield
        finally:
            self.seconds = 0.0

    @contextmanager
    def restarting(self, name: str, after: int) -> Iterator[None]:
        """Its counters begin again every `after` scrapes, at the next one for the first time."""
        with self._lock:
            assert self.scraped[name] >= after
            self.restarts[name] = after
        try:
            yield
        finally:
            with self._lock:
                del self.restarts[name]

    @staticmethod
    def gateway(ticks: int) -> dict[str, float]:
        """`chat` has the step of each quantity, `search` ten times that."""
        values: dict[str, float] = {}
        for scenario, factor in (("chat", 1), ("search", 10)):
            own = f'service="shop",scenario="{scenario}"'
            for i, metric in enumerate(WINDOWED.values()):
                values[f"{metric}{{{own}}}"] = ticks * (i + 1) * factor
            for i, (metric, extra) in enumerate(GATEWAY_SHORTEST.values()):
                labels = ",".join([own, *(f'{k}="{v}"' for k, v in extra.items())])
                values[f"{metric}{{{labels}}}"] = ticks * (i + 20) * factor
            values[f"{metrics.GATEWAY_WAITING}{{{own}}}"] = 7 * factor
        return values

    @classmethod
    def rogue(cls, ticks: int) -> dict[str, float]:
        """Series that claim to be `gw-1`'s, from a pod of another namespace: never counted."""
        claim = '{namespace="ns",pod="gw-1",'
        return {k.replace("{", claim, 1): v * 1000 for k, v in cls.gateway(ticks).items()}

    @staticmethod
    def engine(ticks: int, quantities: dict[str, str]) -> dict[str, float]:
        values: dict[str, float] = {
            metric: ticks * (i + 50) for i, metric in enumerate(quantities.values())
        }
        values[f'{metrics.SLOTS}{{state="total"}}'] = 4
        return values

    def jobs(self) -> list[dict[str, Any]]:
        def target(name: str, **labels: str) -> dict[str, Any]:
            where = f"127.0.0.1:{self.expositions[name].port}"
            return {"targets": [where], "labels": {"pod": name, "namespace": "ns", **labels}}

        chat = {"service": "shop", "scenario": "chat"}
        return [
            {
                "job_name": "pdserve",
                "scrape_interval": f"{round(SCRAPE * 1000)}ms",
                "scrape_timeout": f"{round(SCRAPE * 1000)}ms",
                "static_configs": [
                    target("gw-1"),
                    target("gw-2"),
                    target("gw-old"),
                    target("gw-beside", namespace="beside"),
                    target("gw-rogue", namespace="mallory", service="shop"),
                    target("p-1", role="prefill", **chat),
                    target("d-1", role="decode", **chat),
                ],
            }
        ]

    def close(self) -> None:
        for served in self.expositions.values():
            served.close()


def source(url: str, **over: Any) -> PrometheusSource:
    settings = {"window": WINDOW, "stale_after": 3.0, "query_timeout": 5.0, **over}
    return PrometheusSource(PrometheusSettings(url, registry.series(), **settings))


async def ask(
    asked: PrometheusSource, key: ScenarioKey = CHAT, live: LiveInstances = LIVE
) -> ScenarioSample | Unknown:
    return (await asked.sample({key: live}))[key]
