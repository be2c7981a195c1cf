"""The virtual Prometheus answers as a real one would, and answers every query of a round."""

from __future__ import annotations

import pytest

from pdserve.ratio.presets import preset
from pdserve.ratio.types import Counts, ScenarioSample, Unknown, known
from pdserve.sim.kernel import layout
from pdserve.sim.plant import PlantSpec, ScenarioPlant
from pdserve.sim.series_names import ARRIVED
from pdserve.sim.shapes import DRAWN, SLO
from pdserve.sim.traffic import block
from pdserve.sim.virtual_prometheus import GATEWAY, WINDOWS, VirtualPrometheus, live_instances
from pdserve.telemetry.promql import queries
from pdserve.wire import metrics

PROFILE = preset("llama2-70b-h100x8", 4, 64)


class Ticking:
    """A counter that rises by `step` with each scrape, in place of a plant's."""

    def __init__(self, step: float, start: float = 0.0) -> None:
        self.now, self.step, self.value, self.waiting = 0.0, step, start, 0

    def gateway(self) -> list[float]:
        return [self.value] * layout.G_FLOATS

    def instances(self) -> list[object]:
        return []


def scraped(step: float, count: int, interval: float, start: float = 0.0) -> VirtualPrometheus:
    metrics_ = VirtualPrometheus(interval)
    plant = Ticking(step, start)
    for _ in range(count):
        metrics_.scrape(plant)  # type: ignore[arg-type]
        plant.now += interval
        plant.value += step
    return metrics_


@pytest.mark.parametrize(
    ("step", "start", "at", "window", "want"),
    [
        # from Prometheus' own promql/promqltest/testdata/functions.test: 0+10x10 every 5 m
        (10.0, 0.0, 3000.0, 3000.0, 100.0),
        # first sample far from the start of the window: half an interval is added, not the rest
        (10.0, 500.0, 3000.0, 6000.0, 100.0 * (3000.0 + 150.0) / 3000.0),
        # the same counter from zero: never extrapolated below zero
        (10.0, 0.0, 3000.0, 6000.0, 100.0),
        # the last sample is 200 s old, less than 1.1 intervals: extrapolated to the end
        (10.0, 500.0, 3200.0, 1000.0, 20.0 * (600.0 + 200.0 + 200.0) / 600.0),
    ],
)
def test_increase_extrapolates_as_prometheus_does(
    step: float, start: float, at: float, window: float, want: float
) -> None:
    server = scraped(step, 11, 300.0, start)
    assert server.increase(GATEWAY, ARRIVED, at, window) == pytest.approx(want)


def test_one_sample_has_no_increase_and_unknown_series_no_value() -> None:
    server = scraped(1.0, 1, 15.0)
    assert server.increase(GATEWAY, ARRIVED, 10.0, 60.0) is None
    assert server.increase("absent", ARRIVED, 10.0, 60.0) is None
    assert server.latest(GATEWAY, "no_such_series", 10.0) is None
    assert server.latest(GATEWAY, ARRIVED, 10.0) == 0.0
    assert server.latest(GATEWAY, ARRIVED, 400.0) is None, "older than five minutes"


def test_late_samples_are_not_seen_early() -> None:
    server = VirtualPrometheus(15.0, delay=30.0)
    plant = Ticking(1.0)
    for _ in range(9):
        server.scrape(plant)  # type: ignore[arg-type]
        plant.now += 15.0
        plant.value += 1.0
    assert server.latest(GATEWAY, ARRIVED, 120.0) == 6.0
    # Windows end at the newest sample that can be read, so that they are full.
    assert server.answers(120.0).rows["scrapes@0"] == {("sim", "shop", "chat", GATEWAY): 4.0}


def test_every_query_of_a_round_is_answered() -> None:
    """What the loop asks is what this server knows: a query added there fails here."""
    asked = {query.name for query in queries(WINDOWS, {}, {
        name: [series] for name, series in metrics.ENGINE_SERIES.items()
    })}  # fmt: skip
    server = VirtualPrometheus(15.0)
    server.scrape(ScenarioPlant(PlantSpec(PROFILE, SLO), Counts(1, 1, 1)))
    assert set(server.answers(1.0).rows) == asked


def test_a_sample_says_what_the_plant_did() -> None:
    plant = ScenarioPlant(PlantSpec(PROFILE, SLO), Counts(1, 3, 5))
    server = VirtualPrometheus(15.0)
    shape = DRAWN["constant"]
    for minute in range(4):
        plant.feed(block(shape, 1, minute))
        for quarter in range(1, 5):
            plant.run_until(60.0 * minute + 15.0 * quarter)
            server.scrape(plant)
    sample = server.sample(plant, 60.0)
    assert isinstance(sample, ScenarioSample)
    assert sample.live == 1 + 3 + 5
    assert sample.missing_count == 0
    first = sample.windows[1]
    assert known(first.offered)
    assert first.offered / 180.0 == pytest.approx(20.0, rel=0.1)
    pre = sample.prefill
    assert known(pre.tokens)
    assert known(pre.requests)
    assert pre.tokens / pre.requests == pytest.approx(1200.0, rel=0.1)
    assert known(sample.age)
    assert 0.0 <= sample.age <= 15.0


def test_an_outage_is_unknown_and_cold_instances_do_not_count() -> None:
    plant = ScenarioPlant(PlantSpec(PROFILE, SLO), Counts(1, 1, 1))
    server = VirtualPrometheus(15.0, outage=(100.0, 200.0))
    plant.run_until(150.0)
    server.scrape(plant)
    assert isinstance(server.sample(plant, 60.0), Unknown)
    plant.apply(Counts(1, 2, 1), 0.0)
    plant.run_until(205.0)
    server.scrape(plant)
    assert isinstance(server.sample(plant, 60.0), ScenarioSample)
    assert len(live_instances(plant, 60.0).prefill) == 1
