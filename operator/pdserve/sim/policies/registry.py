"""All policies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pdserve.sim.policies.base import Policy, World
from pdserve.sim.policies.fixed import at_start
from pdserve.sim.policies.pdserve import PdserveLoop

Maker = Callable[[World], Policy]

POLICIES: Mapping[str, Maker] = {
    "pdserve": PdserveLoop,
    "fixed": at_start,
}
