"""Limits of several subjects, decided together: a request is admitted by all of them or by none.

A subject is a scenario or an API key. Limiters are made when first asked for and forgotten when
a new one would be the same. Clock as an argument (monotonic seconds); no I/O. Neighbours:
`rate_limits` is one subject, the gateway's `limits` has the book of a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final, NamedTuple

from pdserve.forwarding.rate_limits import Exceeded, Left, Limiter, LimitKind
from pdserve.terms.limits import UsageLimits

MAX_SUBJECTS: Final = 65_536
"""Beyond that the one that was made first is forgotten."""


class LimitSubject(NamedTuple):
    """Whose limits a request counts in."""

    id: str
    """`scenario:` or `key:` and what tells it from others; the same in all gateways."""
    limits: UsageLimits


class LimitAsk(NamedTuple):
    """A request that asks to be admitted."""

    subjects: tuple[LimitSubject, ...]
    tokens: int
    """Of its prompt and the most that it may generate."""


class Verdict(NamedTuple):
    """What became of an `LimitAsk`."""

    exceeded: Exceeded | None
    """None: it is admitted, and counts in all of its subjects."""
    subject: int
    """Which of its subjects does not admit it."""
    left: dict[LimitKind, Left]
    """What is left of each rate: of the subject that has least."""


class LimitBook:
    """Limiters by subject."""

    def __init__(self) -> None:
        self._limiters: dict[str, Limiter] = {}

    def __len__(self) -> int:
        """Subjects that are remembered."""
        return len(self._limiters)

    def admit(self, ask: LimitAsk, holder: str, now: float, until: float = inf) -> Verdict:
        """Admit a request in all of its subjects, or in none.

        Args:
            ask: the request.
            holder: the gateway that has it.
            now: monotonic seconds.
            until: when the holder is forgotten, if it says nothing more.
        """
        limiters = [self._limiter(s, now) for s in ask.subjects]
        worst: Exceeded | None = None
        subject = 0
        for number, limiter in enumerate(limiters):
            found = limiter.exceeded(ask.tokens, now)
            if found is not None and (worst is None or found.wait > worst.wait):
                worst, subject = found, number
        if worst is None:
            for limiter in limiters:
                limiter.take(ask.tokens, now)
                limiter.hold(holder, limiter.held_by(holder) + 1, until)
        return Verdict(worst, subject, _least(limiters, now))

    def settle(self, subjects: Sequence[LimitSubject], tokens: int, now: float) -> None:
        """Give tokens back; negative: more was used than taken."""
        for subject in subjects:
            self._limiter(subject, now).settle(tokens, now)

    def ended(self, subjects: Sequence[LimitSubject], holder: str, now: float) -> None:
        """Count a request of this holder no longer as in progress."""
        for subject in subjects:
            limiter = self._limiter(subject, now)
            limiter.hold(holder, limiter.held_by(holder) - 1)

    def _limiter(self, subject: LimitSubject, now: float) -> Limiter:
        found = self._limiters.get(subject.id)
        if found is None:
            if len(self._limiters) >= MAX_SUBJECTS:
                self._forget(now)
            found = self._limiters[subject.id] = Limiter(subject.limits, now)
        else:
            found.follow(subject.limits, now)
        return found

    def _forget(self, now: float) -> None:
        idle = [name for name, limiter in self._limiters.items() if limiter.idle(now)]
        for name in idle or [next(iter(self._limiters))]:
            del self._limiters[name]


def _least(limiters: Sequence[Limiter], now: float) -> dict[LimitKind, Left]:
    least: dict[LimitKind, Left] = {}
    for limiter in limiters:
        for kind, left in limiter.left(now).items():
            if kind not in least or left.left < least[kind].left:
                least[kind] = left
    return least
