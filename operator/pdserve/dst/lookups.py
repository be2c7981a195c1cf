"""Who owns what in the simulated cluster, by namespace and uid."""

from __future__ import annotations

from pdserve.controllers.shared.caches import SCENARIO_GROUPS
from pdserve.dst.world import World
from pdserve.kube.resource import PODS, Object
from pdserve.wire import names


def group_of(world: World, pod: Object) -> Object | None:
    """The ScenarioGroup that controls an instance, found by namespace and uid."""
    meta = pod["metadata"]
    owners = [o for o in meta.get("ownerReferences", ()) if o.get("controller")]
    for obj in world.seen(SCENARIO_GROUPS):
        same = obj["metadata"].get("namespace") == meta.get("namespace")
        if same and any(o["uid"] == obj["metadata"]["uid"] for o in owners):
            return obj
    return None


def instances_of(world: World, group: Object) -> list[Object]:
    """Live pods of a ScenarioGroup."""
    uid = group["metadata"]["uid"]
    return [
        pod
        for pod in world.seen(PODS)
        if names.LABEL_ROLE in pod["metadata"].get("labels", {})
        and pod["metadata"].get("namespace") == group["metadata"]["namespace"]
        and any(o["uid"] == uid for o in pod["metadata"].get("ownerReferences", ()))
    ]
