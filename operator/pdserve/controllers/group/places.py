"""Prepares a plan that is going to look for places, in steps between which others run.

Counting the room of ten thousand nodes for a pair of shapes takes 50 ms, and saying why there is
none as much. Neighbour: `scenariogroup` plans right afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping

from pdserve.controllers.shared.taken import Taken
from pdserve.desired.group_wanted import ScenarioGroupView
from pdserve.groups.types import Wanted
from pdserve.terms import ROLES
from pdserve.topology.spec import TreeSpec


async def prepare_places(
    taken: Taken,
    spec: TreeSpec,
    view: ScenarioGroupView,
    wanted: Wanted,
    former: Mapping[str, Wanted],
) -> None:
    """Read the fabric; where instances are missing, count what places for them are found by.

    A plan that needs what is not prepared here counts it itself, in one step.
    """
    standing = [i for i in view.instances if i.fault is None and not i.terminating]
    missing = wanted.replicas * sum(wanted.role(role).count for role in ROLES) - len(standing)
    asked = (wanted, *former.values()) if missing > 0 else ()
    await taken.prepare(spec, [w.group_request() for w in asked])
