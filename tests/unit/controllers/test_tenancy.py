"""What one namespace's objects may do to another's: nothing (architecture invariant 15)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.controllers.shared.promises import FAILED_SECONDS
from pdserve.dst.api_fields import copy
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.errors import KubeError
from pdserve.kube.ownership import owner_reference
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import CONFIGMAPS, NAMESPACES, PODS, Object
from pdserve.wire import names

FOREIGN = "mallory"
"""The namespace of a user who forges owner references."""


def make() -> World:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(
        NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": FOREIGN}}
    )
    world.create(PDSERVICES, service())
    return world


def forged(original: Object, name: str, owner: Object, **changes: Any) -> Object:
    """`original` as `FOREIGN` would make it: same labels and content, owned by the victim's."""
    meta = {
        "name": name,
        "namespace": FOREIGN,
        "labels": dict(original["metadata"].get("labels", {})),
        "annotations": dict(original["metadata"].get("annotations", {})),
        "ownerReferences": [owner_reference(owner)],
    }
    kept = {k: copy(v) for k, v in original.items() if k not in ("metadata", "status")}
    return {**kept, "metadata": meta, **changes}


def pods(world: World, namespace: str) -> list[Object]:
    return [p for p in world.instances() if p["metadata"]["namespace"] == namespace]


def told(world: World) -> Object:
    """What the PDService's status counts."""
    status = world.existing(PDSERVICES, "shop")["status"]
    listed = [{k: v for k, v in s.items() if k != "lastDecision"} for s in status["scenarios"]]
    return {**{k: v for k, v in status.items() if k != "conditions"}, "scenarios": listed}


def forge_everything(world: World) -> None:
    """In `FOREIGN`: a group for the same scenario, one for an unknown one, pods, peer tables."""
    shop = world.existing(PDSERVICES, "shop")
    group = world.existing(SCENARIO_GROUPS, "shop-chat")
    for name, scenario in (("zz-chat", "chat"), ("zz-old", "old")):
        fake = forged(group, name, shop)
        fake["spec"]["scenario"] = scenario
        world.create(SCENARIO_GROUPS, fake)
    for pod in list(world.instances()):
        fake = forged(pod, pod["metadata"]["name"], group)
        fake["metadata"]["name"] = pod["metadata"]["name"][:-6] + "forged"
        world.create(PODS, fake)
    table = world.existing(CONFIGMAPS, names.peers_configmap_name("shop-chat", 0))
    text = table["data"][names.KEY_PEERS]
    content = json.loads(text)
    content["version"] = 10_000
    for peer in content["instances"]:
        peer["endpoint"] = "http://203.0.113.7:1"
    fake = forged(table, "shop-chat-0-peers", group)
    fake["data"] = {names.KEY_PEERS: json.dumps(content)}
    world.create(CONFIGMAPS, fake)


@pytest.mark.invariant(15)
@virtual_time
async def test_forged_owners_of_another_namespace_change_nothing() -> None:
    world = make()
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        before = world.routed()
        honest = {p["metadata"]["name"] for p in world.instances()}
        seen = told(world)
        peers = world.get(CONFIGMAPS, names.peers_configmap_name("shop-chat", 0))
        forge_everything(world)
        # The owner is looked at again by whatever wakes it.
        world.patch(PDSERVICES, NS, "shop", {"metadata": {"labels": {"wake": "up"}}})
        world.patch(SCENARIO_GROUPS, NS, "shop-chat", {"metadata": {"labels": {"wake": "up"}}})
        await asyncio.sleep(120)
        # Route table, peer table, status:
        assert world.routed() == before
        assert world.get(CONFIGMAPS, names.peers_configmap_name("shop-chat", 0)) == peers
        assert told(world) == seen
        # Counts:
        spec = world.existing(SCENARIO_GROUPS, "shop-chat")["spec"]
        assert (spec["replicas"], spec["prefill"]["replicas"], spec["decode"]["replicas"]) == (
            1, 1, 1,
        )  # fmt: skip
        # Nothing of the victim is deleted, and nothing of the other namespace:
        assert {p["metadata"]["name"] for p in pods(world, NS)} == honest
        for name in ("zz-chat", "zz-old"):
            kept = world.get(SCENARIO_GROUPS, name, FOREIGN)
            assert kept is not None
            assert "deletionTimestamp" not in kept["metadata"]
        # A repair counts honest pods only.
        victim = sorted(honest)[0]
        world.delete_pod(victim)
        await world.until(
            lambda: world.routed() != before and len(world.routed()) == 2, 60, "repaired"
        )
        assert not any("forged" in name for name in world.routed())
        assert not any(
            "forged" in (r.name or "") for r in world.recorders[0].writes() if r.resource == PODS
        )


@pytest.mark.invariant(15)
@virtual_time
async def test_instances_of_a_forged_owner_are_not_attended() -> None:
    """The linker carries the service's credential to its targets."""
    world = make()
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        group = world.existing(SCENARIO_GROUPS, "shop-chat")
        pod = next(p for p in world.instances() if p["metadata"]["namespace"] == NS)
        fake = forged(pod, "shop-chat-0-d7-abcdef", group)
        fake["metadata"]["labels"][names.LABEL_ROLE] = "decode"
        world.create(PODS, fake)
        world.api.handle(
            KubeRequest(
                "patch", PODS, FOREIGN, "shop-chat-0-d7-abcdef", "status",
                body={"status": copy(pod["status"]) | {"podIP": "203.0.113.9"}}, patch="merge",
            )
        )  # fmt: skip
        world.engines.asked.clear()
        world.delete_pod(pod["metadata"]["name"])
        await world.until(lambda: len(world.routed()) == 2, 60)
        await asyncio.sleep(60)
        assert world.engines.asked
        assert not any("203.0.113" in endpoint for endpoint in world.engines.asked)


# --- slow answers in one namespace ----------------------------------------------------------------


def slow_pods(request: KubeRequest) -> float:
    """POSTs of pods in `FOREIGN` take 10 s, as behind a slow admission webhook."""
    slow = request.verb == "create" and request.resource == PODS and request.namespace == FOREIGN
    return 10.0 if slow else 0.0


def posts_held(world: World) -> int:
    """Slow POSTs that were sent, those of the template's check not counted."""
    return sum(slow_pods(request) > 0 for r in world.recorders for request in r.writes())


def one_node_for_first() -> World:
    """A world whose only node has room for one service; `first`, of `FOREIGN`, is there."""
    world = World(delay=slow_pods)
    world.nodes(["a"], per_leaf=1)
    world.domain()
    world.create(
        NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": FOREIGN}}
    )
    world.create(PDSERVICES, service("first", namespace=FOREIGN))
    return world


async def ready_and_repaired(slow_services: int) -> tuple[float, float]:
    """Seconds until the service of `NS` is Ready, and until a lost instance of it is replaced."""
    world = World(start_seconds=(10.0, 10.0), delay=slow_pods)
    world.nodes(["a", "b", "c", "d"], per_leaf=4)
    world.domain()
    world.create(
        NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": FOREIGN}}
    )
    for number in range(slow_services):
        slow = service(f"slow-{number}", ("a", "b"), devices=1, namespace=FOREIGN)
        world.create(PDSERVICES, slow)
    async with world.running(), world.operator():
        if slow_services:
            await world.until(lambda: posts_held(world) >= 2, 600)
        world.create(PDSERVICES, service())
        ready = await world.until(world.service_ready, 600)
        victim = pods(world, NS)[0]["metadata"]["name"]
        world.delete_pod(victim)
        repaired = await world.until(
            lambda: victim not in world.routed() and len(world.routed()) == 2, 600, "repaired"
        )
        if slow_services:
            assert len(pods(world, FOREIGN)) < 4 * slow_services, "the slow ones still wait"
        return ready, repaired


@pytest.mark.invariant(10)
@virtual_time
async def test_slow_posts_in_one_namespace_delay_no_other() -> None:
    ready, repaired = await ready_and_repaired(0)
    slow_ready, slow_repaired = await ready_and_repaired(12)
    assert slow_ready <= 1.5 * ready
    assert slow_repaired <= 1.5 * repaired


@pytest.mark.invariant(10)
@virtual_time
async def test_devices_of_pods_that_are_being_created_are_not_given_away() -> None:
    """The last devices are promised to a POST under way: the next one finds no place."""
    world = one_node_for_first()
    async with world.running(), world.operator():
        await world.until(lambda: posts_held(world) == 1)
        assert not world.instances()
        world.create(PDSERVICES, service())
        await world.until(
            lambda: world.condition(SCENARIO_GROUPS, "shop-chat", "Placed").get("status") == "False"
        )
        await world.until(lambda: len(pods(world, FOREIGN)) == 2, 60, "created at last")
        await asyncio.sleep(30)
        assert not pods(world, NS)
        assert not world.refused, "no pod was ever sent to a full node"


@pytest.mark.invariant(10)
@virtual_time
async def test_devices_of_refused_pods_are_free_again() -> None:
    world = one_node_for_first()
    async with world.running(), world.operator():
        await world.until(lambda: posts_held(world) == 1)
        world.create(PDSERVICES, service())
        await asyncio.sleep(1)
        # Before its pods are made, the first service goes: they find no namespace to be in.
        world.api.handle(KubeRequest("delete", PDSERVICES, FOREIGN, "first"))
        world.api.handle(KubeRequest("delete", NAMESPACES, None, FOREIGN))
        await world.until(world.service_ready, 120)


@virtual_time
async def test_devices_of_failed_pods_are_free_when_their_group_is_gone() -> None:
    """A POST that failed keeps them for its next attempt; nothing tries again here."""

    def failing(request: KubeRequest) -> float:
        post = request.verb == "create" and request.resource == PODS
        if post and request.namespace == FOREIGN and "dryRun" not in request.query:
            raise KubeError(500, "InternalError", "failed calling webhook")
        return 0.0

    world = World(delay=failing)
    world.nodes(["a"], per_leaf=1)
    world.domain()
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": FOREIGN}}
    world.create(NAMESPACES, space)
    first = service("first")
    first["metadata"]["namespace"] = FOREIGN
    world.create(PDSERVICES, first)
    async with world.running(), world.operator():
        await asyncio.sleep(10)
        world.create(PDSERVICES, service())
        world.api.handle(KubeRequest("delete", PDSERVICES, FOREIGN, "first"))
        await world.until(world.service_ready, FAILED_SECONDS - 20)


# --- RoCEDomains over the same nodes --------------------------------------------------------------


@virtual_time
async def test_the_younger_of_two_domains_over_the_same_nodes_is_not_ready() -> None:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain("old")
    await asyncio.sleep(5)
    world.domain("new")
    for name, domain in (("first", "old"), ("second", "new")):
        world.create(PDSERVICES, service(name, fabric={"domainRef": {"name": domain}}, devices=2))
    async with world.running(), world.operator():

        def ready(domain: str) -> tuple[str, str]:
            obj = world.get(ROCE_DOMAINS, domain, "") or {}
            found = [c for c in obj.get("status", {}).get("conditions", ()) if c["type"] == "Ready"]
            return (found[0]["status"], found[0]["reason"]) if found else ("", "")

        def told(group: str) -> dict[str, Any]:
            return world.condition(SCENARIO_GROUPS, group, "FabricValid")

        def select(domain: str, leaf: str) -> None:
            chosen = {"nodeSelector": {"matchLabels": {"fabric/leaf": leaf}}}
            world.patch(ROCE_DOMAINS, "", domain, {"spec": chosen})

        await world.until(lambda: ready("new") == ("False", "NodesShared"))
        await world.until(lambda: told("second-chat").get("status") == "False")
        assert ready("old") == ("True", "NodesReady")
        assert "older RoCEDomain 'old'" in told("second-chat")["message"]
        assert told("first-chat") == {}
        await world.until(lambda: world.service_ready("second"), 120, "what runs goes on")
        # Other nodes are chosen: it is Ready, and its groups say so.
        select("new", "b")
        await asyncio.sleep(5)
        assert ready("new") == ("False", "NodesShared"), "two nodes are still in both"
        select("old", "a")
        await world.until(lambda: ready("new") == ("True", "NodesReady"))
        await world.until(lambda: told("second-chat").get("status") == "True")


@virtual_time
async def test_when_the_older_domain_goes_the_younger_is_ready() -> None:
    world = World()
    world.nodes(["a"], per_leaf=2)
    world.domain("old")
    await asyncio.sleep(5)
    world.domain("new")
    async with world.running(), world.operator():

        def reason() -> str:
            obj = world.get(ROCE_DOMAINS, "new", "") or {}
            conditions = obj.get("status", {}).get("conditions", ())
            return next((c["reason"] for c in conditions if c["type"] == "Ready"), "")

        await world.until(lambda: reason() == "NodesShared")
        world.api.handle(KubeRequest("delete", ROCE_DOMAINS, None, "old"))
        await world.until(lambda: reason() == "NodesReady")
