"""Moves instances off nodes whose end is announced, before it comes.

    announced                          a stand-in is created at once, whatever else serves
    the stand-in serves                the instance drains
    its end comes near, nothing serves the instance drains all the same

A drain ends by itself in `drainSeconds` at most, so the last moment to begin one is that long
before the end; of a notice that is shorter than two drains, half of it is left for the stand-in to
start. Neighbours: `topology.notices` says what announces an end, `evictions` what a `kubectl drain`
meanwhile may do.
"""

from __future__ import annotations

from pdserve.groups.instances import InstanceObs
from pdserve.groups.removal import retire
from pdserve.groups.stand_ins import create_stand_ins
from pdserve.groups.types import ConditionState, Observation
from pdserve.groups.view import GroupView, PlanDraft, at_own_revision
from pdserve.terms.times import rfc3339
from pdserve.topology import Fabric
from pdserve.topology.notices import NodeEnd

ENDING = "NodeEnds"
"""Reason of the condition Progressing."""


def leave_ending(group: GroupView, observation: Observation, draft: PlanDraft) -> None:
    """Stand-ins and drains for one group."""
    ending = [(i, end) for i in group.staying if (end := _end(i, draft.fabric)) is not None]
    if not ending:
        return
    own = at_own_revision(group, observation)
    if own is not None:
        create_stand_ins(group, [i for i, _ in ending], own, draft)
    names = ", ".join(sorted({end.node for _, end in ending}))
    message = f"group {group.index} moves its instances off {names}, which will end"
    if draft.progressing is None:
        draft.progressing = ConditionState("Progressing", "True", ENDING, message)
    for instance, end in ending:
        _drain_in_time(group, instance, end, observation, draft)


def _end(instance: InstanceObs, fabric: Fabric) -> NodeEnd | None:
    found = (fabric.end_of(n) for n in instance.nodes)
    return next((end for end in found if end is not None), None)


def _drain_in_time(
    group: GroupView,
    instance: InstanceObs,
    end: NodeEnd,
    observation: Observation,
    draft: PlanDraft,
) -> None:
    seen = observation.signals_seen.get((end.node, end.signal), observation.now)
    begun, at = end.when(min(seen, observation.now))
    last = at - min(observation.wanted.drain_seconds, (at - begun) / 2)
    told = f"node {end.node} ends ({end.text}), about {_shown(at)}"
    successors = [i for i in group.staying if i.replaces == instance.uid]
    serving = [
        i.name for i in successors if i.name in group.routable and observation.knows_route(i.name)
    ]
    if serving:
        retire(group, instance, f"{told}: {serving[0]} serves", observation, draft)
    elif observation.now >= last:
        retire(group, instance, f"{told}: no more time for a stand-in", observation, draft)
    else:
        draft.wait(last - observation.now)


def _shown(at: float) -> str:
    try:
        return rfc3339(at)
    except (OverflowError, ValueError, OSError):
        return "an unknown time"
