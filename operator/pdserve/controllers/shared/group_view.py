"""Builds the observation of one ScenarioGroup for the group planner, from the caches alone.

No I/O, no writes. It also lists foreign pods (named or labelled like ours, but not owned by this
ScenarioGroup): they are never touched (architecture invariant 9). Neighbours: `groups` plans on
the observation, `scenariogroup` carries the plan out, `desired.routing` makes the route
table from the same instances.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from pdserve.api import RoCEDomain, ScenarioGroup, revision_of
from pdserve.controllers.shared.caches import Caches, owned_by
from pdserve.controllers.shared.clock import Clock
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.parsed import parsed
from pdserve.controllers.shared.revisions import stored_revisions
from pdserve.controllers.shared.skipped import read_each
from pdserve.desired.group_wanted import ScenarioGroupView, peer_table, repairs_of
from pdserve.groups.corruption import judge_corruption
from pdserve.groups.health import HealthLimits
from pdserve.groups.instances import InstanceObs
from pdserve.groups.observe import instance_obs, is_group_index, joined
from pdserve.kube.resource import Object, ObjectKey
from pdserve.terms import ROLES
from pdserve.topology import NodeView, PodView
from pdserve.wire import names
from pdserve.wire.peers import PeerTable


@dataclass(frozen=True, slots=True)
class _Steady:
    """A pod's instance that no passing of time changes, as one version of pod and node shows it."""

    clock: Clock
    node: NodeView | None
    limits: HealthLimits
    seen: InstanceObs

    def holds(self, clock: Clock, node: NodeView | None, limits: HealthLimits) -> bool:
        return self.clock is clock and self.node is node and self.limits == limits


def view_group(context: OperatorContext, group: ScenarioGroup) -> ScenarioGroupView:
    """Read one ScenarioGroup's instances and tables."""
    caches, clock, owner = context.caches, context.clock, group.metadata.uid
    now = clock.now()

    def observe(pod: PodView) -> InstanceObs:
        node = caches.nodes.get(pod.place)
        since = partial(clock.since, owner, pod.uid)
        silent = context.silence.of(pod.place)
        limits = _limits(group, pod)
        if silent is not None:
            return instance_obs(pod, node, now, limits, since, silent)
        known = pod.derived.get(_Steady)
        if isinstance(known, _Steady) and known.holds(clock, node, limits):
            return known.seen
        seen = instance_obs(pod, node, now, limits, since)
        if seen.fault is None and seen.recheck_after is None:
            pod.derived[_Steady] = _Steady(clock, node, limits, seen)
        return seen

    pods = owned_by(caches.pods, group.metadata)
    seen = joined(read_each(pods, observe, caches.skipped, "observe"))
    clock.met(owner)
    tables: dict[int, PeerTable] = {}
    objects: dict[int, Object] = {}
    for config_map in owned_by(caches.config_maps, group.metadata):
        index = (config_map["metadata"].get("labels") or {}).get(names.LABEL_GROUP_INDEX)
        if is_group_index(index):
            objects[int(index)] = config_map
            # Without a readable one the planner writes a new one; instances keep theirs until then.
            read = read_each((config_map,), peer_table, caches.skipped, "observe")
            tables.update((int(index), table) for table in read)
    links = context.linker.links(ObjectKey(group.metadata.namespace, group.metadata.name))
    instances = judge_corruption(seen, tables, links, repairs_of(group))
    rollout = group.status.rollout
    needed = {i.revision for i in instances} | {rollout.stable_revision if rollout else ""}
    stored = {r: then for r, then in stored_revisions(caches, group).items() if r in needed}
    revisions = {**stored, revision_of(group.spec): group}
    return ScenarioGroupView(group, instances, tables, objects, revisions)


def domain_of(caches: Caches, name: str) -> RoCEDomain | None:
    """The RoCEDomain of that name; None where there is none or today's rules refuse it."""
    obj = caches.domains.get(name)
    read = partial(parsed, RoCEDomain)
    return next(read_each(() if obj is None else (obj,), read, caches.skipped, "observe"), None)


def _limits(group: ScenarioGroup, pod: PodView) -> HealthLimits:
    role = pod.labels.get(names.LABEL_ROLE, ROLES[0])
    template = group.spec.decode if role == "decode" else group.spec.prefill
    return HealthLimits(
        node_suspect=float(group.spec.recovery.node_suspect_seconds),
        startup_deadline=float(template.startup_deadline_seconds),
    )
