"""Who owns what in the simulated cluster, by namespace and uid."""

from __future__ import annotations

from pdserve.controllers.shared.caches import SCENARIO_GROUPS
from pdserve.dst.world import World
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import PODS, Object
from pdserve.terms.json import JsonMap, JsonObject
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


def place_of(pod: Object) -> tuple[str | None, ...]:
    """P/D group, role and revision."""
    keys = (names.LABEL_GROUP_INDEX, names.LABEL_ROLE, names.LABEL_REVISION)
    return tuple(map(labels_of(pod).get, keys))


def labels_of(obj: Object) -> dict[str, str]:
    """Labels of an object; empty where it has none."""
    return obj["metadata"].get("labels") or {}


def drain_begins(before: Object, after: Object) -> bool:
    """Whether this change of a pod is the one that drains it."""

    def told(obj: Object) -> bool:
        return names.ANNOTATION_DRAIN in (obj["metadata"].get("annotations") or {})

    return told(after) and not told(before)


def newest_applied_in(status: JsonMap) -> JsonObject | None:
    """The newest applied decision of a ScenarioGroup's status; None where there is none."""
    made = [d for d in status.get("decisions", ()) if d.get("outcome") == "Applied"]
    return dict(made[-1]) if made else None


def line_of(request: KubeRequest) -> str:
    """A request as text."""
    name = request.name or (request.body or {}).get("metadata", {}).get("name", "")
    part = f"/{request.subresource}" if request.subresource else ""
    return f"{request.verb} {request.resource.plural}{part} {request.namespace or ''}/{name}"
