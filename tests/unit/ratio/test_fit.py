"""What one window does to the learned profile, and how sure of it the profile is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.ratio_values import PROFILE, decode_window, prefill_window, sample

from pdserve.ratio.learn import FORGET, RIDGE, LearnState, RoleFit, observe, resume, start
from pdserve.ratio.presets import TYPICAL
from pdserve.ratio.profile import Triple
from pdserve.ratio.types import ScenarioSample, Unknown

PREFILL, DECODE = PROFILE.prefill, PROFILE.decode
P_SEED = (PREFILL.base, PREFILL.per_token, PREFILL.per_token_squared)
D_SEED = (DECODE.base, DECODE.per_request, DECODE.per_context_token)
P_SECONDS = PREFILL.batch_seconds(2, 1500, 1500**2)
"""Of a batch of two prompts of 1,500 tokens."""
D_SECONDS = DECODE.step_seconds(10, 1600)
"""Of a step of ten requests."""
PRESET = start("k", 4, 32, preset=PROFILE)
UNKNOWN = Unknown("away")


def windows(at: float, slower: float = 1.0, **over: Any) -> ScenarioSample:
    """100 such batches and 1,000 such steps, so much slower than the preset says.

    `over`: other fields of the prefill window, with `d_` before its name of the decode window.
    """
    prefill: dict[str, Any] = {
        "batches": 100.0, "compute_seconds": 100 * P_SECONDS * slower,
        "tokens": 100 * 2 * 1500.0, "tokens_squared": 100 * 2 * 1500.0**2,
    }  # fmt: skip
    decode: dict[str, Any] = {
        "steps": 1000.0, "step_seconds": 1000 * D_SECONDS * slower,
        "step_requests": 1000 * 10.0, "step_context": 1000 * 10 * 1600.0,
    }  # fmt: skip
    prefill |= {k: v for k, v in over.items() if not k.startswith("d_")}
    decode |= {k.removeprefix("d_"): v for k, v in over.items() if k.startswith("d_")}
    return sample(at=at, prefill=prefill_window(**prefill), decode=decode_window(**decode))


def fits(state: LearnState) -> tuple[RoleFit, RoleFit]:
    assert state.prefill is not None and state.decode is not None
    return state.prefill, state.decode


# --- the first window ----------------------------------------------------------------------------


def test_the_first_window_scales_the_whole_seed_to_its_speed() -> None:
    prefill, decode = fits(observe(PRESET, windows(100.0, slower=1.5)))
    assert prefill.coefficients() == pytest.approx(tuple(1.5 * c for c in P_SEED))
    assert decode.coefficients() == pytest.approx(tuple(1.5 * c for c in D_SEED))
    assert (prefill.weight, prefill.error) == pytest.approx((1.0, 0.0))


def test_without_a_seed_the_first_window_scales_what_devices_have_in_common() -> None:
    prefill, decode = fits(observe(start("k", 4, 32), windows(100.0)))
    for fit, common, terms, seconds in (
        (prefill, TYPICAL.prefill, (1.0, 3000.0, 2 * 1500.0**2), P_SECONDS),
        (decode, TYPICAL.decode, (1.0, 10.0, 16_000.0), D_SECONDS),
    ):
        parts = tuple(getattr(common, name) for name in common.__slots__[:3])
        scale = seconds / sum(p * x for p, x in zip(parts, terms, strict=True))
        assert fit.seed == pytest.approx(tuple(scale * p for p in parts))
        assert fit.error == pytest.approx(0.0, abs=1e-12)


def test_a_seed_of_nothing_is_not_scaled() -> None:
    zero = replace(PRESET, prefill=RoleFit((0.0, 0.0, 0.0)))
    prefill, _ = fits(observe(zero, windows(100.0)))
    assert prefill.seed == (0.0, 0.0, 0.0)


# --- later windows -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slower", "weight", "error"),
    [
        (1.0, 1.0, 0.0),
        (1.25, 1.0, 0.2231),
        (2.0, 0.3607, 0.6931),
        (0.5, 0.3607, 0.6931),
        (0.01, 0.0543, 1.0),
    ],
    ids=["as predicted", "a quarter off", "twice", "half counts as twice", "a hundredth"],
)
def test_a_window_counts_less_the_more_it_is_off(
    slower: float, weight: float, error: float
) -> None:
    """Off: the logarithm of measured over predicted."""
    state = observe(PRESET, windows(100.0))
    for fit in fits(observe(state, windows(160.0, slower))):
        assert fit.weight == pytest.approx(FORGET + weight, abs=1e-4)
        assert fit.error == pytest.approx(0.2 * error, abs=1e-4), (
            "the newest window's share is a fifth"
        )


def test_what_was_seen_is_forgotten_a_little_with_each_window() -> None:
    state = PRESET
    for k in range(3):
        state = observe(state, windows(100.0 + 60 * k))
    prefill, _ = fits(state)
    kept = 1 + FORGET + FORGET**2
    share = P_SEED[0] / P_SECONDS
    assert prefill.weight == pytest.approx(kept)
    assert prefill.target[0] == pytest.approx(kept * share)
    assert prefill.squares[0][0] == pytest.approx(kept * share**2)


@pytest.mark.parametrize(
    ("over", "learns"),
    [
        ({"batches": 3.0}, (True, True)),
        ({"batches": 2.9}, (False, True)),
        ({"d_steps": 20.0}, (True, True)),
        ({"d_steps": 19.9}, (True, False)),
        ({"compute_seconds": 0.5}, (True, True)),
        ({"compute_seconds": 0.0}, (False, True)),
        *(({name: UNKNOWN}, (False, True)) for name in
          ("batches", "compute_seconds", "tokens", "tokens_squared")),
        *(({f"d_{name}": UNKNOWN}, (True, False)) for name in
          ("steps", "step_seconds", "step_requests", "step_context")),
    ],
    ids=str,
)  # fmt: skip
def test_a_role_learns_from_enough_work_of_which_all_is_known(
    over: dict[str, Any], learns: tuple[bool, bool]
) -> None:
    found = fits(observe(PRESET, windows(100.0, **over)))
    assert tuple(fit.weight > 0 for fit in found) == learns


@pytest.mark.parametrize(("at", "new"), [(100.0, False), (159.9, False), (160.0, True)])
def test_a_window_that_overlaps_the_last_one_is_not_new(at: float, new: bool) -> None:
    state = observe(PRESET, windows(100.0))
    assert (observe(state, windows(at)) != state) is new


def test_one_window_of_times_a_hundred_times_too_small_changes_little() -> None:
    """It gave +355 % of capacity for half an hour."""
    state = PRESET
    for k in range(10):
        state = observe(state, windows(100.0 + 60 * k))
    before = state.profile()
    after = observe(state, windows(700.0, slower=0.01)).profile()
    assert before is not None and after is not None
    for batch in (1, 10, 40):
        was = before.decode.step_seconds(batch, 1600.0)
        assert after.decode.step_seconds(batch, 1600.0) == pytest.approx(was, rel=0.1)


def test_three_windows_on_one_side_are_another_speed() -> None:
    state = PRESET
    for k in range(10):
        state = observe(state, windows(100.0 + 60 * k))
    for k in range(4):
        state = observe(state, windows(700.0 + 60 * k, slower=3.0))
    _, decode = fits(state)
    assert sum(decode.coefficients()) == pytest.approx(3.0 * sum(D_SEED), rel=0.1)


# --- the fit -------------------------------------------------------------------------------------

EYE: tuple[Triple, Triple, Triple] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
COUPLED: tuple[Triple, Triple, Triple] = ((4.0, 2.0, 1.0), (2.0, 3.0, 0.5), (1.0, 0.5, 2.0))


def pulled(squares: tuple[Triple, Triple, Triple], want: Triple) -> Triple:
    """The target whose ridge solution around 1 is `want`."""
    rows = [
        sum(s * w for s, w in zip(line, want, strict=True)) + RIDGE * (mine - 1.0)
        for line, mine in zip(squares, want, strict=True)
    ]
    return rows[0], rows[1], rows[2]


NO_SQUARES = ((0.0, 0.0, 0.0),) * 3
RIDGED = 1.0 + RIDGE
SOLVED: list[tuple[str, tuple[Triple, Triple, Triple], Triple, Triple]] = [
    ("nothing seen: the seed", NO_SQUARES, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ("each by itself", EYE, pulled(EYE, (2.0, 0.5, 3.0)), (2.0, 0.5, 3.0)),
    ("all together", COUPLED, pulled(COUPLED, (2.0, 0.5, 3.0)), (2.0, 0.5, 3.0)),
    ("none of one part", COUPLED, pulled(COUPLED, (2.0, 0.0, 3.0)), (2.0, 0.0, 3.0)),
    ("a negative one is none, the rest anew",
     ((1.0, 1.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (-5.0, 3.0, 2.0),
     (0.0, (3.0 + RIDGE) / RIDGED, (2.0 + RIDGE) / RIDGED)),
    ("then another one is negative too",
     ((1.0, 0.9, 0.0), (0.9, 1.0, 0.0), (0.0, 0.0, 1.0)), (-3.0, -1.0, 2.0),
     (0.0, 0.0, (2.0 + RIDGE) / RIDGED)),
    ("the last one is negative", EYE, (2.0, 2.0, -5.0),
     ((2.0 + RIDGE) / RIDGED, (2.0 + RIDGE) / RIDGED, 0.0)),
    ("all negative", EYE, (-5.0, -5.0, -5.0), (0.0, 0.0, 0.0)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("squares", "target", "want"), [r[1:] for r in SOLVED], ids=[r[0] for r in SOLVED]
)
def test_coefficients_are_the_nearest_to_the_seed_that_fit_and_none_is_negative(
    squares: tuple[Triple, Triple, Triple], target: Triple, want: Triple
) -> None:
    fit = RoleFit((2.0, 3.0, 5.0), squares, target)
    assert fit.coefficients() == pytest.approx((2 * want[0], 3 * want[1], 5 * want[2]), abs=1e-12)


@pytest.mark.parametrize(
    ("weight", "error", "want"),
    [(0, 0, 0), (5, 0, 0.5), (45, 0.1, 0.72), (5, 0.25, 0.25), (5, 0.5, 0), (5, 0.9, 0)],
)
def test_confidence_grows_with_windows_and_falls_with_errors(
    weight: float, error: float, want: float
) -> None:
    assert RoleFit(P_SEED, weight=weight, error=error).confidence() == pytest.approx(want)


# --- the profile ---------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_there_is_no_profile_of_one_role_alone(role: str) -> None:
    state = replace(start("k", 4, 32), **{role: RoleFit((1.0, 1.0, 1.0))})  # type: ignore[arg-type]
    assert state.profile() is None


@pytest.mark.parametrize(
    ("weights", "source", "confidence"),
    [((5, 45), "learned", 0.5), ((45, 5), "learned", 0.5), ((0, 5), "preset:a", 0.0),
     ((5, 0), "preset:a", 0.0), ((1, 1), "learned", 0.1667)],
)  # fmt: skip
def test_a_profile_is_as_sure_as_its_less_known_role(
    weights: tuple[float, float], source: str, confidence: float
) -> None:
    prefill, decode = (RoleFit((1.0, 2.0, 3.0), weight=w) for w in weights)
    profile = LearnState("k", 4, 32, 2, "preset:a", prefill, decode).profile()
    assert profile is not None
    assert (profile.source, profile.confidence) == (source, confidence)
    assert (profile.prefill_slots, profile.decode_slots) == (4, 32)


def test_a_stored_state_goes_on_with_the_slots_that_are_asked_for_now() -> None:
    stored = observe(start("k", 4, 32, prefetch=2, preset=PROFILE), windows(100.0))
    resumed = resume(stored, start("k", 8, 64, prefetch=3))
    assert (resumed.prefill_slots, resumed.decode_slots, resumed.prefetch) == (8, 64, 3)
    assert (resumed.prefill, resumed.last_at) == (stored.prefill, 100.0)
