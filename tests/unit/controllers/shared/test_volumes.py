"""Instances go where their volumes are; what cannot be read restricts nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pdserve.controllers import rbac
from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.errors import KubeError
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import (
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    STORAGE_CLASSES,
    Object,
    Resource,
)

HOME = "d-1"
"""The last of eight nodes: a search one after the other comes to it late."""
TRIES = 3
VOLUME_KINDS = (PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES)


def obj(resource: Resource, name: str, namespace: str = "", **parts: Any) -> Object:
    meta = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": meta, **parts}


def volume(world: World, name: str, node: str, **spec: Any) -> None:
    term = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    selector = {"nodeSelectorTerms": [{"matchExpressions": [term]}]}
    body = {
        "capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"],
        "storageClassName": "local", "nodeAffinity": {"required": selector}, **spec,
    }  # fmt: skip
    world.create(PERSISTENT_VOLUMES, obj(PERSISTENT_VOLUMES, name, spec=body))


def claim(world: World, **spec: Any) -> None:
    body = {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
        "resources": {"requests": {"storage": "10Gi"}}, **spec,
    }  # fmt: skip
    world.create(PERSISTENT_VOLUME_CLAIMS, obj(PERSISTENT_VOLUME_CLAIMS, "weights", NS, spec=body))


def make(provisioner: str = "kubernetes.io/no-provisioner") -> World:
    """Eight nodes, a class of local volumes, and a scheduler to which only HOME has the volume."""
    world = World()
    world.nodes(["a", "b", "c", "d"], per_leaf=2)
    world.domain()
    parts = {"provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer"}
    world.create(STORAGE_CLASSES, obj(STORAGE_CLASSES, "local", **parts))

    def unfit(node: str, pod: Object) -> str | None:
        if not pod["spec"].get("volumes") or node in (HOME, "anywhere"):
            return None
        mounts = any("persistentVolumeClaim" in v for v in pod["spec"]["volumes"])
        return "node(s) had volume node affinity conflict" if mounts else None

    world.unfit = unfit
    return world


def with_claim(**more: Any) -> Object:
    made = service(devices=2, **more)
    mounted = {"name": "weights", "persistentVolumeClaim": {"claimName": "weights"}}
    for role in ("prefill", "decode"):
        made["spec"][role]["template"] = {"spec": {"volumes": [mounted]}}
    return made


def with_model(**more: Any) -> Object:
    """The claim is the model's own, and no template mounts any."""
    made = service(devices=2, **more)
    made["spec"]["model"]["source"] = {"path": "/models/x", "pvc": {"name": "weights"}}
    return made


def bound(world: World) -> None:
    volume(world, "weights-0", HOME, claimRef={"namespace": NS, "name": "weights", "uid": "u"})
    volume(world, "other", "a-0")
    claim(world, volumeName="weights-0")


def unbound(world: World) -> None:
    volume(world, "weights-0", HOME)
    volume(world, "taken", "a-0", claimRef={"namespace": NS, "name": "else", "uid": "u"})
    volume(world, "small", "a-1", capacity={"storage": "1Gi"})
    volume(world, "raw", "b-0", volumeMode="Block")
    volume(world, "slow", "b-1", storageClassName="slow")
    volume(world, "kept", "c-0", claimRef={"namespace": NS, "name": "else"})
    volume(world, "read-only", "c-1", accessModes=["ReadOnlyMany"])
    claim(world)


def kept_for_it(world: World) -> None:
    volume(world, "weights-0", HOME, claimRef={"namespace": NS, "name": "weights"})
    claim(world)


@pytest.mark.parametrize("by", [with_claim, with_model])
@pytest.mark.parametrize("volumes", [bound, unbound, kept_for_it])
def test_a_volume_on_one_of_eight_nodes_is_found_at_once(volumes: Any, by: Any) -> None:
    @virtual_time
    async def run() -> None:
        world = make()
        volumes(world)
        world.create(PDSERVICES, by())
        async with world.running(), world.operator():
            await world.until(world.service_ready, 60)
            assert len(world.ever) == 2, "one pod per instance"
            assert {p["spec"]["nodeName"] for p in world.instances()} == {HOME}
            # A substitute and a grown instance know it too.
            world.kill(world.instances()[0]["metadata"]["name"])
            await world.until(lambda: len(world.ever) == 3, 30, "substituted")
            await world.until(world.service_ready, 60)
            assert {p["spec"]["nodeName"] for p in world.instances()} == {HOME}

    run()


@virtual_time
async def test_a_claim_that_is_bound_while_its_first_pod_waits_is_found_in_three_tries() -> None:
    world = make()
    volume(world, "far", "a-0")
    volume(world, "weights-0", HOME)
    claim(world)
    world.create(PDSERVICES, with_claim())
    async with world.running(), world.operator():
        await world.until(lambda: bool(world.refused), 30, "the wrong one is refused")
        patch = {"spec": {"volumeName": "weights-0"}}
        world.patch(PERSISTENT_VOLUME_CLAIMS, NS, "weights", patch)
        await world.until(world.service_ready, 120)
        slots: dict[str, int] = {}
        for name in world.ever:
            slot = name.rpartition("-")[0]
            slots[slot] = slots.get(slot, 0) + 1
        assert max(slots.values()) <= TRIES
        assert {p["spec"]["nodeName"] for p in world.instances()} == {HOME}


@virtual_time
async def test_a_volume_that_no_node_reaches_is_reported_and_looked_for_again() -> None:
    world = make()
    claim(world, volumeName="weights-0")
    volume(world, "weights-0", "gone")
    world.create(PDSERVICES, with_claim())
    async with world.running(), world.operator():
        await world.until(
            lambda: world.condition(SCENARIO_GROUPS, "shop-chat", "Placed").get("reason") == "NoFit"
        )
        said = world.condition(SCENARIO_GROUPS, "shop-chat", "Placed")["message"]
        assert "8 (a volume is elsewhere)" in said
        assert not world.ever
        volume(world, "weights-1", HOME)
        patch = {"spec": {"volumeName": "weights-1"}}
        world.patch(PERSISTENT_VOLUME_CLAIMS, NS, "weights", patch)
        await world.until(world.service_ready, 60)


def free_to_go(world: World) -> None:
    """No class makes these volumes, but this one does: they come into being where the pod is."""
    volume(world, "left-over", "a-0")
    claim(world)


def everywhere(world: World) -> None:
    volume(world, "weights-0", HOME, nodeAffinity=None)
    claim(world, volumeName="weights-0")


def malformed(world: World) -> None:
    volume(world, "weights-0", HOME, nodeAffinity={"required": {"nodeSelectorTerms": [5]}})
    claim(world, volumeName="weights-0")


def nothing(_world: World) -> None:
    """The claim does not exist (yet)."""


@pytest.mark.parametrize("volumes", [free_to_go, everywhere, malformed, nothing])
def test_what_restricts_nothing_or_cannot_be_read_is_left_to_the_scheduler(volumes: Any) -> None:
    @virtual_time
    async def run() -> None:
        world = make("csi.example.com")
        world.unfit = lambda _node, _pod: None
        volumes(world)
        world.create(PDSERVICES, with_claim(ratio=spread(8)))
        async with world.running(), world.operator():
            await world.until(world.service_ready, 60)
            await world.until(lambda: len(world.instances()) == 16, 60, "all of them")
            assert len({p["spec"]["nodeName"] for p in world.instances()}) >= 4

    run()


def spread(instances: int) -> dict[str, Any]:
    """More instances than one node holds."""
    role = {"min": 1, "max": instances}
    fixed = {"groups": 1, "prefill": instances, "decode": instances}
    return {"mode": "Fixed", "prefill": role, "decode": role, "fixed": fixed}


@pytest.mark.parametrize("status", [403, 500])
def test_without_the_rights_or_an_answer_pods_are_made_as_before(status: int) -> None:
    @virtual_time
    async def run() -> None:
        world = make()
        world.unfit = lambda _node, _pod: None
        bound(world)
        handle = world.api.handle

        def guarded(request: KubeRequest) -> Object:
            if request.resource in VOLUME_KINDS and request.verb in ("get", "list"):
                raise KubeError(status, "Forbidden" if status == 403 else "InternalError", "no")
            return handle(request)

        world.api.handle = guarded  # type: ignore[method-assign]
        world.create(PDSERVICES, with_claim())
        async with world.running(), world.operator():
            await world.until(world.service_ready, 60)

    run()


@virtual_time
async def test_volumes_are_read_by_name_seldom_and_only_where_a_template_mounts_one() -> None:
    world = make()
    unbound(world)
    world.create(PDSERVICES, with_claim())
    world.create(PDSERVICES, service("plain", devices=2))
    async with world.running(), world.operator():
        await world.until(world.service_ready, 60)
        patch = {"spec": {"volumeName": "weights-0"}}
        world.patch(PERSISTENT_VOLUME_CLAIMS, NS, "weights", patch)
        await asyncio.sleep(60)
        for n in range(200):  # many reconciliations
            labels = {"metadata": {"labels": {"n": str(n)}}}
            world.patch(SCENARIO_GROUPS, NS, "shop-chat", labels)
            await asyncio.sleep(0.25)
        asked = [r for r in world.recorders[-1].requests if r.resource in VOLUME_KINDS]
        used = {(r.resource.group, r.resource.plural, r.verb) for r in asked}
        granted = {
            (group, plural, verb)
            for rules in (rbac.NAMESPACED, rbac.CLUSTER)
            for (group, plural), verbs in rules.items()
            for verb in verbs
            if plural in {k.plural for k in VOLUME_KINDS}
        }
        assert used == granted
        claims = [r for r in asked if r.resource == PERSISTENT_VOLUME_CLAIMS]
        assert {r.name for r in claims} == {"weights"}
        assert len(claims) <= 20, "at most one in ten seconds"
