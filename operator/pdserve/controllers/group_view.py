"""What the group planner is shown: one ScenarioGroup read from the caches. No I/O, no writes.

Also says which pods are strangers (named or labelled like ours, but not owned by this
ScenarioGroup): they are never touched (architecture invariant 9). Neighbours: `groups` plans on
the observation, `scenariogroup` carries the plan out, `service_view` reads the same instances for
the route table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pdserve.api import RepairStatus, RoCEDomain, RoleTemplate, ScenarioGroup, revision_of
from pdserve.controllers.caches import Caches, owned_by
from pdserve.controllers.clock import Clock
from pdserve.controllers.context import OperatorContext
from pdserve.controllers.demand import PodDemand, demand_of
from pdserve.controllers.parsed import parsed
from pdserve.controllers.revisions import stored_revisions
from pdserve.controllers.skipped import read_each
from pdserve.engines.pods import role_template
from pdserve.frozen import Frozen, remembered
from pdserve.groups.health import HealthLimits
from pdserve.groups.observe import instance_obs, is_group_index
from pdserve.groups.types import InstanceObs, Repair, RoleWanted, Suspect, Wanted
from pdserve.kube.resource import Object
from pdserve.ratio.types import Counts
from pdserve.terms import ROLES, Role
from pdserve.terms.times import epoch_of
from pdserve.topology.nodes import pinned_node
from pdserve.wire import names
from pdserve.wire.bounds import WireError, parse_json
from pdserve.wire.peers import PeerTable


@dataclass(frozen=True, slots=True)
class ScenarioGroupView:
    """Instances and peer tables of one ScenarioGroup."""

    group: ScenarioGroup
    instances: tuple[InstanceObs, ...]
    tables: Mapping[int, PeerTable]
    table_objects: Mapping[int, Object]
    """The ConfigMaps of the tables, also unreadable ones."""
    revisions: Mapping[str, ScenarioGroup]
    """The ScenarioGroup as it was at each known revision, the present one included."""

    def at(self, revision: str) -> ScenarioGroup:
        """The ScenarioGroup that renders and limits pods of `revision`; else the present one."""
        return self.revisions.get(revision, self.group)


@dataclass(frozen=True, slots=True)
class _Steady:
    """An instance that no passing of time changes, as one version of its pod and node shows it."""

    clock: Clock
    node: Object | None
    limits: HealthLimits
    seen: InstanceObs

    def holds(self, clock: Clock, node: Object | None, limits: HealthLimits) -> bool:
        return self.clock is clock and self.node is node and self.limits == limits


def view_group(context: OperatorContext, group: ScenarioGroup) -> ScenarioGroupView:
    """Read one ScenarioGroup's instances and tables."""
    caches, clock, owner = context.caches, context.clock, group.metadata.uid
    now = clock.now()

    def observe(pod: Object) -> InstanceObs:
        node_name = pod.get("spec", {}).get("nodeName") or pinned_node(pod) or ""
        node = caches.nodes.get(node_name)
        since = partial(clock.since, owner, str(pod["metadata"].get("uid", "")))
        silent = context.silence.of(node_name)
        limits = _limits(group, pod)
        if silent is not None or not isinstance(pod, Frozen):
            return instance_obs(pod, node, now, limits, since, silent)
        known: _Steady | None = pod.derived.get(_Steady)
        if known is not None and known.holds(clock, node, limits):
            return known.seen
        seen = instance_obs(pod, node, now, limits, since)
        if seen.fault is None and seen.recheck_after is None:
            pod.derived[_Steady] = _Steady(clock, node, limits, seen)
        return seen

    pods = owned_by(caches.pods, group.metadata)
    instances = tuple(read_each(pods, observe, caches.skipped, "observe"))
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
    revisions = {**stored_revisions(caches, group), revision_of(group.spec): group}
    return ScenarioGroupView(group, instances, tables, objects, revisions)


Reach = Callable[[str, RoleTemplate], frozenset[str] | None]
"""Namespace and role -> nodes from which the volumes of its instances are reached; None: all."""


def former_wanted(view: ScenarioGroupView, counts: Counts, reach: Reach) -> Mapping[str, Wanted]:
    """What would be wanted at each other known revision, for the planner's `Observation.former`.

    Those of another RoCEDomain are left out: their nodes are not on the tree planned for.
    """
    domain = view.group.spec.fabric.domain_ref
    return {
        revision: wanted_of(then, counts, reach)
        for revision, then in view.revisions.items()
        if then is not view.group and then.spec.fabric.domain_ref == domain
    }


def wanted_of(group: ScenarioGroup, counts: Counts, reach: Reach) -> Wanted:
    """What is wanted of the ScenarioGroup, with the counts in force (`service_desired`)."""
    spec, namespace = group.spec, group.metadata.namespace
    revision = revision_of(spec)

    def role(name: Role, count: int) -> RoleWanted:
        template = role_template(group, name)
        return _role(template, count, reach(namespace, template), demand_of(group, name, revision))

    return Wanted(
        name=group.metadata.name,
        namespace=namespace,
        service=spec.service,
        scenario=spec.scenario,
        replicas=counts.groups,
        prefill=role("prefill", counts.prefill),
        decode=role("decode", counts.decode),
        revision=revision,
        locality_mode=spec.fabric.locality.mode,
        locality_level=spec.fabric.locality.level,
        drain_seconds=float(spec.recovery.drain_seconds),
    )


def models_of(view: ScenarioGroupView) -> Mapping[str, tuple[str, str]]:
    """Model name and engine type of every known revision."""
    return {
        revision: (then.spec.model.name, str(then.spec.engine.type))
        for revision, then in view.revisions.items()
    }


def slots_of(view: ScenarioGroupView) -> Mapping[str, Mapping[Role, int]]:
    """b_p and b_d of every revision that a pod has, by revision."""
    used = {i.revision for i in view.instances}
    return {revision: _slots(view.at(revision)) for revision in used}


def _slots(group: ScenarioGroup) -> Mapping[Role, int]:
    return {
        "prefill": group.spec.prefill.max_concurrency,
        "decode": group.spec.decode.max_concurrency,
    }


def repairs_of(group: ScenarioGroup) -> tuple[Repair, ...]:
    """The slots' fault histories that status remembers."""
    return tuple(
        Repair(
            slot=r.slot,
            failures=r.failures,
            last_failure=epoch_of(r.last_failure_time),
            suspects=_suspects(r),
            not_before=epoch_of(r.not_before_time) if r.not_before_time else 0.0,
            last_uid=r.last_uid,
            fault=r.fault,
            message=r.message,
        )
        for r in group.status.repairs
    )


def _suspects(repair: RepairStatus) -> tuple[Suspect, ...]:
    if repair.suspects:
        return tuple(Suspect(s.node, epoch_of(s.time), s.fault) for s in repair.suspects)
    if repair.suspect_node is None:
        return ()
    # Written by an operator that kept only the newest.
    time = epoch_of(repair.last_failure_time)
    return (Suspect(repair.suspect_node, time, repair.fault),)


def domain_of(caches: Caches, name: str) -> RoCEDomain | None:
    """The RoCEDomain of that name; None where there is none or today's rules refuse it."""
    obj = caches.domains.get(name)
    read = partial(parsed, RoCEDomain)
    return next(read_each(() if obj is None else (obj,), read, caches.skipped, "observe"), None)


def _role(
    role: RoleTemplate, count: int, nodes: frozenset[str] | None, demand: PodDemand
) -> RoleWanted:
    return RoleWanted(
        count=count,
        devices=role.instance.devices_per_node,
        resource=role.instance.resource,
        slots=role.max_concurrency,
        startup_deadline=float(role.startup_deadline_seconds),
        tolerations=demand.tolerations,
        nodes=nodes,
        requests=demand.requests,
        selector=demand.selector,
    )


def _limits(group: ScenarioGroup, pod: Object) -> HealthLimits:
    role = (pod["metadata"].get("labels") or {}).get(names.LABEL_ROLE, ROLES[0])
    template = group.spec.decode if role == "decode" else group.spec.prefill
    return HealthLimits(
        node_suspect=float(group.spec.recovery.node_suspect_seconds),
        startup_deadline=float(template.startup_deadline_seconds),
    )


@remembered
def peer_table(config_map: Mapping[str, Any]) -> PeerTable:
    """The peer table in a ConfigMap.

    Raises:
        WireError: it holds none.
    """
    text = (config_map.get("data") or {}).get(names.KEY_PEERS)
    if not isinstance(text, str):
        raise WireError(f"ConfigMap without key {names.KEY_PEERS}")
    return PeerTable.from_json(parse_json(text))
