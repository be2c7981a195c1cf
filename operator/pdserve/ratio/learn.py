"""Learning the performance profile from what instances publish about themselves.

Each window gives one equation per role: mean batch time = a + b*sum(L)/batches + c*sum(L^2)/batches
for prefill, mean step time = d + e*B + f*context for decode. The coefficients are fitted as
multiples of the seed's by weighted least squares with exponential forgetting, a ridge that pulls
what traffic does not excite back to the seed, weights that discount outliers (Huber), and no
negative coefficient. Cold instances never get here (the source leaves them out); windows with too
little work, or overlapping one already used, are dropped.

The first window scales the whole seed to what it saw: devices differ mostly in speed. Without
a seed it makes one: prefill mostly per token (bound by compute), decode mostly constant (bound by
reading the weights). `LearnState` is plain data; the controller keeps it as JSON (`ratio.records`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pdserve.ratio.profile import DecodeProfile, PerformanceProfile, PrefillProfile
from pdserve.ratio.types import Quantity, ScenarioSample, known

Triple = tuple[float, float, float]

FORGET = 0.97
"""Weight kept per window: an effective memory of about 33 windows."""
RIDGE = 0.05
"""Weight of the seed against windows, per coefficient."""
HUBER = 0.25
"""Relative error up to which a window counts fully."""
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
    """Mean relative error of predictions before each update, smoothed."""

    def coefficients(self) -> Triple:
        """The fitted coefficients; the seed while nothing was seen."""
        ratios = _solve(self.squares, self.target)
        return (
            self.seed[0] * ratios[0],
            self.seed[1] * ratios[1],
            self.seed[2] * ratios[2],
        )

    def confidence(self) -> float:
        """0 to 1: 0 = the seed only; near 1 = many windows, predicted well."""
        return self.weight / (self.weight + 5.0) * max(0.0, 1.0 - 2.0 * self.error)


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

    def profile(self) -> PerformanceProfile | None:
        """What is known now; None until both roles have a seed or a window."""
        if self.prefill is None or self.decode is None:
            return None
        learned = min(self.prefill.weight, self.decode.weight) > 0.0
        confidence = min(self.prefill.confidence(), self.decode.confidence())
        return PerformanceProfile(
            PrefillProfile(*self.prefill.coefficients()),
            DecodeProfile(*self.decode.coefficients()),
            self.prefill_slots,
            self.decode_slots,
            "learned" if learned else self.seed_source,
            round(confidence, 4),
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
    if state.last_at is not None and 0 <= sample.at - state.last_at < sample.windows[0].seconds:
        return state
    pre, dec = sample.prefill, sample.decode
    prefill = _means(
        pre.compute_seconds, pre.batches, (pre.tokens, pre.tokens_squared), MIN_BATCHES
    )
    decode = _means(dec.step_seconds, dec.steps, (dec.step_requests, dec.step_context), MIN_STEPS)
    if prefill is None and decode is None:
        return state
    return replace(
        state,
        prefill=state.prefill
        if prefill is None
        else _update(state.prefill, *prefill, constant=0.1),
        decode=state.decode if decode is None else _update(state.decode, *decode, constant=0.7),
        last_at=sample.at,
    )


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


def _update(fit: RoleFit | None, seconds: float, terms: Triple, constant: float) -> RoleFit:
    """Take one window in; `constant` is the share of the time a first guess calls constant."""
    if fit is None:
        per_unit = (1.0 - constant) * seconds / terms[1] if terms[1] > 0 else 0.0
        tiny = 1e-3 * seconds / terms[2] if terms[2] > 0 else 0.0
        fit = RoleFit((constant * seconds, per_unit, tiny))
    elif fit.weight == 0.0:
        predicted = sum(s * x for s, x in zip(fit.seed, terms, strict=True))
        scale = seconds / predicted if predicted > 0.0 else 1.0
        fit = RoleFit((fit.seed[0] * scale, fit.seed[1] * scale, fit.seed[2] * scale))
    row = [s * x / seconds for s, x in zip(fit.seed, terms, strict=True)]
    ratios = _solve(fit.squares, fit.target)
    error = abs(sum(r * x for r, x in zip(ratios, row, strict=True)) - 1.0)
    weight = min(1.0, HUBER / error) if error > 0.0 else 1.0
    squares = [
        [FORGET * old + weight * x * y for old, y in zip(line, row, strict=True)]
        for line, x in zip(fit.squares, row, strict=True)
    ]
    target = [FORGET * old + weight * x for old, x in zip(fit.target, row, strict=True)]
    smoothing = 0.2 if fit.weight > 0 else 1.0
    return RoleFit(
        fit.seed,
        (_triple(squares[0]), _triple(squares[1]), _triple(squares[2])),
        _triple(target),
        FORGET * fit.weight + weight,
        fit.error + smoothing * (min(error, 1.0) - fit.error),
    )


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
