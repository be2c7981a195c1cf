"""Reconciles one RoCEDomain: its status is a summary of the tree. It changes nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from pdserve.api import InvalidObjectError, RoCEDomain, merge_conditions
from pdserve.controllers.shared.caches import ROCE_DOMAINS
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.domain_overlap import overlap
from pdserve.controllers.shared.own_status import observe_own_status
from pdserve.controllers.shared.parsed import parsed
from pdserve.controllers.shared.refusals import InvalidObject
from pdserve.controllers.shared.shapes_in_use import Shapes
from pdserve.controllers.shared.triggers import DOMAIN
from pdserve.desired.compare import covers
from pdserve.groups.types import ConditionState
from pdserve.kube.resource import ObjectKey
from pdserve.kube.workqueue import QueueKey
from pdserve.placement import Shape, largest_group, uniform_request
from pdserve.terms.json import JsonObject
from pdserve.topology import DomainSummary, Fabric, LeafTrouble, fabric_spec, summarise
from pdserve.wire import names

MAX_WORST = 10
MAX_LINE = 256


async def reconcile_domain(context: OperatorContext, key: ObjectKey) -> float | None:
    """Write the status of one RoCEDomain if it differs.

    Raises:
        InvalidObject: today's rules refuse it.
        KubeError: to be retried with backoff.
    """
    obj = context.caches.domains.get(key.name)
    if obj is None or obj["metadata"].get("deletionTimestamp"):
        return None
    try:
        domain = parsed(RoCEDomain, obj)
    except InvalidObjectError as error:
        raise InvalidObject(str(error)) from error
    spec = fabric_spec(domain)
    shapes = context.shapes.of(key.name)
    await context.taken.prepare_summary(spec)
    offered = [resource for resource, _ in summarise(context.taken.fabric(spec)).free]
    await context.taken.prepare(spec, [uniform_request(*_shapes(r, shapes)) for r in offered])
    fabric, shared = context.taken.fabric(spec), overlap(context.caches, obj)
    status = domain_status(domain, fabric, shapes, shared, context.now())
    live_status = obj.get("status") or {}
    if covers(live_status, status) and covers(status["free"], live_status.get("free")):
        return None
    live = await context.client.patch_status(
        ROCE_DOMAINS, key.name, status, uid=domain.metadata.uid, field_manager=names.FIELD_MANAGER
    )
    observe_own_status(
        context.queue, QueueKey(DOMAIN, "", key.name), context.caches.domains, obj, live
    )
    return None


def domain_status(
    domain: RoCEDomain,
    fabric: Fabric,
    shapes: Mapping[str, Shapes],
    shared: ConditionState | None,
    now: float,
) -> JsonObject:
    """The status as JSON; `shared` replaces Ready; `now` in seconds since the epoch."""
    summary = summarise(fabric)
    generation = domain.metadata.generation
    conditions = (*_conditions(summary), *((shared,) if shared is not None else ()))
    merged = merge_conditions(domain.status.conditions, conditions, generation, now)
    return {
        "observedGeneration": generation,
        "topologyVersion": summary.topology_version,
        "nodes": {
            "total": summary.nodes_total,
            "ready": summary.nodes_ready,
            "excluded": summary.nodes_excluded,
            "unhealthyDevices": summary.unhealthy_devices,
        },
        "levels": [{"name": level.name, "domains": level.domains} for level in summary.levels],
        "free": [
            {"resource": resource, "devices": free, **_largest(fabric, resource, shapes)}
            for resource, free in summary.free
        ],
        "worst": _worst(summary, fabric.spec.levels[fabric.spec.leaf_depth - 1].name),
        "conditions": [c.to_dict() for c in merged],
    }


def _largest(fabric: Fabric, resource: str, shapes: Mapping[str, Shapes]) -> dict[str, str]:
    found = largest_group(fabric, uniform_request(*_shapes(resource, shapes)))
    return {} if found is None else {"largestGroup": f"{found[0]}P{found[1]}D"}


def _shapes(resource: str, shapes: Mapping[str, Shapes]) -> Shapes:
    return shapes.get(resource, (Shape(resource, 1), Shape(resource, 1)))


def _conditions(summary: DomainSummary) -> tuple[ConditionState, ...]:
    labels = "; ".join(summary.labels_complete)
    tree = "; ".join(summary.tree_consistent)
    notes = "; ".join(summary.node_problems)
    ready = summary.nodes_ready > 0
    return (
        ConditionState(
            "LabelsComplete", "False" if labels else "True",
            "LabelMissing" if labels else "Complete", labels,
        ),
        ConditionState(
            "TreeConsistent", "False" if tree else "True",
            "SeveralParents" if tree else "Consistent", tree,
        ),
        ConditionState(
            "Ready", "True" if ready else "False",
            "NodesReady" if ready else "NoReadyNode",
            notes if ready else _no_node(summary),
        ),
    )  # fmt: skip


def _no_node(summary: DomainSummary) -> str:
    if summary.nodes_total == 0:
        return "spec.nodeSelector matches no node: label nodes or correct the selector"
    return (
        f"none of {summary.nodes_total} nodes is usable "
        f"({summary.nodes_excluded} excluded, the others not ready)"
    )


def _worst(summary: DomainSummary, level: str) -> list[dict[str, str]]:
    """Leaves by what is wrong in them, most first, then by name."""
    order = sorted(summary.troubles, key=lambda t: (-len(t.away) - t.unhealthy_devices, t.leaf))
    return [
        {"level": level, "value": trouble.leaf[-1], "message": _told(trouble)}
        for trouble in order[:MAX_WORST]
    ]


def _told(trouble: LeafTrouble) -> str:
    away = trouble.away
    shown = ", ".join(away[:3]) + (" and more" if len(away) > 3 else "")
    parts = [f"{len(away)} nodes not ready ({shown})"] if away else []
    if trouble.unhealthy_devices:
        parts.append(f"{trouble.unhealthy_devices} unhealthy devices")
    return ", ".join(parts)[:MAX_LINE]
