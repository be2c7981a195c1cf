"""The profile learned from window sums."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tests.support.ratio_values import PROFILE, decode_window, prefill_window, sample

from pdserve.ratio.learn import LearnState, observe, resume, start
from pdserve.ratio.presets import dilated
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.records import from_json, to_json
from pdserve.ratio.types import ScenarioSample, Unknown


def measured(
    truth: PerformanceProfile, at: float, rng: random.Random, noise: float = 0.05
) -> ScenarioSample:
    """One window of an instance of the given profile under changing traffic."""
    prompt, batch = rng.uniform(300, 4000), rng.uniform(2, 30)
    per_batch = rng.uniform(1, 4)
    jitter = 1 + rng.gauss(0, noise)
    seconds = truth.prefill.batch_seconds(1, per_batch * prompt, per_batch * prompt**2) * jitter
    step = truth.decode.step_seconds(batch, prompt + 100) * (1 + rng.gauss(0, noise))
    n = 100.0
    return sample(
        at=at,
        prefill=prefill_window(
            requests=n * per_batch, batches=n, compute_seconds=n * seconds,
            tokens=n * per_batch * prompt, tokens_squared=n * per_batch * prompt**2,
        ),
        decode=decode_window(
            steps=1000.0, step_seconds=1000 * step, step_requests=1000 * batch,
            step_context=1000 * batch * (prompt + 100),
        ),
    )  # fmt: skip


def learned(
    state: LearnState, truth: PerformanceProfile, windows: int, seed: int = 1
) -> LearnState:
    rng = random.Random(seed)
    for i in range(windows):
        state = observe(state, measured(truth, 60.0 * (i + 1), rng))
    return state


def predictions(profile: PerformanceProfile) -> list[float]:
    return [
        *(profile.prefill.batch_seconds(b, p, p * p) for b in (1, 4) for p in (500, 1500, 4000)),
        *(profile.decode.step_seconds(b, c) for b in (1, 16, 32) for c in (500, 3000)),
    ]


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.2, 2.0])
def test_a_wrong_preset_is_corrected(factor: float) -> None:
    truth = dilated(PROFILE, factor)
    state = learned(start("k", 4, 32, preset=PROFILE), truth, 30)
    profile = state.profile()
    assert profile is not None
    assert profile.source == "learned"
    assert profile.confidence > 0.6
    for got, want in zip(predictions(profile), predictions(truth), strict=True):
        assert got == pytest.approx(want, rel=0.10)


def test_without_a_preset_it_learns_from_nothing() -> None:
    empty = start("k", 4, 32)
    assert empty.profile() is None
    profile = learned(empty, PROFILE, 40).profile()
    assert profile is not None
    for got, want in zip(predictions(profile), predictions(PROFILE), strict=True):
        assert got == pytest.approx(want, rel=0.35)
    typical = 2 * 1500
    assert profile.prefill.batch_seconds(1, typical, typical * 1500) == pytest.approx(
        PROFILE.prefill.batch_seconds(1, typical, typical * 1500), rel=0.1
    )


def test_a_change_of_speed_is_followed() -> None:
    state = learned(start("k", 4, 32, preset=PROFILE), PROFILE, 40)
    slow, rng = dilated(PROFILE, 1.5), random.Random(9)
    for i in range(60):
        state = observe(state, measured(slow, 60.0 * (41 + i), rng))
    profile = state.profile()
    assert profile is not None
    want = slow.prefill.batch_seconds(2, 1500, 1500**2)
    assert profile.prefill.batch_seconds(2, 1500, 1500**2) == pytest.approx(want, rel=0.1)


def test_one_outlier_hardly_moves_it() -> None:
    state = learned(start("k", 4, 32, preset=PROFILE), PROFILE, 30)
    before = predictions(state.profile())  # type: ignore[arg-type]
    spike = measured(dilated(PROFILE, 20.0), 60.0 * 31, random.Random(5))
    after = predictions(observe(state, spike).profile())  # type: ignore[arg-type]
    for got, want in zip(after, before, strict=True):
        assert got == pytest.approx(want, rel=0.10)


def test_steady_traffic_keeps_what_it_does_not_excite() -> None:
    """With one prompt length, b and c cannot be separated: their ratio stays the seed's."""
    state = start("k", 4, 32, preset=PROFILE)
    slow = dilated(PROFILE, 1.3)
    for i in range(40):
        state = observe(state, measured(slow, 60.0 * (i + 1), random.Random(4), noise=0.0))
    profile = state.profile()
    assert profile is not None
    assert profile.prefill.per_token_squared > 0.5 * PROFILE.prefill.per_token_squared
    assert min(predictions(profile)) > 0


def test_coefficients_never_turn_negative() -> None:
    odd = replace(PROFILE, prefill=replace(PROFILE.prefill, per_token=0.0, base=0.0))
    profile = learned(start("k", 4, 32, preset=PROFILE), odd, 60).profile()
    assert profile is not None
    assert profile.prefill.base >= 0
    assert profile.prefill.per_token >= 0
    assert profile.prefill.per_token_squared > 0


@pytest.mark.parametrize(
    "bad",
    [
        sample(
            prefill=prefill_window(batches=Unknown("x")), decode=decode_window(steps=Unknown("x"))
        ),
        sample(prefill=prefill_window(batches=2.0), decode=decode_window(steps=10.0)),
        sample(
            prefill=prefill_window(compute_seconds=float("nan")),
            decode=decode_window(step_seconds=float("inf")),
        ),
        sample(
            prefill=prefill_window(compute_seconds=0.0), decode=decode_window(step_seconds=0.0)
        ),
        sample(()),
    ],
)  # fmt: skip
def test_windows_that_prove_nothing_are_dropped(bad: ScenarioSample) -> None:
    state = start("k", 4, 32, preset=PROFILE)
    assert observe(state, bad) == state


def test_a_window_is_used_once() -> None:
    state = observe(start("k", 4, 32, preset=PROFILE), sample(at=100.0))
    assert observe(state, sample(at=115.0)) == state
    assert observe(state, sample(at=160.0)) != state


def test_learning_goes_on_when_the_servers_clock_was_set_back() -> None:
    """Else it would stand still for as long as the step was, over restarts too."""
    state = observe(start("k", 4, 32, preset=PROFILE), sample(at=3700.0))
    back = observe(state, sample(at=100.0))
    assert back.last_at == 100.0
    assert observe(back, sample(at=115.0)) == back


def test_one_role_alone_is_learned() -> None:
    state = observe(
        start("k", 4, 32, preset=PROFILE), sample(decode=decode_window(steps=Unknown("x")))
    )
    assert state.prefill is not None
    assert state.prefill.weight > 0
    assert state.decode is not None
    assert state.decode.weight == 0
    profile = state.profile()
    assert profile is not None
    assert profile.source == PROFILE.source


def test_state_survives_json_and_another_key_starts_afresh() -> None:
    state = learned(start("k", 4, 32, preset=PROFILE), PROFILE, 5)
    again = from_json(LearnState, to_json(state))
    assert again == state
    more_slots = start("k", 8, 64, preset=PROFILE)
    resumed = resume(again, more_slots)
    assert (resumed.prefill, resumed.prefill_slots, resumed.decode_slots) == (state.prefill, 8, 64)
    other = start("another engine", 8, 64, preset=PROFILE)
    assert resume(again, other) == other
