"""Which scenarios need no round of the ratio loop, because nothing changed since the last one.

A round that held the counts for a reason that waits for nothing comes out the same while the
measurements and the objects are the same: only time goes on, which fades what the loop remembers.
Such a scenario rests for at most a control period. One with traffic has new counts at every scrape.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace

from pdserve.kube.resource import Object
from pdserve.ratio.types import Decision, Reason, ScenarioSample, Unknown

TIMELESS = frozenset(
    {Reason.STEADY, Reason.FIXED_COUNTS, Reason.EXTERNAL_OWNER, Reason.INFEASIBLE_REQUESTS}
)
"""Reasons to hold that no passing of time ends. HoldNoData is one while nothing answers at all."""


@dataclass(frozen=True, slots=True)
class Rest:
    """What a held round went by."""

    since: float
    group: Object
    service: object
    sample: ScenarioSample | Unknown
    part: float
    """Of the period for which a scenario may rest: not all are due at once."""
    until: float = math.inf
    """When a window by clock changes what is asked."""

    def lasts(
        self, now: float, period: float, group: Object, service: object,
        sample: ScenarioSample | Unknown,
    ) -> bool:  # fmt: skip
        """Whether a round at `now` would come out the same; `period`: seconds that it may rest.

        Each scenario rests for `part` of them.
        """
        return (
            0.0 <= now - self.since < period * self.part
            and now < self.until
            and self.group is group
            and self.service is service
            and self.sample == _measured(sample)
        )


def rest_after(
    now: float, group: Object, service: object, sample: ScenarioSample | Unknown,
    decision: Decision, until: float = math.inf,
) -> Rest | None:  # fmt: skip
    """The rest that a round earns; None where the next one may come out otherwise.

    `until`: when a window by clock changes what is asked.
    """
    timeless = decision.reason in TIMELESS or (
        isinstance(sample, Unknown) and decision.reason is Reason.HOLD_NO_DATA
    )
    if decision.outcome != "Held" or not timeless:
        return None
    return Rest(now, group, service, _measured(sample), 0.5 + _part(group) / 2, until)


def _part(group: Object) -> float:
    """A number of 0 to 1 from the object's name."""
    meta = group["metadata"]
    return (zlib.crc32(f"{meta['namespace']}/{meta['name']}".encode()) % 1000) / 1000


def _measured(sample: ScenarioSample | Unknown) -> ScenarioSample | Unknown:
    """The sample without when it was taken."""
    if isinstance(sample, Unknown):
        return sample
    return replace(sample, at=0.0, age=0.0, lag=0.0)
