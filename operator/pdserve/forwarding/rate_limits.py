"""Rate and concurrency limits of one subject: a scenario or an API key.

Rates are token buckets that hold the amount of one minute and fill evenly. So in any `t` seconds at
most `limit * (1 + t / 60)` is admitted, and over time no more than the limit. A request takes its
prompt and the most that it may generate; when it ended, `settle` gives back what it did not use, or
takes what it used beyond. A bucket may owe that, at most one minute's amount, and admits nothing
until it is paid.

A `Limiter` keeps the requests in progress by holder, the gateway that has them: with a share of
what several gateways have, the one that decides counts for all. Clock as an argument (monotonic
seconds); no I/O. Neighbours: `terms.limits` names the amounts, the gateway's `limits` asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final, Literal, NamedTuple

from pdserve.terms.limits import UsageLimits

MINUTE: Final = 60.0
SLACK: Final = 1e-6
"""Of one token: what rounding may lack."""

LimitKind = Literal["requests", "tokens", "concurrent"]
LIMIT_KINDS: Final[tuple[LimitKind, ...]] = ("requests", "tokens", "concurrent")


class Exceeded(NamedTuple):
    """Why a request is not admitted now."""

    kind: LimitKind
    limit: int
    used: int
    """Of the limit, without this request."""
    asked: int
    wait: float
    """Seconds until it would be admitted; infinite: never, it asks for more than the limit."""


class Left(NamedTuple):
    """What one bucket has left."""

    limit: int
    left: int
    full_in: float
    """Seconds until all of the limit is left."""


class RateBucket:
    """An amount a minute; holds one minute's amount at most."""

    __slots__ = ("_above", "_above_rate", "_at", "_level", "per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        """A full one; `per_minute` >= 1."""
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now
        self._above = 0.0
        """Used under a higher limit, beyond what may be owed of this one."""
        self._above_rate = 0.0
        """That limit, by which it is paid meanwhile."""

    def level(self, now: float) -> float:
        """What may be taken; negative while more was used than taken."""
        passed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        most = float(self.per_minute)
        self._level = min(most, self._level + passed * most / MINUTE)
        if self._above:
            self._above = max(0.0, self._above - passed * self._above_rate / MINUTE)
        return self._level

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0: now; infinite: never."""
        if amount > self.per_minute:
            return inf
        lacks = amount - self.level(now)
        return 0.0 if lacks <= SLACK else lacks * MINUTE / self.per_minute

    def add(self, amount: float, now: float) -> None:
        """Give back, or take where `amount` is negative; the debt is at most a minute's amount."""
        most = float(self.per_minute)
        self._level = max(-most, min(most, self.level(now) + amount))

    def resize(self, per_minute: int, now: float) -> None:
        """Follow another limit: what was used stays used, also where this one is lower.

        So gateways that have another limit each for a while do not fill the bucket by turns.
        """
        level = self.level(now)
        used, above = self.per_minute - level + self._above, self._above
        self._above_rate = max(float(self.per_minute), self._above_rate if above else 0.0)
        self.per_minute = per_minute
        self._level = max(-float(per_minute), per_minute - used)
        self._above = used - (per_minute - self._level)

    def left(self, now: float) -> Left:
        """What may be taken, in whole units, and when all may."""
        return left_of(self.per_minute, self.level(now))


def left_of(per_minute: int, level: float) -> Left:
    """What a bucket of this limit and level has left."""
    return Left(per_minute, max(0, int(level + SLACK)), (per_minute - level) * MINUTE / per_minute)


@dataclass(slots=True)
class _Held:
    count: int
    until: float
    """The holder has said nothing for so long then that it is taken for gone."""


class Limiter:
    """What one subject used of its limits."""

    __slots__ = ("_aside", "_buckets", "_held", "limits")

    def __init__(self, limits: UsageLimits, now: float) -> None:
        self.limits = UsageLimits()
        self._buckets: dict[LimitKind, RateBucket] = {}
        self._aside: dict[LimitKind, RateBucket] = {}
        """Of rates that are not limited now, for when they are again."""
        self._held: dict[str, _Held] = {}
        self.follow(limits, now)

    def follow(self, limits: UsageLimits, now: float) -> None:
        """Hold other limits from now on; what was used stays used."""
        if limits == self.limits:
            return
        self.limits = limits
        amounts: tuple[tuple[LimitKind, int], ...] = (
            ("requests", limits.requests), ("tokens", limits.tokens)
        )  # fmt: skip
        for kind, amount in amounts:
            bucket = self._buckets.pop(kind, None) or self._aside.pop(kind, None)
            if not amount:
                if bucket is not None:
                    self._aside[kind] = bucket
                continue
            if bucket is None:
                bucket = RateBucket(amount, now)
            elif bucket.per_minute != amount:
                bucket.resize(amount, now)
            self._buckets[kind] = bucket

    def exceeded(self, tokens: int, now: float) -> Exceeded | None:
        """Why a request of so many tokens is not admitted; None: it may be taken.

        Of several limits, the one that takes longest to wait for.
        """
        found: list[Exceeded] = []
        most = self.limits.concurrent
        if most and (held := self.held(now)) >= most:
            found.append(Exceeded("concurrent", most, held, 1, 0.0))
        for kind, bucket in self._buckets.items():
            asked = tokens if kind == "tokens" else 1
            wait = bucket.wait(asked, now)
            if wait > 0:
                used = bucket.per_minute - int(bucket.level(now) + SLACK)
                found.append(Exceeded(kind, bucket.per_minute, used, asked, wait))
        return max(found, key=lambda e: e.wait, default=None)

    def take(self, tokens: int, now: float) -> None:
        """Take a request of so many tokens out of the rates."""
        for kind, bucket in self._buckets.items():
            bucket.add(-(tokens if kind == "tokens" else 1), now)

    def settle(self, tokens: int, now: float) -> None:
        """Give back tokens; negative: more was used than taken."""
        if (bucket := self._buckets.get("tokens")) is not None:
            bucket.add(tokens, now)

    def hold(self, holder: str, count: int, until: float = inf) -> None:
        """Note how many requests a holder has in progress; forgotten at `until`."""
        if count > 0:
            self._held[holder] = _Held(count, until)
        else:
            self._held.pop(holder, None)

    def held_by(self, holder: str) -> int:
        """Requests that one holder has in progress."""
        found = self._held.get(holder)
        return 0 if found is None else found.count

    def held(self, now: float) -> int:
        """Requests in progress of all holders."""
        for gone in [name for name, held in self._held.items() if held.until <= now]:
            del self._held[gone]
        return sum(held.count for held in self._held.values())

    def level(self, kind: LimitKind, now: float) -> float | None:
        """What may be taken of a rate, negative while it is owed; None: it is not limited."""
        bucket = self._buckets.get(kind)
        return None if bucket is None else bucket.level(now)

    def lower(self, kind: LimitKind, level: float | None, now: float) -> None:
        """Take what another knows to be gone: at most `level` is left of a rate."""
        bucket = self._buckets.get(kind)
        if bucket is not None and level is not None and level < (mine := bucket.level(now)):
            bucket.add(level - mine, now)

    def left(self, now: float) -> dict[LimitKind, Left]:
        """What is left of the rates."""
        return {kind: bucket.left(now) for kind, bucket in self._buckets.items()}

    def idle(self, now: float) -> bool:
        """Whether a new one would be the same: nothing is held and all is left."""
        full = all(b.level(now) >= b.per_minute for b in self._buckets.values())
        return full and not self.held(now)
