"""Which role is short."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.ratio_values import (
    PROFILE,
    SLO,
    decode_window,
    prefill_window,
    sample,
    window,
)

from pdserve.ratio.bottleneck import Signals, bottleneck, read_signals
from pdserve.ratio.model import OperatingPoint, PerformanceModel, RoleModel, build
from pdserve.ratio.types import Counts, Demand, LoopMemory, ScenarioSample, Unknown
from pdserve.terms import Role

MODEL = build(PROFILE, Demand(4.0, 1500.0, 1500.0, 1500.0**2 * 1.2, 200.0), SLO)
HEALTHY = read_signals(sample(), PROFILE)
BASE = LoopMemory(base_share=HEALTHY.share, base_compute=HEALTHY.compute)
_SHORT = read_signals(sample((window(output=10.0),)), PROFILE)
SHORT = LoopMemory(base_share=_SHORT.share, base_compute=_SHORT.compute)
"""Healthy times of a scenario with answers of 10 tokens."""
LATE = (window(attainment=0.7),)
"""30 % of first tokens late, nothing else missed."""


def failing(**over: Any) -> ScenarioSample:
    return sample(LATE, **over)


CASES: dict[str, tuple[ScenarioSample, LoopMemory, str, str]] = {
    "streams miss TPOT": (
        sample((window(attainment=0.7, ttft_attainment=0.98),)), LoopMemory(), "decode", "TPOT",
    ),
    "full decodes turned requests away": (
        failing(decode_overload=60.0), LoopMemory(), "decode", "found no decode",
    ),
    "KV waits for a decode, prefill slots look busy": (
        failing(prefill=prefill_window(kv_wait_seconds=240 * 0.9)), BASE, "decode", "KV waited",
    ),
    "KV waits a little, requests wait for prefill much longer": (
        failing(prefill=prefill_window(kv_wait_seconds=240 * 0.1), ttft_seconds=3.0), BASE,
        "prefill", "slots were",
    ),
    "decodes full, prefill idle, nothing handed over": (
        failing(prefill=prefill_window(requests=40.0), decode=decode_window(batch=31.0)), BASE,
        "decode", "97%",
    ),
    "longer prompts: compute up and share up": (
        sample((window(attainment=0.7, output=10.0),), prefill=prefill_window(prompt=4000.0)),
        SHORT, "prefill", "share",
    ),
    "longer answers, decodes full: compute up and share down": (
        sample(
            (window(attainment=0.7, output=500.0),), decode=decode_window(batch=31.0),
            prefill=prefill_window(requests=440.0),
        ), BASE, "decode", "share",
    ),
    "longer answers but decodes have room: vetoed": (
        sample((window(attainment=0.7, output=500.0),)), BASE, "prefill", "slots were",
    ),
    "more of the same requests, decodes have room": (failing(), BASE, "prefill", "slots were"),
    "no decode numbers, prefill busy": (
        failing(
            prefill=prefill_window(requests=440.0), decode=decode_window(steps=Unknown("x")),
        ), LoopMemory(), "prefill", "computing",
    ),
    "no engine numbers at all": (
        failing(
            prefill=prefill_window(batches=Unknown("x"), compute_seconds=Unknown("x")),
            decode=decode_window(steps=Unknown("x")),
        ), BASE, "decode", "predicted load",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bottleneck(name: str) -> None:
    measured, memory, role, word = CASES[name]
    found = bottleneck(read_signals(measured, PROFILE), memory, MODEL, Counts(1, 1, 1))
    assert found.role == role, found.why
    assert word in found.why


NOTHING = Signals(None, None, None, None, None, None, None, None, None)
"""Nothing was measured: without a model the first token decides."""
HALF = LoopMemory(base_share=0.5, base_compute=1.0)
"""In healthy times each role computes for half a second per request."""
WAITS = {"prefill_compute": 1.0, "decode_wait": 0.26}

THRESHOLDS: dict[str, tuple[dict[str, float], LoopMemory, Role, str]] = {
    "nothing known": ({}, HALF, "prefill", "nothing points"),
    "more streams than first tokens late": (
        {"late_first": 10, "late_streams": 11}, HALF, "decode", "streams",
    ),
    "as many of each": ({"late_first": 10, "late_streams": 10}, HALF, "prefill", "nothing points"),
    "more than half of the late ones turned away": (
        {"late_first": 10, "turned_away": 6}, HALF, "decode", "found no decode",
    ),
    "half of them": ({"late_first": 10, "turned_away": 5}, HALF, "prefill", "nothing points"),
    "streams missed, late ones not known": ({"late_streams": 11}, HALF, "prefill", "nothing"),
    "some turned away, late ones not known": ({"turned_away": 0.5}, HALF, "decode", "found no"),
    "none turned away": ({"turned_away": 0}, HALF, "prefill", "nothing points"),
    "KV waits for over a quarter of prefill's compute": (WAITS, HALF, "decode", "KV waited"),
    "for a quarter": ({**WAITS, "decode_wait": 0.25}, HALF, "prefill", "nothing points"),
    "for no longer than requests do": (
        {**WAITS, "prefill_wait": 0.26}, HALF, "prefill", "nothing points",
    ),
    "for longer than requests do": ({**WAITS, "prefill_wait": 0.25}, HALF, "decode", "KV waited"),
    "against a compute that is not known": ({"decode_wait": 9.0}, HALF, "prefill", "nothing"),
    "decodes 85 % full, prefill idle": (
        {"decode_full": 0.85, "prefill_busy": 0.69}, HALF, "decode", "85% full",
    ),
    "decodes with room": (
        {"decode_full": 0.84, "prefill_busy": 0.1}, HALF, "prefill", "slots were 84%",
    ),
    "decodes full, prefill not known": ({"decode_full": 0.85}, HALF, "prefill", "nothing points"),
    "decodes full, prefill computes 70 %": (
        {"decode_full": 0.9, "prefill_busy": 0.7}, HALF, "prefill", "computing 70%",
    ),
    "prefill computes 70 %": ({"prefill_busy": 0.7}, HALF, "prefill", "computing 70%"),
    "less": ({"prefill_busy": 0.69}, HALF, "prefill", "nothing points"),
    "compute up by 10 %, prefill's share too": (
        {"prefill_compute": 0.66, "decode_compute": 0.44}, HALF, "prefill", "+10%",
    ),
    "prefill's share down": (
        {"prefill_compute": 0.44, "decode_compute": 0.66}, HALF, "decode", "-20%",
    ),
    "compute up by less": (
        {"prefill_compute": 0.44, "decode_compute": 0.65}, HALF, "prefill", "nothing points",
    ),
    "share changed by less": (
        {"prefill_compute": 0.5, "decode_compute": 0.6}, HALF, "prefill", "nothing points",
    ),
    "prefill's share down, but decodes have room": (
        {"prefill_compute": 0.44, "decode_compute": 0.66, "decode_full": 0.5}, HALF,
        "prefill", "slots were",
    ),
    "no healthy share to compare with": (
        {"prefill_compute": 0.44, "decode_compute": 0.66}, replace(HALF, base_share=None),
        "prefill", "nothing points",
    ),
    "no healthy compute": (
        {"prefill_compute": 0.44, "decode_compute": 0.66}, replace(HALF, base_compute=None),
        "prefill", "nothing points",
    ),
    "decode's compute not known": ({"prefill_compute": 9.0}, HALF, "prefill", "nothing points"),
    "no compute at all": (
        {"prefill_compute": 0.0, "decode_compute": 0.0}, HALF, "prefill", "nothing points",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", THRESHOLDS)
def test_from_where_on_a_signal_speaks(name: str) -> None:
    signals, memory, role, word = THRESHOLDS[name]
    found = bottleneck(replace(NOTHING, **signals), memory, None, Counts(1, 1, 1))
    assert (found.role, word in found.why) == (role, True), found.why


@pytest.mark.parametrize(
    ("current", "pressure", "want"),
    [
        (Counts(2, 1, 1), 1.0, "prefill"),
        (Counts(2, 2, 1), 1.0, "decode"),
        (Counts(2, 1, 2), 1.0, "prefill"),
        (Counts(2, 1, 1), 1.1, "decode"),
    ],
    ids=["as near: prefill", "fewer decodes", "fewer prefills", "decode feels more"],
)
def test_where_nothing_speaks_the_role_nearer_to_its_capacity_is_short(
    current: Counts, pressure: float, want: Role
) -> None:
    part = RoleModel((OperatingPoint(1, 1.0, 0.0),), 1.0, 1.0, 1.0)
    model = PerformanceModel(part, part, 1.0, pressure_decode=pressure)
    assert bottleneck(NOTHING, HALF, model, current).role == want


# --- what the signals are made of ---------------------------------------------------------------

MEASURED = sample(
    (window(offered=100.0, ttft_met=90.0, met=70.0, completed=100.0, output_tokens=1100.0),),
    prefill=prefill_window(
        instances=2, batches=10.0, requests=20.0, compute_seconds=30.0, kv_wait_seconds=8.0,
        kv_transfer_seconds=5.0, kv_transfers=10.0,
    ),
    decode=decode_window(instances=3, steps=1000.0, step_seconds=90.0, step_requests=4000.0),
    decode_overload=7.0, ttft_seconds=5.0,
)  # fmt: skip
SEEN = {
    "prefill_compute": 3.0, "decode_compute": 0.9, "prefill_wait": 1.1, "decode_wait": 0.4,
    "prefill_busy": 0.25, "decode_full": 0.0625, "late_first": 10.0, "late_streams": 20.0,
    "turned_away": 7.0,
}  # fmt: skip


def _spoilt(where: str, **over: Any) -> ScenarioSample:
    """The measured sample with other values in one of its windows; `""`: in the sample itself."""
    if where == "window":
        return replace(MEASURED, windows=(replace(MEASURED.windows[0], **over),))
    if not where:
        return replace(MEASURED, **over)
    return replace(MEASURED, **{where: replace(getattr(MEASURED, where), **over)})


def test_signals_are_per_request_step_and_instance() -> None:
    found = read_signals(MEASURED, PROFILE)
    assert {name: getattr(found, name) for name in SEEN} == pytest.approx(SEEN)
    assert (found.share, found.compute) == pytest.approx((3.0 / 3.9, 3.9))


LACKS = [
    ("prefill", "compute_seconds", {"prefill_compute", "prefill_wait", "prefill_busy"}),
    ("prefill", "batches", {"prefill_compute", "prefill_wait"}),
    ("prefill", "requests", {"decode_wait"}),
    ("prefill", "kv_wait_seconds", {"decode_wait"}),
    ("decode", "steps", {"decode_compute", "decode_full"}),
    ("decode", "step_seconds", {"decode_compute", "decode_full"}),
    ("decode", "step_requests", {"decode_full"}),
    ("window", "output_tokens", {"decode_compute"}),
    ("window", "completed", {"decode_compute"}),
    ("window", "offered", {"late_first"}),
    ("window", "ttft_met", {"late_first", "late_streams"}),
    ("window", "met", {"late_streams"}),
    ("", "decode_overload", {"turned_away"}),
    ("", "ttft_seconds", {"prefill_wait"}),
]


@pytest.mark.parametrize(("where", "name", "lost"), LACKS, ids=[f"{r[0]}.{r[1]}" for r in LACKS])
@pytest.mark.parametrize("value", [Unknown("away"), float("nan")], ids=["unknown", "nan"])
def test_a_signal_is_unknown_while_one_of_its_quantities_is(
    where: str, name: str, lost: set[str], value: Unknown | float
) -> None:
    found = read_signals(_spoilt(where, **{name: value}), PROFILE)
    assert {signal for signal in SEEN if getattr(found, signal) is None} == lost
    computes = not lost & {"prefill_compute", "decode_compute"}
    assert (found.share is not None, found.compute is not None) == (computes, computes)


NONE_OF_IT = [
    ("no batch", "prefill", {"batches": 0.0}, {"prefill_compute", "prefill_wait"}),
    ("no step", "decode", {"steps": 0.0}, {"decode_compute", "decode_full"}),
    ("no prefill", "prefill", {"instances": 0}, {"prefill_busy"}),
    ("no decode", "decode", {"instances": 0}, {"decode_full"}),
]


@pytest.mark.parametrize(
    ("where", "over", "lost"), [r[1:] for r in NONE_OF_IT], ids=[r[0] for r in NONE_OF_IT]
)
def test_what_did_not_happen_has_no_mean(where: str, over: dict[str, Any], lost: set[str]) -> None:
    found = read_signals(_spoilt(where, **over), PROFILE)
    assert {signal for signal in SEEN if getattr(found, signal) is None} == lost


def test_one_batch_has_a_mean() -> None:
    assert read_signals(_spoilt("prefill", batches=1.0), PROFILE).prefill_compute == 30.0


def test_how_full_decodes_are_is_known_by_their_slots_only() -> None:
    assert read_signals(MEASURED, None).decode_full is None
    assert read_signals(MEASURED, replace(PROFILE, decode_slots=0)).decode_full is None


@pytest.mark.parametrize(
    ("where", "over", "signal", "want"),
    [
        ("", {"ttft_seconds": 1.0}, "prefill_wait", 0.0),
        ("prefill", {"kv_wait_seconds": Unknown("x")}, "prefill_wait", 1.5),
        ("prefill", {"kv_transfers": Unknown("x")}, "prefill_wait", 1.6),
        ("window", {"output_tokens": 50.0}, "decode_compute", 0.0),
        ("window", {"ttft_met": 101.0}, "late_first", 0.0),
        ("window", {"met": 91.0}, "late_streams", 0.0),
    ],
    ids=[
        "a first token sooner than its parts", "a KV wait that is not known",
        "transfers that are not known", "answers of less than a token",
        "more first tokens than requests", "more met than first tokens",
    ],
)  # fmt: skip
def test_no_signal_is_below_zero_nor_above_what_is_known(
    where: str, over: dict[str, Any], signal: str, want: float
) -> None:
    assert getattr(read_signals(_spoilt(where, **over), PROFILE), signal) == pytest.approx(want)


def test_kv_wait_is_never_prefill_time() -> None:
    """A decode shortage that makes prefill slots busy must not raise prefill's compute or share."""
    waiting = read_signals(
        sample(prefill=prefill_window(kv_wait_seconds=1e4), ttft_seconds=45.0), PROFILE
    )
    assert waiting.prefill_compute == HEALTHY.prefill_compute
    assert waiting.share == HEALTHY.share
    assert waiting.prefill_busy == HEALTHY.prefill_busy
    assert waiting.decode_waits_longer
