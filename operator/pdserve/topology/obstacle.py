"""Why a node takes no new instance, as a kind for decisions and as words for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ObstacleKind = Literal[
    "outside", "cordoned", "not-ready", "unschedulable", "state-taint", "taint", "ending",
    "degraded",
]  # fmt: skip
"""`outside`: not in the RoCEDomain, or left out of it. `cordoned`: its part of the fabric is.
`unschedulable`: `kubectl cordon`. `ending`: its end is announced. `degraded`: it is not quite well.
`state-taint`: Kubernetes' own taint for a state of the node."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What keeps new instances off a node."""

    kind: ObstacleKind
    text: str
    """One phrase for a condition, e.g. `Taint maintenance:NoSchedule`."""

    @property
    def may_empty(self) -> bool:
        """Whether the node may be about to be emptied: a user, a controller of one or a cloud
        closed it.

        Kubernetes' own taints only report a node's state, some for a moment after that is well
        again.
        """
        return self.kind not in ("not-ready", "state-taint", "degraded")
