"""From rows to samples: who counts, what is missing, what is unknown."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from tests.support.ratio_values import decision_input

from pdserve.engines import registry
from pdserve.ratio.decide import decide
from pdserve.ratio.types import Reason, ScenarioSample, Unknown
from pdserve.telemetry.assemble import Answers, assemble
from pdserve.telemetry.promql import Rows, SeriesKey, queries
from pdserve.telemetry.source import LiveInstances, ScenarioKey

KEY = ScenarioKey("ns", "shop", "chat")
LIVE = LiveInstances(frozenset({"gw-1", "gw-2"}), frozenset({"p-1"}), frozenset({"d-1", "d-2"}))
WINDOWS = (60.0, 180.0)
GATEWAYS, ENGINES = ("gw-1", "gw-2"), ("p-1", "d-1", "d-2")


def answers(**over: Rows | Unknown) -> Answers:
    """Each gateway 100 of everything, each engine 10, all fresh, 12 scrapes."""
    rows: dict[str, Rows | Unknown] = {}
    for query in queries(WINDOWS, {}, registry.series()):
        rows[query.name] = at(100.0, *GATEWAYS) | at(10.0, *ENGINES)
    rows["gateway_age"] = at(2.0, *GATEWAYS)
    rows["engine_age"] = at(3.0, *ENGINES)
    for index in range(len(WINDOWS)):
        rows[f"scrapes@{index}"] = at(12.0, *GATEWAYS)
    rows.update({name.replace("__", "@"): value for name, value in over.items()})
    return Answers(5000.0, 1.0, WINDOWS, 60.0, rows)


def at(value: float, *pods: str, key: ScenarioKey = KEY) -> Rows:
    return {SeriesKey(*key, pod): value for pod in pods}


def sample(live: LiveInstances = LIVE, **over: Any) -> ScenarioSample:
    got = assemble(KEY, live, answers(**over))
    assert isinstance(got, ScenarioSample)
    return got


def test_sums_over_live_gateways_and_instances() -> None:
    got = sample()
    assert [w.seconds for w in got.windows] == [60.0, 180.0]
    first = got.windows[0]
    assert (first.scrapes, first.offered, first.met, first.cached_tokens) == (12, 200, 200, 200)
    assert (got.prefill.instances, got.prefill.compute_seconds) == (1, 10.0)
    assert (got.decode.instances, got.decode.step_context) == (2, 20.0)
    assert (got.age, got.at, got.lag, got.live, got.missing) == (2.0, 5000.0, 1.0, 5, ())
    assert (got.ttft_seconds, got.waiting, got.failed) == (1.0, 200.0, 200.0)


def test_deleted_and_cold_pods_and_other_scenarios_do_not_count() -> None:
    other_namespace = ScenarioKey("other", "shop", "chat")
    rows = at(100.0, *GATEWAYS) | at(1e6, "gw-deleted") | at(1e6, "gw-1", key=other_namespace)
    assert sample(offered__0=rows).windows[0].offered == 200
    warm_only = LiveInstances(LIVE.gateways, LIVE.prefill, frozenset({"d-1"}))
    got = sample(warm_only)
    assert (got.decode.instances, got.decode.steps, got.live) == (1, 10.0, 4)


@pytest.mark.invariant(6)
@pytest.mark.parametrize(
    ("over", "missing"),
    [
        ({"gateway_age": at(2.0, "gw-1")}, ("gw-2",)),
        ({"gateway_age": at(2.0, "gw-1") | at(math.nan, "gw-2")}, ("gw-2",)),
        ({"engine_age": at(2.0, "p-1", "d-2")}, ("d-1",)),
        ({"engine_age": {}}, ("d-1", "d-2", "p-1")),
    ],
)
def test_partial_targets_are_named_and_nothing_scales(
    over: dict[str, Any], missing: tuple[str, ...]
) -> None:
    got = sample(**over)
    assert got.missing == missing
    assert got.missing_count == len(missing)
    decision = decide(decision_input(sample=got))
    assert decision.reason is Reason.HOLD_NO_DATA
    assert missing[0] in decision.message


def test_a_counter_not_yet_made_by_a_fresh_gateway_is_zero() -> None:
    got = sample(decode_overload=at(5.0, "gw-2"), expired={})
    assert (got.decode_overload, got.expired) == (5.0, 0.0)


@pytest.mark.invariant(6)
def test_an_outdated_gateway_makes_the_sample_stale() -> None:
    got = sample(gateway_age=at(2.0, "gw-1") | at(61.0, "gw-2"))
    assert (got.age, got.missing) == (61.0, ("gw-2",))
    assert "stale: newest sample is 61 s old" in decide(decision_input(sample=got)).message


@pytest.mark.invariant(6)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e308])
def test_one_value_that_is_no_count_makes_the_quantity_unknown(value: float) -> None:
    got = sample(met__0=at(100.0, "gw-1") | at(value, "gw-2"))
    met = got.windows[0].met
    assert isinstance(met, Unknown)
    assert "gw-2" in met.reason
    scrapes = sample(scrapes__0=at(value, *GATEWAYS)).windows[0].scrapes
    assert scrapes == Unknown("scrapes are no counts")
    assert decide(decision_input(sample=got)).reason is Reason.HOLD_NO_DATA


def test_a_failed_query_makes_only_its_quantity_unknown() -> None:
    got = sample(tokens=Unknown("query tokens: server refused"))
    assert got.prefill.tokens == Unknown("query tokens: server refused")
    assert got.prefill.batches == 10.0
    assert sample(scrapes__0=Unknown("x")).windows[0].scrapes == Unknown("x")


@pytest.mark.parametrize("anchor", ["gateway_age", "engine_age"])
def test_a_failed_anchor_makes_the_scenario_unknown(anchor: str) -> None:
    got = assemble(KEY, LIVE, answers(**{anchor: Unknown("timeout")}))
    assert got == Unknown("timeout")


def test_the_fewest_scrapes_and_the_greatest_age_count() -> None:
    got = sample(
        scrapes__0=at(12.0, "gw-1") | at(2.0, "gw-2"),
        gateway_age=at(1.0, "gw-1") | at(9.0, "gw-2"),
    )
    assert (got.windows[0].scrapes, got.age) == (2.0, 9.0)


def test_nothing_scraped_yet_is_unknown_not_zero() -> None:
    got = sample(gateway_age={}, engine_age={})
    assert isinstance(got.age, Unknown)
    assert isinstance(got.windows[0].offered, Unknown)
    assert isinstance(got.windows[0].scrapes, Unknown)
    assert isinstance(got.prefill.batches, Unknown)


def test_no_first_tokens_is_no_mean() -> None:
    got = sample(ttft_count=at(0.0, *GATEWAYS), waiting=Unknown("y"))
    assert isinstance(got.ttft_seconds, Unknown)
    assert got.waiting == Unknown("y")


def test_many_missing_pods_are_counted_and_the_first_are_named() -> None:
    crowd = LiveInstances(LIVE.gateways, frozenset(f"p-{i:03}" for i in range(50)), LIVE.decode)
    got = sample(crowd)
    assert got.missing_count == 50
    assert got.missing == tuple(f"p-{i:03}" for i in range(10))


def test_times_of_each_instance_that_computed_are_kept() -> None:
    idle = at(10.0, "p-1", "d-1") | at(0.0, "d-2")
    got = sample(steps=idle)
    assert [(i.name, i.role, i.count) for i in got.instances] == [
        ("p-1", "prefill", 10.0), ("d-1", "decode", 10.0),
    ]  # fmt: skip
    assert sample(step_seconds=Unknown("away")).instances[-1].role == "prefill"


def test_the_newest_arrivals_are_read_over_half_the_shortest_window() -> None:
    recent = sample(recent_arrived=at(40.0, *GATEWAYS), recent_steps=Unknown("x")).recent
    assert recent is not None
    assert (recent.seconds, recent.arrived, recent.prefill_tokens) == (30.0, 80.0, 10.0)
    assert isinstance(recent.decode_tokens, Unknown)


def test_ages_count_from_the_moment_of_asking_when_samples_are_late() -> None:
    late = replace(answers(), lag=31.0, shift=30.0)
    got = assemble(KEY, LIVE, late)
    assert isinstance(got, ScenarioSample)
    assert (got.age, got.lag) == (32.0, 31.0)
    too_late = assemble(KEY, LIVE, replace(late, shift=58.5))
    assert isinstance(too_late, ScenarioSample)
    assert set(too_late.missing) == {"gw-1", "gw-2", "p-1", "d-1", "d-2"}
