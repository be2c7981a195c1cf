"""A profile from JSON: coefficients, measured times, or what the operator learned.

- `{"prefill": {"base", "perToken", "perTokenSquared"}, "decode": {"base", "perRequest",
  "perContextToken"}}`, seconds;
- `{"measured": {"prefill": [{"batch", "promptTokens", "seconds"}, ...], "decode": [{"batch",
  "contextTokens", "seconds"}, ...]}}`: `seconds` of a batch, and of one step;
- the text in the ConfigMap `SCENARIOGROUP-profile` of a scenario.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pdserve.ratio.learn import LearnState
from pdserve.ratio.profile import DecodeProfile, PerformanceProfile, PrefillProfile
from pdserve.ratio.records import RecordError, from_json
from pdserve.sizing.fit import FitError, Row, fit_times, mean_error
from pdserve.wire.bounds import WireError, parse_json

PREFILL = ("base", "perToken", "perTokenSquared")
DECODE = ("base", "perRequest", "perContextToken")


class ProfileFileError(ValueError):
    """A profile cannot be read; the message names the field and what it wants."""


def read_profile(text: str, source: str, prefill_slots: int, decode_slots: int) -> (
    PerformanceProfile
):  # fmt: skip
    """The profile that a JSON text holds; see the module.

    Raises:
        ProfileFileError: it is none of the three forms.
    """
    try:
        raw = parse_json(text)
    except WireError as error:
        raise ProfileFileError(f"{source}: {error}") from error
    if not isinstance(raw, Mapping):
        raise ProfileFileError(f"{source}: want an object")
    if "measured" in raw:
        return _measured(raw["measured"], source, prefill_slots, decode_slots)
    if set(raw) == {"prefill", "decode"} and _has(raw["prefill"], PREFILL):
        return PerformanceProfile(
            PrefillProfile(*_numbers(raw["prefill"], PREFILL, f"{source}: prefill")),
            DecodeProfile(*_numbers(raw["decode"], DECODE, f"{source}: decode")),
            prefill_slots, decode_slots, f"file:{source}",
        )  # fmt: skip
    try:
        learned = from_json(LearnState, text).profile()
    except RecordError as error:
        raise ProfileFileError(
            f"{source}: neither coefficients, measured times nor a learned profile ({error}); "
            "docs/size.md shows the forms"
        ) from error
    if learned is None:
        raise ProfileFileError(f"{source}: nothing was learned yet")
    return learned


def _measured(raw: object, source: str, prefill_slots: int, decode_slots: int) -> (
    PerformanceProfile
):  # fmt: skip
    if not isinstance(raw, Mapping):
        raise ProfileFileError(f"{source}: measured: want an object with prefill and decode")
    prefill, decode = (
        _rows(raw.get(role), role, tokens, source)
        for role, tokens in (("prefill", "promptTokens"), ("decode", "contextTokens"))
    )
    first: list[Row] = [((1.0, b * n, b * n * n), s) for b, n, s in prefill]
    second: list[Row] = [((1.0, b, b * n), s) for b, n, s in decode]
    try:
        fitted, steps = fit_times(first), fit_times(second)
    except FitError as error:
        raise ProfileFileError(f"{source}: measured: {error}") from error
    errors = f"{mean_error(first, fitted):.0%} and {mean_error(second, steps):.0%}"
    return PerformanceProfile(
        PrefillProfile(*fitted), DecodeProfile(*steps), prefill_slots, decode_slots,
        f"file:{source}, measured; mean error of the fit {errors}",
    )  # fmt: skip


def _rows(raw: object, role: str, tokens: str, source: str) -> list[tuple[float, float, float]]:
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise ProfileFileError(f"{source}: measured.{role}: want a list of objects")
    names = ("batch", tokens, "seconds")
    rows = []
    for index, entry in enumerate(raw):
        path = f"{source}: measured.{role}[{index}]"
        batch, length, seconds = _numbers(entry, names, path)
        if min(batch, seconds) <= 0.0:
            raise ProfileFileError(f"{path}: batch and seconds must be above 0")
        rows.append((batch, length, seconds))
    return rows


def _has(raw: object, names: Sequence[str]) -> bool:
    return isinstance(raw, Mapping) and set(names) <= set(raw)


def _numbers(raw: object, names: Sequence[str], path: str) -> tuple[float, float, float]:
    if not isinstance(raw, Mapping) or set(raw) != set(names):
        raise ProfileFileError(f"{path}: want an object with {', '.join(names)}")
    found = []
    for name in names:
        value = raw[name]
        bad = isinstance(value, bool) or not isinstance(value, int | float)
        if bad or not math.isfinite(value) or not 0.0 <= value < 1e9:
            raise ProfileFileError(f"{path}.{name}: {value!r:.40}: want a number, 0 or more")
        found.append(float(value))
    return found[0], found[1], found[2]
