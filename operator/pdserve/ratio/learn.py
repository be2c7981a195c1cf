"""Learning the performance profile from what instances publish about themselves.

Each window gives one equation per role: mean batch time = a + b*sum(L)/batches + c*sum(L^2)/batches
for prefill, mean step time = d + e*B + f*context for decode. The coefficients are fitted as
multiples of the seed's: weighted least squares of the logarithm of the time (half and double as
much are equally far), linear around the present fit, with exponential forgetting, a ridge that
pulls what traffic does not excite back to the seed, weights that discount outliers (Huber), and no
negative coefficient. Three windows in a row that are far off on one side are another speed: the
fit starts anew from them. Cold instances never get here (the source leaves them out); windows with
too little work, or overlapping one already used, are dropped.

The first window scales the whole seed to what it saw: devices differ mostly in speed. Without a
seed, published measurements of other devices give its proportions (`presets.TYPICAL`). The fit
says how far each coefficient may be off, so that a prediction for batches that were never seen has
an error of its own. `LearnState` is plain data; the controller keeps it as JSON (`ratio.records`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median

from pdserve.ratio.presets import TYPICAL
from pdserve.ratio.profile import (
    Covariance,
    DecodeProfile,
    PerformanceProfile,
    PrefillProfile,
    Triple,
)
from pdserve.ratio.types import PrefillWindow, Quantity, ScenarioSample, known

FORGET = 0.97
"""Weight kept per window: an effective memory of about 33 windows."""
NOISE = 0.03
"""Relative error of one window's mean time, at least."""
SPREAD = 0.5
"""Standard deviation of each coefficient's multiple before any window."""
RIDGE = (NOISE / SPREAD) ** 2
"""Weight of the seed against windows, per coefficient."""
HUBER = 0.25
"""Logarithm of measured over predicted time up to which a window counts fully."""
FAR = 0.5
"""Most that one window says about it, and from which on it is far off."""
STREAK = 3
"""Windows in a row that are far off on one side after which the fit starts anew."""
KEPT_STARTS = 8
SPREAD_LEARN = 0.1
SAME_CONTEXT = 0.05
"""Share by which the mean context must move before it is noted."""
MIN_BATCHES = 3.0
MIN_STEPS = 20.0


@dataclass(frozen=True, slots=True)
class RoleFit:
    """Least squares in progress: `S r = z` for multiples r of the seed's coefficients."""

    seed: Triple
    squares: tuple[Triple, Triple, Triple] = ((0.0, 0.0, 0.0),) * 3
    target: Triple = (0.0, 0.0, 0.0)
    weight: float = 0.0
    """Windows seen, discounted."""
    error: float = 0.0
    """Mean error of the logarithm of predictions before each update (1 at most), smoothed."""
    streak: int = 0
    """Last windows that were far off: above 0 too slow, below 0 too fast."""

    def coefficients(self) -> Triple:
        """The fitted coefficients; the seed while nothing was seen."""
        ratios = _solve(self.squares, self.target)
        return (
            self.seed[0] * ratios[0],
            self.seed[1] * ratios[1],
            self.seed[2] * ratios[2],
        )

    def covariance(self) -> Covariance:
        """Of the coefficients, from the windows and the seed's own spread."""
        noise = max(self.error, NOISE) ** 2
        inverse = _inverse(self.squares)
        rows = [
            [noise * inverse[i][j] * self.seed[i] * self.seed[j] for j in range(3)]
            for i in range(3)
        ]
        return _triple(rows[0]), _triple(rows[1]), _triple(rows[2])

    def confidence(self) -> float:
        """0 to 1: 0 = the seed only; near 1 = many windows, predicted well."""
        return self.weight / (self.weight + 5.0) * max(0.0, 1.0 - 2.0 * self.error)


@dataclass(frozen=True, slots=True)
class Start:
    """How long one instance took to become ready."""

    created: float
    """Seconds since the epoch."""
    seconds: float


@dataclass(frozen=True, slots=True)
class LearnState:
    """All that learning remembers of one scenario."""

    key: str
    """What the profile is of (model, engine image, devices): another key starts afresh."""
    prefill_slots: int
    decode_slots: int
    prefetch: int
    seed_source: str
    prefill: RoleFit | None = None
    decode: RoleFit | None = None
    last_at: float | None = None
    """End of the last window used."""
    context: float | None = None
    """Mean tokens in the KV of a request that decodes, of the last minute."""
    spread: float | None = None
    """E[L^2]/E[L]^2 of computed prompts, smoothed."""
    starts: tuple[Start, ...] = ()
    """Last instances that became ready, in the order of their creation."""

    def cold_start(self) -> float | None:
        """Seconds from creation to ready, the median of the last starts; None before the first."""
        return median(start.seconds for start in self.starts) if self.starts else None

    def profile(self) -> PerformanceProfile | None:
        """What is known now; None until both roles have a seed or a window."""
        if self.prefill is None or self.decode is None:
            return None
        learned = min(self.prefill.weight, self.decode.weight) > 0.0
        confidence = min(self.prefill.confidence(), self.decode.confidence())
        return PerformanceProfile(
            PrefillProfile(*self.prefill.coefficients(), self.prefill.covariance()),
            DecodeProfile(*self.decode.coefficients(), self.decode.covariance()),
            self.prefill_slots,
            self.decode_slots,
            "learned" if learned else self.seed_source,
            round(confidence, 4),
            self.spread,
        )


def start(
    key: str,
    prefill_slots: int,
    decode_slots: int,
    prefetch: int = 2,
    preset: PerformanceProfile | None = None,
) -> LearnState:
    """Begin from a preset profile, or from nothing.

    `key` names what is learned of (model, engine, devices). `prefill_slots` and `decode_slots` are
    the spec's `maxConcurrency`; `prefetch` is how many requests a decode fetches ahead of a slot.
    """
    state = LearnState(key, prefill_slots, decode_slots, prefetch, "none")
    if preset is None:
        return state
    pre, dec = preset.prefill, preset.decode
    return replace(
        state,
        seed_source=preset.source,
        prefill=RoleFit((pre.base, pre.per_token, pre.per_token_squared)),
        decode=RoleFit((dec.base, dec.per_request, dec.per_context_token)),
    )


def resume(state: LearnState, fresh: LearnState) -> LearnState:
    """Go on from a stored state, with the slots of `fresh`; `fresh` if the keys differ."""
    if state.key != fresh.key:
        return fresh
    return replace(
        state,
        prefill_slots=fresh.prefill_slots,
        decode_slots=fresh.decode_slots,
        prefetch=fresh.prefetch,
    )


def observe(state: LearnState, sample: ScenarioSample) -> LearnState:
    """Take one sample in. Returns the state unchanged when there is nothing new in it.

    A sample from before the last one is new: the server's clock was set back.
    """
    if not sample.windows:
        return state
    pre, dec = sample.prefill, sample.decode
    decode = _means(dec.step_seconds, dec.steps, (dec.step_requests, dec.step_context), MIN_STEPS)
    state = _with_context(state, decode)
    if state.last_at is not None and 0 <= sample.at - state.last_at < sample.windows[0].seconds:
        return state
    prefill = _means(
        pre.compute_seconds, pre.batches, (pre.tokens, pre.tokens_squared), MIN_BATCHES
    )
    if prefill is None and decode is None:
        return state
    return replace(
        state,
        prefill=state.prefill if prefill is None else _update(state.prefill, *prefill, _PREFILL),
        decode=state.decode if decode is None else _update(state.decode, *decode, _DECODE),
        last_at=sample.at,
        spread=_spread(state.spread, sample.prefill),
    )


def _spread(before: float | None, prefill: PrefillWindow) -> float | None:
    """E[L^2]/E[L]^2 with that of a window blended in: one window's is mostly noise."""
    requests, tokens, squared = prefill.requests, prefill.tokens, prefill.tokens_squared
    if not (known(requests) and known(tokens) and known(squared)) or requests < 1 or tokens <= 0:
        return before
    seen = min(max(squared * requests / (tokens * tokens), 1.0), 10.0)
    return seen if before is None else before + SPREAD_LEARN * (seen - before)


def _with_context(state: LearnState, decode: tuple[float, Triple] | None) -> LearnState:
    """The state with the mean context of a window: in every round, since lengths may change."""
    if decode is None or decode[1][1] <= 0.0:
        return state
    seen = decode[1][2] / decode[1][1]
    moved = state.context is None or abs(seen - state.context) > SAME_CONTEXT * state.context
    return replace(state, context=seen) if moved else state


def observe_starts(state: LearnState, starts: Iterable[Start]) -> LearnState:
    """Take in instances that are ready; those created before the newest known one are known."""
    newest = state.starts[-1].created if state.starts else -math.inf
    new = sorted(
        (s for s in starts if s.created > newest and s.seconds >= 0.0), key=lambda s: s.created
    )
    return replace(state, starts=(*state.starts, *new)[-KEPT_STARTS:]) if new else state


def _means(
    seconds: Quantity, count: Quantity, sums: tuple[Quantity, Quantity], least: float
) -> tuple[float, Triple] | None:
    """Mean time and regressors per batch or step; None when unknown or too few."""
    first, second = sums
    if not (known(seconds) and known(count) and known(first) and known(second)):
        return None
    if count < least or seconds <= 0.0:
        return None
    return seconds / count, (1.0, first / count, second / count)


_PREFILL: Triple = (
    TYPICAL.prefill.base, TYPICAL.prefill.per_token, TYPICAL.prefill.per_token_squared
)  # fmt: skip
_DECODE: Triple = (
    TYPICAL.decode.base, TYPICAL.decode.per_request, TYPICAL.decode.per_context_token
)  # fmt: skip


def _update(fit: RoleFit | None, seconds: float, terms: Triple, typical: Triple) -> RoleFit:
    """Take one window in; `typical` gives the seed's proportions where there is none."""
    if fit is None or fit.weight == 0.0:
        fit = _scaled(typical if fit is None else fit.seed, seconds, terms)
    elif abs(fit.streak) >= STREAK:
        fit = _scaled(fit.coefficients(), seconds, terms)
    predicted = sum(c * x for c, x in zip(fit.coefficients(), terms, strict=True))
    off = math.log(seconds / predicted) if predicted > 0.0 else 0.0
    row = [s * x / predicted if predicted > 0.0 else 0.0
           for s, x in zip(fit.seed, terms, strict=True)]  # fmt: skip
    weight = min(1.0, HUBER / abs(off)) if off else 1.0
    said = 1.0 + max(-FAR, min(FAR, off))
    squares = [
        [FORGET * old + weight * x * y for old, y in zip(line, row, strict=True)]
        for line, x in zip(fit.squares, row, strict=True)
    ]
    target = [FORGET * old + weight * x * said for old, x in zip(fit.target, row, strict=True)]
    smoothing = 0.2 if fit.weight > 0 else 1.0
    return RoleFit(
        fit.seed,
        (_triple(squares[0]), _triple(squares[1]), _triple(squares[2])),
        _triple(target),
        FORGET * fit.weight + weight,
        fit.error + smoothing * (min(abs(off), 1.0) - fit.error),
        _streak(fit.streak, off),
    )


def _scaled(proportions: Triple, seconds: float, terms: Triple) -> RoleFit:
    """A fit that knows nothing but the seed, scaled to one window."""
    predicted = sum(s * x for s, x in zip(proportions, terms, strict=True))
    scale = seconds / predicted if predicted > 0.0 else 1.0
    return RoleFit((proportions[0] * scale, proportions[1] * scale, proportions[2] * scale))


def _streak(before: int, off: float) -> int:
    """Windows in a row that were far off on the side of this one; 0 where it is not."""
    if abs(off) < FAR:
        return 0
    side = 1 if off > 0 else -1
    return before + side if before * side > 0 else side


def _solve(squares: tuple[Triple, Triple, Triple], target: Triple) -> Triple:
    """Ridge solution around 1 with no negative part (negative ones are set to 0 and solved on)."""
    free = [0, 1, 2]
    while free:
        rows = [
            [squares[i][j] + (RIDGE if i == j else 0.0) for j in free] + [target[i] + RIDGE]
            for i in free
        ]
        found = _eliminate(rows)
        negative = [i for i, value in zip(free, found, strict=True) if value < 0.0]
        if not negative:
            ratios = [0.0, 0.0, 0.0]
            for i, value in zip(free, found, strict=True):
                ratios[i] = value
            return _triple(ratios)
        free = [i for i in free if i not in negative]
    return (0.0, 0.0, 0.0)


def _inverse(squares: tuple[Triple, Triple, Triple]) -> list[list[float]]:
    """Inverse of the squares with the ridge."""
    columns = [
        _eliminate(
            [
                [*(squares[i][j] + (RIDGE if i == j else 0.0) for j in range(3)), float(i == k)]
                for i in range(3)
            ]
        )
        for k in range(3)
    ]
    return [[columns[j][i] for j in range(3)] for i in range(3)]


def _eliminate(rows: list[list[float]]) -> list[float]:
    """Gauss-Jordan; the ridge keeps every pivot positive."""
    size = len(rows)
    for i in range(size):
        pivot = rows[i][i]
        rows[i] = [value / pivot for value in rows[i]]
        for j in range(size):
            if j != i:
                factor = rows[j][i]
                rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [row[size] for row in rows]


def _triple(values: list[float]) -> Triple:
    return (values[0], values[1], values[2])
