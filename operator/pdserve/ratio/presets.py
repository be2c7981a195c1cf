"""Profiles to start from, until an instance's own numbers are learned.

Fitted by relative least squares on published measurements of one instance of 8 devices (Splitwise,
github.com/Azure/AzurePublicDataset and splitwise-sim `perf_model.csv`, MIT licence: 105 rows per
device, prompts of 128 to 8,192 tokens, batches of 1 to 64). The mean relative error of the fit on
those rows is 16 % (prefill) and 2.0 % (decode) on H100, 14 % and 1.7 % on A100: a prefill error of
15 % is what this form of T_p costs over that wide range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pdserve.ratio.profile import DecodeProfile, PerformanceProfile, PrefillProfile


@dataclass(frozen=True, slots=True)
class Preset:
    """A named pair of profiles."""

    prefill: PrefillProfile
    decode: DecodeProfile


PRESETS: dict[str, Preset] = {
    "llama2-70b-h100x8": Preset(
        PrefillProfile(2.270e-2, 6.488e-5, 3.522e-9),
        DecodeProfile(2.980e-2, 2.016e-4, 1.778e-7),
    ),
    "llama2-70b-a100x8": Preset(
        PrefillProfile(2.153e-2, 1.502e-4, 1.968e-9),
        DecodeProfile(4.416e-2, 2.000e-4, 3.100e-7),
    ),
}


def _between(first: Preset, second: Preset) -> Preset:
    """Geometric means of both."""
    pre, dec = first.prefill, first.decode
    other, more = second.prefill, second.decode
    return Preset(
        PrefillProfile(
            math.sqrt(pre.base * other.base),
            math.sqrt(pre.per_token * other.per_token),
            math.sqrt(pre.per_token_squared * other.per_token_squared),
        ),
        DecodeProfile(
            math.sqrt(dec.base * more.base),
            math.sqrt(dec.per_request * more.per_request),
            math.sqrt(dec.per_context_token * more.per_context_token),
        ),
    )


TYPICAL = _between(PRESETS["llama2-70b-h100x8"], PRESETS["llama2-70b-a100x8"])
"""Proportions of an instance that nothing is known of; its first window gives its speed."""


def preset(name: str, prefill_slots: int, decode_slots: int) -> PerformanceProfile:
    """The named profile with the spec's slots (requests at once of one instance).

    Raises:
        KeyError: there is none of that name; the message lists the known ones.
    """
    if name not in PRESETS:
        raise KeyError(f"profile preset {name!r}: want one of {', '.join(sorted(PRESETS))}")
    found = PRESETS[name]
    return PerformanceProfile(
        found.prefill, found.decode, prefill_slots, decode_slots, f"preset:{name}"
    )


def dilated(profile: PerformanceProfile, factor: float) -> PerformanceProfile:
    """All times multiplied by `factor` > 0, as the reference engine's paced mode does."""
    pre, dec = profile.prefill, profile.decode
    return replace(
        profile,
        prefill=PrefillProfile(
            pre.base * factor, pre.per_token * factor, pre.per_token_squared * factor
        ),
        decode=DecodeProfile(
            dec.base * factor, dec.per_request * factor, dec.per_context_token * factor
        ),
    )
