"""Choices and helpers that several steps share: which object to act on, what to write there."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.dst.moments import stamp
from pdserve.dst.scene import Scene
from pdserve.dst.scheduling import is_admitted
from pdserve.kube.resource import NODES, PODS, Object


def an_instance(scene: Scene, rng: random.Random) -> Object | None:
    """One of the instances that are not being deleted; None where there is none."""
    pods = scene.live_instances()
    return rng.choice(pods) if pods else None


def a_service(scene: Scene, rng: random.Random) -> Object | None:
    """One of the services that every scene has; None where both were deleted."""
    services = [s for s in scene.world.seen(PDSERVICES) if name_of(s) in ("shop", "mart")]
    return rng.choice(services) if services else None


def mark_planned(scene: Scene, service: Object) -> None:
    """Counts of this service are its user's from here on: the end is not judged by the old ones.

    What is owed may be wanted no more.
    """
    scene.planned.add(name_of(service))
    scene.watcher.owed.clear()


def make_foreign(scene: Scene, resource: Any, obj: Object) -> None:
    """Create an object that pdserve did not make; nothing happens where the API refuses it."""
    with suppress(Exception):
        made = scene.world.create(resource, obj)
        scene.watcher.foreign.add(made["metadata"]["uid"])
        if resource == PODS:
            status = {"phase": "Running", "podIP": "127.9.9.9", "startTime": stamp()}
            if not is_taken(scene, made):
                status = {"phase": "Failed", "reason": "OutOfcpu", "startTime": stamp()}
            scene.patch(made, {"status": status}, PODS, "status")


def is_taken(scene: Scene, pod: Object) -> bool:
    """Whether the kubelet of the pod's node accepts it."""
    node = pod["spec"]["nodeName"]
    others = [
        p for p in scene.world.seen(PODS)
        if p["spec"].get("nodeName") == node and p["metadata"]["uid"] != pod["metadata"]["uid"]
    ]  # fmt: skip
    found = scene.world.get(NODES, node, "")
    return found is not None and is_admitted(pod, found, others)


def some_labels(scene: Scene, group: Object) -> dict[str, str]:
    """Labels of an instance of this ScenarioGroup; empty where it has none."""
    uid = group["metadata"]["uid"]
    for pod in scene.world.instances():
        if any(o["uid"] == uid for o in pod["metadata"].get("ownerReferences", ())):
            return dict(pod["metadata"]["labels"])
    return {}


def controller_reference(owner: Object, api_version: str) -> Object:
    """An ownerReference that names `owner` as the controller."""
    meta = owner["metadata"]
    return {
        "apiVersion": api_version, "kind": owner["kind"], "name": meta["name"],
        "uid": meta["uid"], "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip


def name_of(obj: Object) -> str:
    """The object's name."""
    return str(obj["metadata"]["name"])


def ip_of(pod: Object) -> str:
    """The pod's address; empty before it has one."""
    return str(pod.get("status", {}).get("podIP", ""))
