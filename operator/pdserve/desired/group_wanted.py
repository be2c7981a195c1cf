"""What a ScenarioGroup wants, as the group planner takes it. Pure.

`controllers.shared.group_view` reads the caches into a `ScenarioGroupView`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from pdserve.api import ModelSpec, RepairStatus, RoleTemplate, ScenarioGroup, revision_of
from pdserve.desired.pod_demand import PodDemand, demand_of
from pdserve.desired.rollouts import rollout_wanted
from pdserve.engines.pods import role_template
from pdserve.frozen import remembered
from pdserve.groups.instances import InstanceObs
from pdserve.groups.spares import NO_SPARES, SpareRule
from pdserve.groups.types import (
    CreateGroup,
    CreateInstance,
    NewPod,
    Observation,
    Plan,
    Repair,
    RoleWanted,
    Suspect,
    Wanted,
)
from pdserve.ratio.types import Counts
from pdserve.terms import Role
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.terms.times import epoch_of
from pdserve.topology import Reservation
from pdserve.wire import names
from pdserve.wire.bounds import WireError, parse_json
from pdserve.wire.peers import PeerTable


@dataclass(frozen=True, slots=True)
class ScenarioGroupView:
    """Instances and peer tables of one ScenarioGroup."""

    group: ScenarioGroup
    instances: tuple[InstanceObs, ...]
    tables: Mapping[int, PeerTable]
    table_objects: Mapping[int, JsonObject]
    """The ConfigMaps of the tables, also unreadable ones."""
    revisions: Mapping[str, ScenarioGroup]
    """The ScenarioGroup as it was at each known revision, the present one included."""

    def at(self, revision: str) -> ScenarioGroup:
        """The ScenarioGroup that renders and limits pods of `revision`; else the present one."""
        return self.revisions.get(revision, self.group)


Reach = Callable[[str, RoleTemplate, ModelSpec], frozenset[str] | None]
"""Namespace, role, model -> nodes from which all volumes of an instance are reached; None: all."""


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
        nodes = reach(namespace, template, spec.model)
        return _role(template, count, nodes, demand_of(group, name, revision))

    return Wanted(
        name=group.metadata.name,
        replicas=counts.groups,
        prefill=role("prefill", counts.prefill),
        decode=role("decode", counts.decode),
        revision=revision,
        locality_mode=spec.fabric.locality.mode,
        locality_level=spec.fabric.locality.level,
        drain_seconds=float(spec.recovery.drain_seconds),
        rollout=rollout_wanted(group),
        spares=spec.spares,
    )


def spare_rule(group: ScenarioGroup, counts: Counts | None, routed: Collection[str]) -> SpareRule:
    """Which decodes get no requests; `routed`: the instances that gateways were last given."""
    if counts is None or not group.spec.spares:
        return NO_SPARES
    return SpareRule(group.spec.spares, counts.decode, routed)


def models_of(view: ScenarioGroupView) -> Mapping[str, tuple[str, str]]:
    """Model name and engine type of every known revision."""
    return {
        revision: (then.spec.model.name, str(then.spec.engine.type))
        for revision, then in view.revisions.items()
    }


def slots_of(view: ScenarioGroupView) -> Mapping[str, Mapping[Role, int]]:
    """b_p and b_d (requests at once of an instance) by revision, of all that a pod has."""
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


def _role(
    role: RoleTemplate, count: int, nodes: frozenset[str] | None, demand: PodDemand
) -> RoleWanted:
    return RoleWanted(
        count=count,
        devices=role.instance.devices_per_node,
        resource=role.instance.resource,
        startup_deadline=float(role.startup_deadline_seconds),
        tolerations=demand.tolerations,
        nodes=nodes,
        requests=demand.requests,
        selector=demand.selector,
        members=role.instance.nodes,
    )


@remembered
def peer_table(config_map: JsonMap) -> PeerTable:
    """The peer table in a ConfigMap.

    Raises:
        WireError: it holds none.
    """
    text = (config_map.get("data") or {}).get(names.KEY_PEERS)
    if not isinstance(text, str):
        raise WireError(f"ConfigMap without key {names.KEY_PEERS}")
    return PeerTable.from_json(parse_json(text))


def promised(planned: Plan, observation: Observation) -> tuple[Reservation, ...]:
    """The devices of the pods that a plan creates."""
    new: list[NewPod] = []
    for action in planned.actions:
        match action:
            case CreateGroup():
                new += action.pods
            case CreateInstance():
                new += action.pods
    roles = (
        (pod, (observation.at(pod.revision) or observation.wanted).role(pod.role)) for pod in new
    )
    return tuple(x for pod, role in roles for x in role.shape.reservations(pod.name, (pod.node,)))
