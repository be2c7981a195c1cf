"""The real `decide` steering a plant it knows only by its metrics.

Every run checks, after each decision, that bounds hold and that only fresh complete data moved
anything; the tables then ask for direction, speed, steadiness and the SLO.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from tests.support.plant import Plant
from tests.support.plant_parts import Lengths, Rate, lengths, steady
from tests.support.ratio_values import NPU, PROFILE, SLO

from pdserve.ratio import learn
from pdserve.ratio.choose import CountLimits
from pdserve.ratio.decide import decide
from pdserve.ratio.presets import dilated
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.records import record, replay
from pdserve.ratio.types import (
    Bounds,
    Counts,
    Decision,
    DecisionInput,
    LoopMemory,
    LoopSettings,
    Mode,
    PastChange,
    Range,
    Reason,
    RequestWindow,
    ScenarioSample,
    Unknown,
)
from pdserve.ratio.windows import TrafficWindow, lead_of, windows_at

SETTINGS = LoopSettings()
BOUNDS = Bounds(Range(1, 3), Range(1, 8), Range(1, 8))
CHAT = lengths(1500, 200)
LONG_PROMPTS = lengths(4000, 60)
LONG_ANSWERS = lengths(500, 500)

Spoil = Callable[[float, ScenarioSample], ScenarioSample | Unknown]


def honest(_now: float, sample: ScenarioSample) -> ScenarioSample:
    return sample


@dataclass
class Run:
    """What a closed loop did."""

    plant: Plant
    decisions: list[Decision] = field(default_factory=list)
    inputs: list[DecisionInput] = field(default_factory=list)
    counts: list[tuple[float, Counts]] = field(default_factory=list)

    @property
    def changes(self) -> list[Decision]:
        return [d for d in self.decisions if d.changes]

    def between(self, start: float, end: float) -> list[Decision]:
        return [d for d in self.changes if start <= d.time < end]

    def at(self, when: float) -> Counts:
        return [counts for time, counts in self.counts if time <= when][-1]

    def turns(self, role: str) -> int:
        """How often the number of instances of a role changed its direction."""
        totals = [c.total("prefill" if role == "prefill" else "decode") for _, c in self.counts]
        moves = [b - a for a, b in itertools.pairwise(totals) if b != a]
        return sum((a > 0) != (b > 0) for a, b in itertools.pairwise(moves))


def run(
    rate: Rate,
    draw: Lengths,
    until: float,
    start: Counts,
    *,
    truth: PerformanceProfile = PROFILE,
    seed: int = 1,
    cold_start: float = 60.0,
    bounds: Bounds = BOUNDS,
    spoil: Spoil = honest,
    delay: float = 0.0,
    scrape: float = 5.0,
    windows: Sequence[TrafficWindow] = (),
    mode: Mode = "Auto",
) -> Run:
    plant = Plant(truth, SLO, start, rate, draw, seed=seed, cold_start=cold_start, scrape=scrape)
    done = Run(plant)
    state, memory = learn.start("k", 4, 32, preset=PROFILE), LoopMemory()
    past: tuple[PastChange, ...] = ()
    now, settings = 0.0, replace(SETTINGS, cold_start=cold_start)
    while now < until:
        now += SETTINGS.fast_period
        plant.run_until(now)
        measured = spoil(now, plant.sample(delay=delay))
        if isinstance(measured, ScenarioSample):
            state = learn.observe(state, measured)
        ready_prefill, ready_decode = plant.ready()
        inp = DecisionInput(
            now=now,
            service="shop",
            scenario="chat",
            mode=mode,
            bounds=bounds,
            slo=SLO,
            current=plant.counts,
            ready_prefill=ready_prefill,
            ready_decode=ready_decode,
            sample=measured,
            prefill_devices=NPU,
            decode_devices=NPU,
            profile=state.profile(),
            changes=past[-10:],
            settings=settings,
            memory=memory,
            window=windows_at(windows, now, lead_of(settings)).floor,
        )
        decision = decide(inp)
        _check(inp, decision)
        memory = decision.memory
        done.decisions.append(decision)
        done.counts.append((now, decision.to if decision.changes else plant.counts))
        done.inputs.append(inp)
        if decision.changes:
            past = (*past, PastChange(now))
            plant.apply(decision.to)
    return done


def _check(inp: DecisionInput, decision: Decision) -> None:
    """What must hold after every single round (invariants 3 and 6)."""
    assert inp.bounds.clamp(decision.to) == decision.to
    if decision.changes:
        assert isinstance(inp.sample, ScenarioSample)
        assert _finite(inp.sample)
        assert inp.sample.missing_count == 0
        if decision.reason not in (Reason.MODEL_FLOOR, Reason.TIDAL_WINDOW):  # count what comes
            assert inp.ready_prefill == inp.current.total("prefill")
            assert inp.ready_decode == inp.current.total("decode")


def _finite(sample: ScenarioSample) -> bool:
    first = sample.windows[0]
    return all(
        not isinstance(value, Unknown) and math.isfinite(value)
        for value in (first.offered, first.met, first.scrapes, sample.age)
    )


def devices(counts: Counts) -> int:
    return CountLimits(BOUNDS, NPU, NPU).devices(counts)


def step(before: float, after: float, when: float) -> Rate:
    return lambda t: before if t < when else after


def shift(before: Lengths, after: Lengths, when: float) -> Lengths:
    def draw(t: float, rng: random.Random) -> tuple[int, int]:
        return (before if t < when else after)(t, rng)

    return draw


FASTER, AS_KNOWN, SLOWER = dilated(PROFILE, 0.8), PROFILE, dilated(PROFILE, 1.2)
TRUTHS = pytest.mark.parametrize(
    "truth", [FASTER, AS_KNOWN, SLOWER], ids=["20% faster", "as known", "20% slower"]
)


@TRUTHS
def test_a_steady_load_finds_its_size_and_stays(truth: PerformanceProfile) -> None:
    done = run(steady(5.0), CHAT, 3600, Counts(1, 1, 1), truth=truth)
    assert done.plant.attainment_since(600) >= SLO.attainment
    assert done.turns("prefill") <= 2
    assert done.turns("decode") <= 2
    assert len(done.between(1800, 3600)) <= 2


@pytest.mark.invariant(3)
@TRUTHS
def test_a_step_is_answered_in_the_right_direction_within_three_periods(
    truth: PerformanceProfile,
) -> None:
    done = run(step(4.0, 9.0, 1200), CHAT, 3600, Counts(1, 2, 4), truth=truth)
    first = done.between(1200, 1200 + 3 * SETTINGS.control_period)
    assert first
    assert all(devices(d.to) >= devices(d.before) for d in first)
    assert devices(done.at(1800)) > devices(done.at(1190))
    assert done.plant.attainment_since(1800) >= SLO.attainment
    final = devices(done.at(3600))
    assert max(devices(c) for t, c in done.counts if t > 1200) <= final + 4 * 8


@TRUTHS
def test_a_mix_shift_moves_the_ratio_the_right_way(truth: PerformanceProfile) -> None:
    """Same request rate: prompts get long and answers short, so prefill must grow."""
    done = run(steady(6.0), shift(CHAT, LONG_PROMPTS, 1200), 3600, Counts(1, 2, 4), truth=truth)
    before, after = done.at(1190), done.at(1200 + 3 * SETTINGS.control_period)
    assert after.total("prefill") > before.total("prefill")
    assert after.prefill * before.decode > before.prefill * after.decode
    assert done.plant.attainment_since(1800) >= SLO.attainment


@TRUTHS
def test_longer_answers_grow_decode_and_not_prefill(truth: PerformanceProfile) -> None:
    done = run(steady(3.0), shift(CHAT, LONG_ANSWERS, 1200), 3600, Counts(1, 2, 3), truth=truth)
    before, after = done.at(1190), done.at(1800)
    assert after.total("decode") > before.total("decode")
    assert after.total("prefill") <= max(before.total("prefill"), 2), "none is alone beside five"
    assert done.plant.attainment_since(1800) >= SLO.attainment


def test_a_ramp_is_followed_without_turning_back() -> None:
    def rate(t: float) -> float:
        return 2 + 8 * min(t / 3000, 1)

    done = run(rate, CHAT, 4200, Counts(1, 1, 2), cold_start=90.0)
    assert done.turns("prefill") + done.turns("decode") <= 2
    assert done.plant.attainment_since(600) >= SLO.attainment


def test_an_ebb_gives_devices_back_without_missing_the_target() -> None:
    done = run(step(9.0, 2.0, 900), CHAT, 5400, Counts(1, 3, 6))
    assert devices(done.at(5400)) <= devices(done.at(890)) - 4 * 8
    after = done.between(900, 5400)
    assert after[0].reason is Reason.SURPLUS
    assert len(after) <= 6
    assert done.plant.attainment_since(900) >= 0.98


def test_a_short_spike_costs_few_changes() -> None:
    def rate(t: float) -> float:
        return 12.0 if 1200 <= t < 1230 else 4.0

    done = run(rate, CHAT, 3600, Counts(1, 1, 4))
    assert done.turns("prefill") + done.turns("decode") <= 4
    assert devices(done.at(3600)) <= devices(done.at(1190)) + 3 * 8


def test_a_square_wave_does_not_make_it_swing() -> None:
    def rate(t: float) -> float:
        return 8.0 if (t // 600) % 2 else 3.0

    done = run(rate, CHAT, 7200, Counts(1, 2, 3))
    waves = 6
    assert done.turns("prefill") <= waves
    assert done.turns("decode") <= waves + 2, "hardly more than once up and down per wave of two"
    assert done.plant.attainment_since(1200) >= 0.9


def test_a_slow_cold_start_is_waited_for_and_not_answered_twice() -> None:
    done = run(step(4.0, 9.0, 1200), CHAT, 4800, Counts(1, 1, 4), cold_start=240.0)
    rises = [d for d in done.between(1200, 1500) if devices(d.to) > devices(d.before)]
    assert len(rises) <= 6, "what is on its way counts, so each adds little"
    assert done.plant.attainment_since(3000) >= SLO.attainment
    final = devices(done.at(4800))
    assert max(devices(c) for t, c in done.counts if t > 1200) <= final + 3 * 8


def test_metrics_half_a_minute_late_still_lead_to_the_right_size() -> None:
    done = run(step(4.0, 9.0, 1200), CHAT, 3600, Counts(1, 1, 4), delay=30.0)
    first = done.between(1200, 1230 + 3 * SETTINGS.control_period)
    assert first
    assert devices(first[0].to) > devices(first[0].before)
    assert done.plant.attainment_since(2400) >= SLO.attainment
    assert done.turns("prefill") + done.turns("decode") <= 4


def _spoiled_window(window: RequestWindow, value: float | Unknown) -> RequestWindow:
    return replace(window, offered=value, met=value)


def _nan(sample: ScenarioSample) -> ScenarioSample:
    return replace(sample, windows=tuple(_spoiled_window(w, math.nan) for w in sample.windows))


SPOILS: dict[str, Callable[[ScenarioSample], ScenarioSample | Unknown]] = {
    "away": lambda _s: Unknown("connection refused"),
    "stale": lambda s: replace(s, age=120.0),
    "NaN": _nan,
    "partial": lambda s: replace(s, missing=("gw-0",), missing_count=1, windows=tuple(
        replace(w, offered=w.offered / 2, met=w.met / 2)  # type: ignore[operator]
        for w in s.windows
    )),
}  # fmt: skip


@pytest.mark.invariant(6)
@pytest.mark.parametrize("how", SPOILS)
@pytest.mark.parametrize("after", [1.0, 12.0], ids=["load falls", "load rises"])
def test_nothing_scales_while_metrics_lie_and_it_recovers(how: str, after: float) -> None:
    def spoil(now: float, sample: ScenarioSample) -> ScenarioSample | Unknown:
        return SPOILS[how](sample) if 900 <= now < 2100 else sample

    done = run(step(4.0, after, 960), CHAT, 3600, Counts(1, 2, 4), spoil=spoil)
    assert done.between(900, 2100) == []
    held = [d for d in done.decisions if 900 <= d.time < 2100]
    assert {d.reason for d in held} == {Reason.HOLD_NO_DATA}
    assert all(d.message.startswith("nothing scales: ") for d in held)
    again = done.between(2100, 3600)
    assert again
    assert (devices(done.at(3600)) > devices(done.at(2090))) == (after > 4.0)


@pytest.mark.invariant(3)
@pytest.mark.parametrize("seed", range(4))
def test_tight_bounds_hold_under_wild_traffic(seed: int) -> None:
    rng = random.Random(seed)
    levels = [rng.uniform(0, 16) for _ in range(12)]
    tight = Bounds(Range(1, 2), Range(2, 3), Range(1, 3))

    def draw(t: float, r: random.Random) -> tuple[int, int]:
        return (LONG_PROMPTS, LONG_ANSWERS, CHAT)[int(t // 400) % 3](t, r)

    rate: Rate = lambda t: levels[int(t // 300) % 12]  # noqa: E731
    done = run(rate, draw, 2700, Counts(1, 2, 1), bounds=tight, seed=seed)
    assert done.changes, "the load was wild enough to move it"
    assert all(tight.clamp(counts) == counts for _, counts in done.counts)


@pytest.mark.invariant(8)
def test_a_whole_run_replays_byte_for_byte() -> None:
    done = run(step(4.0, 9.0, 600), CHAT, 1800, Counts(1, 1, 3))
    lines = [record(*pair) for pair in zip(done.inputs, done.decisions, strict=True)]
    assert len(lines) == 1800 / SETTINGS.fast_period
    assert all(replay(line)[2] for line in lines)


def test_the_loop_beats_the_size_that_fits_the_peak() -> None:
    """Device-seconds over a day-like load, against the fixed size that the peak needs."""

    def rate(t: float) -> float:
        return 5.0 + 4.0 * math.sin(2 * math.pi * t / 10800)

    done = run(rate, CHAT, 10800, Counts(1, 2, 4))
    peak = max(devices(c) for _, c in done.counts) / 8
    assert done.plant.attainment_since(600) >= SLO.attainment
    assert done.plant.device_seconds < 0.9 * peak * 10800
