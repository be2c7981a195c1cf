"""Builders for the ratio loop's values: everything healthy unless a test says otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pdserve.ratio.presets import preset
from pdserve.ratio.types import (
    Bounds,
    Counts,
    DecisionInput,
    DecodeWindow,
    LoopMemory,
    Need,
    PrefillWindow,
    Range,
    RequestWindow,
    RoleDevices,
    ScenarioSample,
)
from pdserve.terms import Slo

SLO = Slo(ttft=1.0, handoff=0.2, tpot=0.045, attainment=0.95)
PROFILE = preset("llama2-70b-h100x8", prefill_slots=4, decode_slots=32)
NPU = RoleDevices("huawei.com/Ascend910", 8)
BOUNDS = Bounds(Range(1, 4), Range(1, 6), Range(1, 6))


def window(
    seconds: float = 60.0,
    rate: float = 4.0,
    attainment: float = 1.0,
    ttft_attainment: float | None = None,
    prompt: float = 1500.0,
    output: float = 200.0,
    **over: Any,
) -> RequestWindow:
    offered = rate * seconds
    first = offered * (attainment if ttft_attainment is None else ttft_attainment)
    values = RequestWindow(
        seconds=seconds,
        scrapes=seconds / 5.0,
        offered=offered,
        met=offered * attainment,
        ttft_met=first,
        completed=offered,
        prompt_tokens=offered * prompt,
        output_tokens=offered * output,
        cached_tokens=0.0,
    )
    return replace(values, **over)


def prefill_window(requests: float = 240.0, prompt: float = 1500.0, **over: Any) -> PrefillWindow:
    seconds = PROFILE.prefill.batch_seconds(1, prompt, prompt * prompt)
    values = PrefillWindow(
        1, requests, requests, requests * seconds, requests * prompt, requests * prompt**2,
        0.0, requests * 0.02, requests,
    )  # fmt: skip
    return replace(values, **over)


def decode_window(batch: float = 12.0, context: float = 1600.0, **over: Any) -> DecodeWindow:
    step = PROFILE.decode.step_seconds(batch, context)
    steps = 60.0 / step
    return replace(DecodeWindow(1, steps, 60.0, steps * batch, steps * batch * context), **over)


def sample(
    windows: tuple[RequestWindow, ...] | None = None,
    *,
    at: float = 1000.0,
    rate: float = 4.0,
    attainment: float = 1.0,
    **over: Any,
) -> ScenarioSample:
    if windows is None:
        windows = tuple(window(s, rate, attainment) for s in (60.0, 180.0, 600.0))
    values = ScenarioSample(
        at=at,
        age=3.0,
        windows=windows,
        prefill=prefill_window(),
        decode=decode_window(),
        decode_overload=0.0,
        expired=0.0,
        failed=0.0,
        waiting=0.0,
        ttft_seconds=0.2,
        live=3,
    )
    return replace(values, **over)


TODAY = Counts(1, 1, 3)


def decision_input(current: Counts = TODAY, **over: Any) -> DecisionInput:
    """An input whose counts have been in effect for 1000 s."""
    now = over.pop("now", 5000.0)
    values = DecisionInput(
        now=now,
        service="shop",
        scenario="chat",
        mode="Auto",
        bounds=BOUNDS,
        slo=SLO,
        current=current,
        ready_prefill=current.total("prefill"),
        ready_decode=current.total("decode"),
        sample=sample(at=now),
        prefill_devices=NPU,
        decode_devices=NPU,
        profile=PROFILE,
        memory=LoopMemory(settled_at=now - 1000.0, settled_counts=current),
    )
    return replace(values, **over)


def new(current: Counts = TODAY, now: float = 5000.0) -> LoopMemory:
    """Of counts that are complete since a moment ago: no evidence yet, the model decides."""
    return LoopMemory(settled_at=now - 10.0, settled_counts=current, pressure_at=now)


def idle_since(now: float, seconds: float = 400.0) -> tuple[Need, ...]:
    """One instance of each role was enough for so long."""
    return (Need(now - seconds, 1, 1), Need(now - 20.0, 1, 1))
