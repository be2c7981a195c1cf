"""After a start: which groups wait for devices, and which devices vanished instances left."""

from __future__ import annotations

import asyncio

from pdserve.api import ScenarioGroup
from pdserve.controllers.group.known_fabric import recalled_domain
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.device_claims import Rank
from pdserve.controllers.shared.group_view import domain_of, view_group
from pdserve.controllers.shared.parsed import parsed
from pdserve.desired.group_wanted import wanted_of
from pdserve.kube.resource import Object, ObjectKey
from pdserve.ratio.types import Counts
from pdserve.topology import Fabric, fabric_spec


async def recall_claims(context: OperatorContext) -> None:
    """After a start: what instances that vanished meanwhile left, and who waits for devices."""
    for obj in context.caches.groups.list():
        await asyncio.sleep(0)
        if context.scope.leaves(obj["metadata"]["namespace"]):
            continue
        try:
            await _recall(context, obj)
        except Exception as error:
            context.skips(obj, "claims", error)


async def _recall(context: OperatorContext, obj: Object) -> None:
    group = parsed(ScenarioGroup, obj)
    domain = domain_of(context.caches, group.spec.fabric.domain_ref.name) or recalled_domain(group)
    known = None if domain is None else fabric_spec(domain)
    if known is not None:
        await context.taken.prepare(known, ())

    def fabric() -> Fabric | None:
        return None if known is None else context.taken.fabric(known)

    context.claims.recall(view_group(context, group), fabric)
    spec = group.spec
    placed = next((c for c in group.status.conditions if c.type == "Placed"), None)
    counts = (spec.replicas, spec.prefill.replicas, spec.decode.replicas)
    if placed is None or placed.reason != "NoFit" or None in counts:
        return
    wanted = wanted_of(group, Counts(*(n or 0 for n in counts)), context.volumes.reach)
    key = ObjectKey(group.metadata.namespace, group.metadata.name)
    request = wanted.group_request()
    context.claims.waits(key, spec.fabric.domain_ref.name, rank_of(context, obj), request)


def rank_of(context: OperatorContext, obj: Object) -> Rank:
    """Place among ScenarioGroups that wait for devices: priority of the scenario, then age."""
    meta, spec = obj["metadata"], obj["spec"]
    service = context.caches.services.get(spec["service"], meta["namespace"]) or {}
    listed = [s.get("name") for s in service.get("spec", {}).get("scenarios") or ()]
    priority = listed.index(spec["scenario"]) if spec["scenario"] in listed else 0
    created = str(meta.get("creationTimestamp", ""))
    return Rank(priority, created, meta["namespace"], meta["name"])
