"""Prepares a plan that is going to look for places, in steps between which others run.

Counting the room of ten thousand nodes for a pair of shapes takes 50 ms, and saying why there is
none as much. Neighbour: `scenariogroup` plans right afterwards.
"""

from __future__ import annotations

from pdserve.controllers.shared.context import OperatorContext
from pdserve.desired.group_wanted import ScenarioGroupView, former_wanted
from pdserve.groups.types import Wanted
from pdserve.ratio.types import Counts
from pdserve.terms import ROLES
from pdserve.topology.spec import TreeSpec


async def prepare_places(
    context: OperatorContext,
    spec: TreeSpec,
    view: ScenarioGroupView,
    wanted: Wanted,
    counts: Counts,
) -> None:
    """Read the fabric; where instances are missing, count what places for them are found by.

    A plan that needs what is not prepared here counts it itself, in one step.
    """
    standing = [i for i in view.instances if i.fault is None and not i.terminating]
    missing = wanted.replicas * sum(wanted.role(role).count for role in ROLES) - len(standing)
    former = former_wanted(view, counts, context.volumes.reach)
    asked = (wanted, *former.values()) if missing > 0 else ()
    await context.taken.prepare(spec, [w.group_request() for w in asked])
