"""Which role is short."""

from __future__ import annotations

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
from pdserve.ratio.model import build
from pdserve.ratio.types import Counts, Demand, LoopMemory, ScenarioSample, Unknown

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


def test_without_model_or_numbers_the_first_token_decides() -> None:
    nothing = Signals(None, None, None, None, None, None, None, None, None)
    assert bottleneck(nothing, LoopMemory(), None, Counts(1, 1, 1)).role == "prefill"


def test_kv_wait_is_never_prefill_time() -> None:
    """A decode shortage that makes prefill slots busy must not raise prefill's compute or share."""
    waiting = read_signals(
        sample(prefill=prefill_window(kv_wait_seconds=1e4), ttft_seconds=45.0), PROFILE
    )
    assert waiting.prefill_compute == HEALTHY.prefill_compute
    assert waiting.share == HEALTHY.share
    assert waiting.prefill_busy == HEALTHY.prefill_busy
    assert waiting.decode_waits_longer
