"""Sets which instances of a ScenarioGroup the linker attends to, and wakes its PDService."""

from __future__ import annotations

import dataclasses

from pdserve.api import ScenarioGroup
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.instance_calls import Target
from pdserve.controllers.shared.rotation import gateways_identify
from pdserve.controllers.shared.triggers import service_key
from pdserve.desired.group_wanted import ScenarioGroupView, slots_of, spare_rule
from pdserve.desired.routing import routed_instances, unnamed
from pdserve.desired.service_credentials import ServiceCredentials, Terms
from pdserve.engines.pod_members import members_answer
from pdserve.groups.instances import InstanceObs
from pdserve.groups.polls import polls
from pdserve.groups.routable import endpoint, routable
from pdserve.kube.resource import ObjectKey
from pdserve.ratio.types import Counts
from pdserve.wire.peers import PeerTable
from pdserve.wire.routes import RouteTable


def service_name(key: ObjectKey, group: ScenarioGroup) -> str:
    """`NAMESPACE/NAME` of the PDService that the ScenarioGroup names."""
    return f"{key.namespace}/{group.spec.service}"


def attend(
    context: OperatorContext,
    key: ObjectKey,
    group: ScenarioGroup,
    view: ScenarioGroupView,
    routed: frozenset[str],
    held: ServiceCredentials | None,
) -> None:
    """Tell the linker whom to push tables to, whom to ask, whom to drain.

    Pods that are being deleted are attended while they run: they keep their table entry for
    the KV reads they serve, and newcomers link to every instance in the table.
    """
    asked = polls(view.instances, view.tables, routed)
    terms = _terms(context, key, group, held)
    legacy = frozenset() if terms is None else terms.legacy
    running = [
        i for i in view.instances if i.container_id and i.pod_ip and i.running and not i.fault
    ]
    leaders = [
        Target(
            instance=i.name,
            container_id=i.container_id or "",
            endpoint=endpoint(i.pod_ip or ""),
            service=service_name(key, group),
            engine=view.at(i.revision).spec.engine.type,
            table=_table_naming(view, i),
            poll=i.name in asked.links,
            drain=i.name in asked.drains,
            watch=i.role == "decode" and i.linked,
            terms=None if i.name in legacy else terms,
            role=i.role,
        )
        for i in running
    ]
    targets = {target.instance: target for target in leaders}
    others = [
        dataclasses.replace(
            targets[i.name],
            instance=m.pod,
            container_id=m.container_id or "",
            endpoint=endpoint(m.pod_ip or ""),
            poll=False,
            drain=False,
            watch=False,
            terms=None if m.pod in legacy else terms,
        )
        for i in running
        for m in i.members[1:]
        if members_answer(view.at(i.revision).spec.engine.type)
    ]
    context.linker.set_targets(key, [*leaders, *others])


def _terms(
    context: OperatorContext, key: ObjectKey, group: ScenarioGroup, held: ServiceCredentials | None
) -> Terms | None:
    """What the instances that read grants are granted by.

    Gateways of a group that no PDService made are its user's: they may send nothing.
    """
    if held is None:
        return None
    namespace, service = key.namespace, group.spec.service
    managed = context.caches.services.get(service, namespace) is not None
    reports = context.linker.links(key)
    return Terms(
        revision=held.revision,
        required=managed and gateways_identify(context.caches, namespace, service),
        legacy=frozenset(name for name, r in reports.items() if not r.credentials),
        known=frozenset(reports),
    )


def wake_service(
    context: OperatorContext,
    key: ObjectKey,
    group: ScenarioGroup,
    view: ScenarioGroupView,
    routes: RouteTable | None,
    held: ServiceCredentials | None,
    counts: Counts | None,
) -> None:
    """Queue the PDService when what may be routed differs from what gateways were given.

    A fault by mere passing of time changes no object that the PDService watches; nor does
    an instance that took the credentials of a rotation, or says that it reads grants.
    """
    scenario = group.spec.scenario
    given = next((s.groups for s in routes.scenarios if s.name == scenario), ()) if routes else ()
    rotating = held is not None and (held.step != "settled" or (held.shared and held.rotation))
    rule = spare_rule(group, counts, routed_instances(routes, scenario))
    now = routable(view.instances, view.tables, slots_of(view), rule)
    if rotating or unnamed(given) != now:
        context.queue.add(service_key(key.namespace, group.spec.service))


def _table_naming(view: ScenarioGroupView, instance: InstanceObs) -> PeerTable | None:
    table = view.tables.get(instance.group_index)
    return table if table is not None and table.peer(instance.name) is not None else None
