"""`PrometheusSource` against a real Prometheus that scrapes expositions of this test."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from tests.support.prometheus import (
    Prometheus,
    eventually,
    running_prometheus,
)
from tests.support.prometheus_pods import CHAT, LIVE, SCRAPE, WINDOW, Pods, ask, source
from tests.support.ratio_values import decision_input

from pdserve.engines import registry
from pdserve.ratio.decide import decide
from pdserve.ratio.types import Quantity, Reason, RequestWindow, ScenarioSample, Unknown
from pdserve.telemetry.prometheus import PrometheusSource
from pdserve.telemetry.promql import (
    GATEWAY_SHORTEST,
    WINDOWED,
    queries,
)
from pdserve.telemetry.source import LiveInstances, ScenarioKey
from pdserve.wire import metrics

SEARCH = ScenarioKey("ns", "shop", "search")
BESIDE = ScenarioKey("beside", "shop", "chat")
"""A service of the same name in another namespace."""
BESIDE_LIVE = LiveInstances(frozenset({"gw-beside"}))
ENOUGH = 0.9 * WINDOW / SCRAPE
"""Scrapes in a full window: 15 of 16. A failed one is a step all the same, so that a counter has
14 to 17 steps in it, whatever the clock does."""
ABOUT = 0.2
"""How far steps per scrape may be off, relatively, by that. A pod too many or too few is more."""
EXACT = 1e-9
"""Rounding only: quantities of one pod have the very same scrapes in a window."""


@pytest.fixture(scope="module")
def pods() -> Iterator[Pods]:
    with closing(Pods()) as made:
        yield made


@pytest.fixture(scope="module")
def prometheus(pods: Pods, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), pods.jobs()) as server:
        yield server


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


def test_every_query_is_understood_by_the_server(prometheus: Prometheus) -> None:
    for query in queries((1.0, 2.0, 3.0), {}, registry.series()):
        form = urlencode({"query": query.text}).encode()
        with urlopen(f"{prometheus.url}/api/v1/query", form, timeout=60) as answer:
            assert json.load(answer)["status"] == "success", query.name
