"""Paced mode: compute for real, then wait until the time an accelerator would have taken.

A dozen instances on two cores share the cores: moving one from prefill to decode would change
nothing. Paced, each is as fast as a device of its own. A profile gives step times by batch:

    prefill  T_p = a + b * sum(L) + c * sum(L^2)      decode step = d + e * B + f * sum(context)

and the KV bytes and link bandwidth for transfers; all times are multiplied by the pace factor.
A step that follows another at once starts at the other's deadline, so timer jitter does not add up.
Results count only while valid: at most 1 % of steps were delivered late (by more than 3 ms and 5 %
of the step), and real compute took at most 70 % of the paced time; `/pdserve/v1/info` and
`pdserve_engine_paced_valid` report that. Never the default.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pdserve.terms.json import JsonMap, JsonObject

LATE_SHARE = 0.01
BUSY_SHARE = 0.70
MIN_TOLERANCE = 0.003
TOLERANCE_SHARE = 0.05
CHAIN_SECONDS = 0.01
"""A step that starts this soon after the last deadline counts as following it at once."""


class ProfileError(ValueError):
    """A performance profile cannot be used; the message names file and field."""


@dataclass(frozen=True, slots=True)
class PacingProfile:
    """Times of one accelerator instance; seconds, tokens, bytes, bytes per second."""

    name: str
    source: str
    a: float
    b: float
    c: float
    d: float
    e: float
    f: float
    kv_bytes_per_token: float
    link_bytes_per_second: float

    def prefill_seconds(self, chunks: Iterable[tuple[int, int]]) -> float:
        """Seconds of a batch of prompt chunks [start, end) in tokens.

        L^2 of a chunk is end^2 - start^2.
        """
        total = self.a
        for start, end in chunks:
            total += self.b * (end - start) + self.c * (end * end - start * start)
        return total

    def decode_seconds(self, batch: int, context: int) -> float:
        """Seconds of one step of `batch` requests whose contexts sum to `context` tokens."""
        return self.d + self.e * batch + self.f * context

    def transfer_seconds(self, tokens: int) -> float:
        """Seconds of one KV transfer of `tokens` tokens on an idle link."""
        return tokens * self.kv_bytes_per_token / self.link_bytes_per_second


def load_profile(name: str) -> PacingProfile:
    """A preset by name, or a JSON file by path.

    Raises:
        ProfileError: unknown preset, unreadable file, missing or negative number.
    """
    presets = importlib.resources.files("pdserve.refengine") / "profiles"
    try:
        if name.endswith(".json"):
            document: JsonMap = json.loads(Path(name).read_text(encoding="utf-8"))
        else:
            document = json.loads((presets / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = sorted(p.name.removesuffix(".json") for p in presets.iterdir())
        raise ProfileError(
            f"profile {name!r}: not found; presets are {', '.join(known)}, or give a .json file"
        ) from error
    except (OSError, ValueError) as error:
        raise ProfileError(f"profile {name!r}: {error}") from error
    return _profile(name, document)


def _profile(name: str, document: JsonMap) -> PacingProfile:
    def number(section: str, key: str) -> float:
        try:
            value = float(document[section][key])
        except (KeyError, TypeError, ValueError) as error:
            raise ProfileError(f"profile {name!r}: {section}.{key} is not a number") from error
        if not 0 <= value < float("inf"):
            raise ProfileError(f"profile {name!r}: {section}.{key} = {value}, must be >= 0")
        return value

    profile = PacingProfile(
        name=str(document.get("name", name)) if isinstance(document, dict) else name,
        source=str(document.get("source", "")) if isinstance(document, dict) else "",
        **{k: number("prefill", k) for k in "abc"},
        **{k: number("decode", k) for k in "def"},
        kv_bytes_per_token=number("kv", "bytesPerToken"),
        link_bytes_per_second=number("kv", "linkBytesPerSecond"),
    )
    if not profile.link_bytes_per_second:
        raise ProfileError(f"profile {name!r}: kv.linkBytesPerSecond must be > 0")
    return profile


class Pacer:
    """Deadline clock of one instance: when a step's results may be seen.

    Times come from the caller's monotonic clock.
    """

    def __init__(self, profile: PacingProfile, factor: float) -> None:
        self.profile, self.factor = profile, factor
        self._deadline = self._link_free = float("-inf")
        self._tolerance = MIN_TOLERANCE
        self.steps = self.late = 0
        self.busy = self.paced = 0.0

    def begin(self, now: float) -> float:
        """Start time of a step that begins at `now`, in seconds of the caller's clock.

        Where the step before ended a moment ago its end counts, so that steps follow without gaps.
        """
        return self._deadline if 0 <= now - self._deadline < CHAIN_SECONDS else now

    def end(self, start: float, computed: float, seconds: float) -> float:
        """When the step's results may be seen.

        Args:
            start: from `begin`.
            computed: seconds the computation really took.
            seconds: the profile's time, before dilation.
        """
        length = seconds * self.factor
        self.steps += 1
        self.busy += computed
        self.paced += length
        self._deadline = start + length
        self._tolerance = max(MIN_TOLERANCE, TOLERANCE_SHARE * length)
        return self._deadline

    def delivered(self, now: float) -> bool:
        """The results are seen now; True when later than tolerated: the step counts as late."""
        late = now > self._deadline + self._tolerance
        self.late += late
        return late

    def transfer_end(self, now: float, tokens: int) -> float:
        """When a transfer that starts now is over; transfers share the link one after another."""
        begin = max(now, self._link_free)
        self._link_free = begin + self.profile.transfer_seconds(tokens) * self.factor
        return self._link_free

    @property
    def valid(self) -> bool:
        """Whether figures measured so far are valid (module docstring)."""
        late_ok = self.late <= max(1.0, LATE_SHARE * self.steps)
        return late_ok and self.busy <= BUSY_SHARE * max(self.paced, 1e-9)

    def report(self) -> JsonObject:
        """For `/pdserve/v1/info`."""
        return {
            "profile": self.profile.name,
            "source": self.profile.source,
            "paceFactor": self.factor,
            "valid": self.steps == 0 or self.valid,
            "steps": self.steps,
            "lateSteps": self.late,
            "computeShare": round(self.busy / self.paced, 4) if self.paced else 0.0,
        }
