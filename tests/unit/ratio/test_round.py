"""What one round reads from its input: evidence, failures, margins, and the numbers it tells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.ratio_values import (
    PROFILE,
    SLO,
    TODAY,
    decision_input,
    prefill_window,
    sample,
    window,
)
from tests.unit.ratio.test_surplus import surplus

from pdserve.ratio.decide import decide
from pdserve.ratio.model import build
from pdserve.ratio.presets import dilated
from pdserve.ratio.types import (
    Decision,
    Demand,
    ExpectedTraffic,
    LoopMemory,
    LoopSettings,
    Reason,
    RequestWindow,
    Unknown,
)

UNKNOWN = Unknown("away")
JUST_NOW = LoopMemory(settled_at=0.0, settled_counts=TODAY, pressure_at=5000.0)
"""The slow loop had its turn: only evidence changes anything."""


def windows(*met_of_offered: tuple[float, float]) -> tuple[RequestWindow, ...]:
    """The three windows with so many requests."""
    spans = (60.0, 180.0, 600.0)
    return tuple(
        replace(window(s, offered / s), met=met, ttft_met=met)
        for s, (met, offered) in zip(spans, met_of_offered, strict=True)
    )


def decided(*met_of_offered: tuple[float, float], **over: Any) -> Decision:
    """The decision on such windows; `over` changes the input, with `s_` before it the sample."""
    of_sample = {k.removeprefix("s_"): over.pop(k) for k in list(over) if k.startswith("s_")}
    seen = replace(sample(windows(*met_of_offered), at=5000.0), **of_sample)
    return decide(decision_input(**{"memory": JUST_NOW, **over}, sample=seen))


# --- the numbers that a decision carries ---------------------------------------------------------

CACHED = tuple(
    replace(w, cached_tokens=w.offered * 375.0)  # type: ignore[operator]
    for w in windows((144.0, 240.0), (432.0, 720.0), (1440.0, 2400.0))
)
PRESSED = replace(JUST_NOW, pressure_prefill=1.25, pressure_decode=1.5)
TELLING = decision_input(
    memory=PRESSED,
    sample=sample(
        CACHED, at=5000.0, age=2.5, waiting=7.0, expired=5.0, decode_overload=3.0,
        prefill=prefill_window(kv_wait_seconds=48.0),
    ),
)  # fmt: skip
MEASURED = {
    "window": "180s", "offered": "720", "attainment": "0.6000", "belowTarget": "1.000",
    "age": "2.5s", "rate": "4.000", "rateAhead": "4.000", "promptTokens": "1500",
    "uncachedTokens": "1125", "outputTokens": "200", "waiting": "7", "expired": "5",
    "decodeOverload": "3", "kvWait": "0.200s",
}  # fmt: skip


def test_a_decision_tells_every_number_it_rests_on() -> None:
    model = build(PROFILE, Demand(4.0, 1500.0, 1125.0, 1.25 * 1125.0**2, 200.0), SLO)
    prefill, decode = model.prefill.capacity, model.decode.capacity
    told = decide(TELLING).inputs
    assert dict(told) == {
        **MEASURED,
        "profile": PROFILE.source,
        "capacityPrefill": f"{prefill:.3f}", "capacityDecode": f"{decode:.3f}",
        "loadPrefill": f"{4.0 * 1.25 / prefill:.3f}", "loadDecode": f"{4.0 * 1.5 / 3 / decode:.3f}",
        "pressurePrefill": "1.25", "pressureDecode": "1.50",
    }  # fmt: skip
    assert [name for name, _ in told] == sorted(name for name, _ in told)


OF_MODEL = {
    "profile", "capacityPrefill", "capacityDecode", "loadPrefill", "loadDecode",
    "pressurePrefill", "pressureDecode",
}  # fmt: skip
OF_LENGTHS = {"promptTokens", "uncachedTokens", "outputTokens"}
OF_EVIDENCE = {"window", "offered", "attainment", "belowTarget"}
ALL = set(MEASURED) | OF_MODEL
UNTOLD: list[tuple[str, dict[str, Any], dict[str, Any], set[str]]] = [
    ("requests waiting", {"waiting": UNKNOWN}, {}, {"waiting"}),
    ("expired ones", {"expired": UNKNOWN}, {}, {"expired"}),
    ("full decodes", {"decode_overload": UNKNOWN}, {}, {"decodeOverload"}),
    ("how long KV waits", {"prefill": prefill_window(kv_wait_seconds=UNKNOWN)}, {}, {"kvWait"}),
    ("how many waits", {"prefill": replace(prefill_window(), requests=UNKNOWN)}, {}, {"kvWait"}),
    ("there were none", {"prefill": prefill_window(requests=0.0)}, {}, {"kvWait"}),
    ("what instances can do", {}, {"profile": None}, OF_MODEL),
    ("what requests look like",
     {"windows": tuple(replace(w, completed=0.0) for w in CACHED)}, {}, OF_LENGTHS | OF_MODEL),
    ("what these counts do", {}, {"memory": replace(PRESSED, settled_at=4990.0)}, OF_EVIDENCE),
]  # fmt: skip


@pytest.mark.parametrize(
    ("of_sample", "of_input", "lost"), [r[1:] for r in UNTOLD], ids=[r[0] for r in UNTOLD]
)
def test_a_decision_tells_no_number_that_is_not_known(
    of_sample: dict[str, Any], of_input: dict[str, Any], lost: set[str]
) -> None:
    measured = replace(TELLING.sample, **of_sample)  # type: ignore[type-var]
    told = dict(decide(replace(TELLING, sample=measured, **of_input)).inputs)
    assert ALL - set(told) == lost
    assert set(told) <= ALL


def test_a_decision_shows_todays_counts_and_the_chosen_ones() -> None:
    grown = decided((144, 240), (432, 720), (1440, 2400))
    assert [(c.note, c.counts) for c in grown.candidates] == [
        ("current", TODAY), ("chosen", grown.to),
    ]  # fmt: skip
    held = decided((240, 240), (720, 720), (2400, 2400))
    assert [(c.note, c.counts) for c in held.candidates] == [("current", TODAY)]
    assert decided((144, 240), (432, 720), (1440, 2400), profile=None).candidates == ()
    assert decide(decision_input(sample=UNKNOWN)).candidates == ()


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({}, "1x(1P3D): 60.0% of 720 offered met the SLO (target 95.0%); 4.00 requests/s of"),
        ({"s_windows": tuple(replace(w, completed=0.0) for w in CACHED)}, "; request lengths unkn"),
        ({"memory": replace(JUST_NOW, settled_at=4990.0)},
         "1x(1P3D): 4.00 requests/s of 1500 + 200 tokens; no window yet covers only the present"),
    ],
)  # fmt: skip
def test_a_decision_says_how_the_scenario_does(over: dict[str, Any], says: str) -> None:
    assert says in decided((144, 240), (432, 720), (1440, 2400), **over).message


# --- evidence ------------------------------------------------------------------------------------

FINE = (1800.0, 1800.0)
GROWTH = (Reason.PREFILL_SHORTAGE, Reason.DECODE_SHORTAGE, Reason.MODEL_FLOOR)
SURE = [
    ("82 % sure", [(99, 100), (280, 300), FINE], False),
    ("92 % sure", [(99, 100), (278, 300), FINE], True),
    ("a bad minute, the time before was fine", [(240, 300), (870, 900), (2960, 3000)], False),
    ("a very bad one", [(120, 300), (870, 900), (2960, 3000)], True),
    ("a very bad one of few", [(100, 250), (870, 900), (2960, 3000)], False),
]


@pytest.mark.parametrize(("counted", "acts"), [r[1:] for r in SURE], ids=[r[0] for r in SURE])
def test_how_sure_a_miss_must_be(counted: list[tuple[float, float]], acts: bool) -> None:
    assert (decided(*counted).reason in GROWTH) is acts


def test_an_operator_may_want_to_be_surer() -> None:
    surer = replace(LoopSettings(), evidence_confidence=0.9999)
    counted = [(99.0, 100.0), (278.0, 300.0), FINE]
    assert decided(*counted).reason in GROWTH
    assert decided(*counted, settings=surer).reason not in GROWTH


def test_what_the_model_predicts_makes_a_miss_more_or_less_likely() -> None:
    """28 of 30 is below the target of 95 %, and by itself proves little."""
    counted = [(28.0, 30.0)] * 3
    assert decided(*counted).reason is Reason.STEADY
    assert decided(*counted, profile=None).reason is Reason.STEADY, "a hit until something is known"
    slow = dilated(PROFILE, 5.0)
    assert decided(*counted, profile=slow).reason is Reason.SLO_UNREACHABLE


# --- failures that no instance mends -------------------------------------------------------------

BAD = [(120.0, 240.0), (360.0, 720.0), (1200.0, 2400.0)]
ONE_MISSED = [(239.0, 240.0), (432.0, 720.0), (1440.0, 2400.0)]
FAILED: list[tuple[str, list[tuple[float, float]], dict[str, Any], bool]] = [
    ("more than half of the misses", BAD, {"s_failed": 60.5}, True),
    ("half of them", BAD, {"s_failed": 60.0}, False),
    ("one of one", ONE_MISSED, {"s_failed": 1.0}, True),
    ("less than one", ONE_MISSED, {"s_failed": 0.9}, False),
    ("failures not known", BAD, {"s_failed": UNKNOWN}, False),
    ("the target is met", [(240.0, 240.0)] * 3, {"s_failed": 100.0}, False),
]


@pytest.mark.parametrize(
    ("counted", "over", "held"), [r[1:] for r in FAILED], ids=[r[0] for r in FAILED]
)
def test_most_misses_must_be_failures_before_they_hold_growth_back(
    counted: list[tuple[float, float]], over: dict[str, Any], held: bool
) -> None:
    assert (decided(*counted, **over).reason is Reason.REQUESTS_FAIL) is held


# --- the margin of whatever gets smaller ---------------------------------------------------------


def test_a_reduction_must_hold_a_standard_error_and_the_margin_more() -> None:
    """2,400 requests in ten minutes may be 2,449, and 8 % more."""
    got = decide(surplus(sample=sample(rate=4.0)))
    assert "hold 1.08 times" in got.message


def test_without_load_only_the_margin_is_asked_for() -> None:
    idle = tuple(window(s, 0.0) for s in (60.0, 180.0, 600.0))
    expected = ExpectedTraffic(1000.0, 100.0, 4.0)
    got = decide(surplus(sample=sample(idle), expected=expected))
    assert "hold 1.06 times" in got.message
