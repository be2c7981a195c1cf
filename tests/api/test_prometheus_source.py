"""`PrometheusSource` against a real Prometheus that scrapes expositions of this test."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from tests.support.prometheus import (
    Exposition,
    Prometheus,
    eventually,
    exposition,
    running_prometheus,
)
from tests.support.ratio_values import decision_input

from pdserve.engines import registry
from pdserve.ratio.decide import decide
from pdserve.ratio.types import Quantity, Reason, RequestWindow, ScenarioSample, Unknown
from pdserve.telemetry.prometheus import PrometheusSettings, PrometheusSource
from pdserve.telemetry.promql import (
    GATEWAY_SHORTEST,
    WINDOWED,
    queries,
)
from pdserve.telemetry.source import LiveInstances, ScenarioKey
from pdserve.wire import metrics

CHAT = ScenarioKey("ns", "shop", "chat")
SEARCH = ScenarioKey("ns", "shop", "search")
BESIDE = ScenarioKey("beside", "shop", "chat")
"""A service of the same name in another namespace."""
LIVE = LiveInstances(frozenset({"gw-1", "gw-2"}), frozenset({"p-1"}), frozenset({"d-1"}))
BESIDE_LIVE = LiveInstances(frozenset({"gw-beside"}))
WINDOW = 4.0
SCRAPE = 0.25
ENOUGH = 0.9 * WINDOW / SCRAPE
"""Scrapes in a full window: 15 of 16. A failed one is a step all the same, so that a counter has
14 to 17 steps in it, whatever the clock does."""
ABOUT = 0.2
"""How far steps per scrape may be off, relatively, by that. A pod too many or too few is more."""
EXACT = 1e-9
"""Rounding only: quantities of one pod have the very same scrapes in a window."""


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


@pytest.fixture(scope="module")
def pods() -> Iterator[Pods]:
    with closing(Pods()) as made:
        yield made


@pytest.fixture(scope="module")
def prometheus(pods: Pods, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), pods.jobs()) as server:
        yield server


def source(url: str, **over: Any) -> PrometheusSource:
    settings = {"window": WINDOW, "stale_after": 3.0, "query_timeout": 5.0, **over}
    return PrometheusSource(PrometheusSettings(url, registry.series(), **settings))


async def ask(
    asked: PrometheusSource, key: ScenarioKey = CHAT, live: LiveInstances = LIVE
) -> ScenarioSample | Unknown:
    return (await asked.sample({key: live}))[key]


def gateways_full(sample: ScenarioSample | Unknown) -> bool:
    """Whether all pods report and the gateways fill the shortest window."""
    return (
        isinstance(sample, ScenarioSample)
        and sample.missing_count == 0
        and at_least(ENOUGH, sample.windows[0].scrapes)
    )


def full(sample: ScenarioSample | Unknown) -> bool:
    """The same, and the engines fill it too."""
    return (
        isinstance(sample, ScenarioSample)
        and gateways_full(sample)
        and at_least(50 * ENOUGH, sample.prefill.batches)
        and at_least(50 * ENOUGH, sample.decode.steps)
    )


def at_least(least: float, value: Quantity) -> bool:
    return isinstance(value, float) and value >= least


async def filled(asked: PrometheusSource, live: LiveInstances = LIVE) -> ScenarioSample:
    got = await eventually(lambda: ask(asked, CHAT, live), full)
    assert isinstance(got, ScenarioSample)
    return got


def number(value: Quantity) -> float:
    assert isinstance(value, float)
    return value


def per_scrape(sample: ScenarioSample) -> float:
    """Steps of `offered` (it is 1) in the shortest window per scrape of a gateway."""
    shortest = sample.windows[0]
    return number(shortest.offered) / number(shortest.scrapes)


def check_window(window: RequestWindow) -> None:
    """Steps differ by quantity, so a mixed-up query shows."""
    per_step = number(window.offered)
    for i, name in enumerate(WINDOWED):
        assert getattr(window, name) == pytest.approx((i + 1) * per_step, rel=EXACT), name


def check_shortest(got: ScenarioSample) -> None:
    """The same, of what is counted over the shortest window only."""
    per_step = number(got.windows[0].offered)
    prefill = number(got.prefill.batches) / 50
    for i, name in enumerate(metrics.PREFILL_SERIES):
        assert getattr(got.prefill, name) == pytest.approx((i + 50) * prefill, rel=EXACT), name
    decode = number(got.decode.steps) / 50
    for i, name in enumerate(metrics.DECODE_SERIES):
        assert getattr(got.decode, name) == pytest.approx((i + 50) * decode, rel=EXACT), name
    order = list(GATEWAY_SHORTEST)
    for name in ("decode_overload", "expired", "failed"):
        step = order.index(name) + 20
        assert getattr(got, name) == pytest.approx(step * per_step, rel=EXACT), name
    ttft = (order.index("ttft_sum") + 20) / (order.index("ttft_count") + 20)
    assert got.ttft_seconds == pytest.approx(ttft, rel=EXACT)


async def test_every_quantity_has_its_own_numbers(prometheus: Prometheus) -> None:
    asked = source(prometheus.url)
    got = await filled(asked)
    check_window(got.windows[0])
    check_shortest(got)
    assert per_scrape(got) == pytest.approx(2, rel=ABOUT), "two gateways, one step per scrape"
    scrapes = number(got.windows[0].scrapes)
    assert number(got.prefill.batches) / 50 == pytest.approx(scrapes, rel=ABOUT)
    assert number(got.decode.steps) / 50 == pytest.approx(scrapes, rel=ABOUT)
    assert got.waiting == 14.0
    assert number(got.age) <= 3.0
    assert (got.prefill.instances, got.decode.instances, got.live) == (1, 1, 4)
    await asked.close()


async def test_a_scrape_is_in_all_numbers_of_a_round_or_in_none(
    pods: Pods, prometheus: Prometheus
) -> None:
    """Half of the time a scrape of each pod is on its way: begun, and not yet to be seen."""
    asked = source(prometheus.url)

    def all_count(sample: ScenarioSample | Unknown) -> bool:
        """Each pod reports and was scraped twice at least, and no NaN is left in a window."""
        return (
            isinstance(sample, ScenarioSample)
            and sample.missing_count == 0
            and all(at_least(2, window.met) for window in sample.windows)
            and at_least(50, sample.prefill.batches)
            and at_least(50, sample.decode.steps)
        )

    with pods.slow(SCRAPE / 2):
        for _ in range(30):
            got = await eventually(lambda: ask(asked), all_count)
            assert isinstance(got, ScenarioSample)
            for window in got.windows:
                check_window(window)
            check_shortest(got)
    await asked.close()


async def test_scenarios_and_namespaces_do_not_mix(prometheus: Prometheus) -> None:
    asked = source(prometheus.url)
    gateways = LiveInstances(LIVE.gateways)

    async def three() -> list[ScenarioSample | Unknown]:
        got = await asked.sample({CHAT: gateways, SEARCH: gateways, BESIDE: BESIDE_LIVE})
        return [got[key] for key in (CHAT, SEARCH, BESIDE)]

    chat, search, beside = await eventually(three, lambda got: all(map(gateways_full, got)))
    assert isinstance(chat, ScenarioSample)
    assert isinstance(search, ScenarioSample)
    assert isinstance(beside, ScenarioSample)
    offered = number(chat.windows[0].offered)
    assert search.windows[0].offered == pytest.approx(10 * offered, rel=EXACT)
    assert per_scrape(chat) == pytest.approx(2, rel=ABOUT)
    assert per_scrape(beside) == pytest.approx(1, rel=ABOUT)
    await asked.close()


async def test_series_of_pods_that_are_not_live_are_left_out(prometheus: Prometheus) -> None:
    asked = source(prometheus.url)
    two = await filled(asked)
    three = await filled(asked, replace(LIVE, gateways=LIVE.gateways | {"gw-old"}))
    assert per_scrape(two) == pytest.approx(2, rel=ABOUT)
    assert per_scrape(three) == pytest.approx(3, rel=ABOUT)
    await asked.close()


async def test_a_counter_reset_is_not_a_negative_increase(
    pods: Pods, prometheus: Prometheus
) -> None:
    asked = source(prometheus.url)
    await filled(asked)
    with pods.restarting("gw-1", after=4):
        began = time.time()

        def shows_resets(sample: ScenarioSample | Unknown) -> bool:
            """Half of its window is of the time of resets: 8 scrapes, so one is among them."""
            return (
                isinstance(sample, ScenarioSample)
                and full(sample)
                and sample.at > began + WINDOW / 2
            )

        got = await eventually(lambda: ask(asked), shows_resets)
        assert pods.scraped["gw-1"] <= 4
    assert isinstance(got, ScenarioSample)
    assert per_scrape(got) == pytest.approx(2, rel=ABOUT)
    await asked.close()


@pytest.mark.invariant(6)
async def test_a_target_that_breaks_is_partial_and_named(
    pods: Pods, prometheus: Prometheus
) -> None:
    asked = source(prometheus.url)
    await filled(asked)
    with pods.spoil("gw-2", None):
        got = await eventually(
            lambda: ask(asked), lambda s: isinstance(s, ScenarioSample) and s.missing == ("gw-2",)
        )
    decision = decide(decision_input(sample=got))
    assert decision.reason is Reason.HOLD_NO_DATA
    assert "gw-2" in decision.message
    await filled(asked)
    await asked.close()


@pytest.mark.invariant(6)
async def test_nan_becomes_unknown_and_nothing_scales(pods: Pods, prometheus: Prometheus) -> None:
    asked = source(prometheus.url)
    await filled(asked)

    def unknown(sample: ScenarioSample | Unknown) -> bool:
        return isinstance(sample, ScenarioSample) and isinstance(sample.windows[0].met, Unknown)

    with pods.spoil("gw-1", "NaN"):
        got = await eventually(lambda: ask(asked), unknown)
    assert decide(decision_input(sample=got)).reason is Reason.HOLD_NO_DATA
    # Until the NaN has left the shortest window the quantity stays unknown.
    await eventually(lambda: ask(asked), lambda s: full(s) and not unknown(s))
    await asked.close()


@pytest.mark.invariant(6)
async def test_samples_older_than_the_limit_do_not_count(prometheus: Prometheus) -> None:
    asked = source(prometheus.url, stale_after=-1.0)
    got = await eventually(
        lambda: ask(asked),
        lambda s: isinstance(s, ScenarioSample) and not isinstance(s.age, Unknown),
    )
    assert isinstance(got, ScenarioSample)
    assert got.missing_count == got.live
    assert decide(decision_input(sample=got)).reason is Reason.HOLD_NO_DATA
    await asked.close()


async def test_no_such_scenario_is_unknown_not_zero(prometheus: Prometheus) -> None:
    asked = source(prometheus.url)
    await filled(asked)
    got = await ask(asked, ScenarioKey("ns", "shop", 'no"such\\one'))
    assert isinstance(got, ScenarioSample)
    assert isinstance(got.age, Unknown)
    assert decide(decision_input(sample=got)).reason is Reason.HOLD_NO_DATA
    assert await asked.sample({}) == {}
    await asked.close()


async def test_matchers_narrow_a_shared_server(prometheus: Prometheus) -> None:
    mine = source(prometheus.url, matchers={"job": "pdserve"})
    await filled(mine)
    other = source(prometheus.url, matchers={"job": 'other"} or up{job="pdserve'})
    got = await ask(other)
    assert isinstance(got, ScenarioSample)
    assert got.missing_count == 4
    await mine.close()
    await other.close()


async def test_every_query_is_understood_by_the_server(prometheus: Prometheus) -> None:
    asked = source(prometheus.url)
    answers = await asked._round(frozenset())
    assert [name for name, rows in answers.rows.items() if isinstance(rows, Unknown)] == []
    assert len(answers.rows) == len(queries((1.0, 2.0, 3.0), {}, registry.series()))
    await asked.close()


# --- a server that is away, slow or something else ------------------------------------------------


@pytest.mark.invariant(6)
async def test_a_server_that_dies_is_unknown_left_alone_and_found_again(tmp_path: Path) -> None:
    now = [0.0]
    with running_prometheus(tmp_path, []) as server:
        settings = PrometheusSettings(server.url, registry.series(), window=WINDOW)
        asked = PrometheusSource(settings, clock=lambda: now[0])
        await eventually(lambda: ask(asked), lambda s: isinstance(s, ScenarioSample))
        server.stop()
        for _ in range(3):
            got = await ask(asked)
            assert isinstance(got, Unknown)
            assert "ConnectionError" in got.reason
        refused = await ask(asked)
        assert isinstance(refused, Unknown)
        assert "next try in 5 s" in refused.reason
        decision = decide(decision_input(sample=refused))
        assert decision.reason is Reason.HOLD_NO_DATA
        assert server.url in decision.message
    with running_prometheus(tmp_path, [], server.host):
        assert isinstance(await ask(asked), Unknown), "still left alone"
        now[0] = 6.0
        assert isinstance(await ask(asked), ScenarioSample)
    await asked.close()


async def test_a_server_that_never_answers_costs_one_deadline() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        asked = source(url, query_timeout=30.0, round_timeout=0.3, threads=1)
        started = time.monotonic()
        got = await ask(asked)
        assert isinstance(got, Unknown)
        assert "no answer within 0.3 s" in got.reason
        again = await ask(asked)
        assert isinstance(again, Unknown)
        assert "still hang" in again.reason
        assert time.monotonic() - started < 5.0
        await asked.close()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("<html>hello</html>", "not a Prometheus answer"),
        ('{"data": {"result": "?"}}', "not a time"),
        ('{"data": {"result": [{"value": [1, "NaN"]}]}}', "not a time"),
        (None, "server refused"),
    ],
)
async def test_something_that_is_no_prometheus_is_unknown(text: str | None, word: str) -> None:
    with closing(Exposition(lambda: text)) as other:
        asked = source(f"http://127.0.0.1:{other.port}")
        got = await ask(asked)
        assert isinstance(got, Unknown)
        assert word in got.reason
        await asked.close()
