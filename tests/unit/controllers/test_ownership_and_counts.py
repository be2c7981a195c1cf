"""Foreign objects, hand edits, mode switches: what is left alone and what is undone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pdserve.controllers import rbac
from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.engines.pod_profile import Rights
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import (
    CONFIGMAPS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    ROLE_BINDINGS,
    ROLES,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Object,
    Resource,
)

FOREIGN: list[tuple[Resource, str, dict[str, Any]]] = [
    (CONFIGMAPS, "shop-routes", {"data": {"mine": "yes"}}),
    (SECRETS, "shop-token", {"data": {"token": "bWluZQ=="}}),
    (SECRETS, "shop-credentials", {"data": {"control": "bWluZQ=="}}),
    (SECRETS, "shop-request", {"data": {"request": "bWluZQ=="}}),
    (DEPLOYMENTS, "shop-gateway", {"spec": {"replicas": 0}}),
    (SERVICES, "shop-gateway", {"spec": {"selector": {"mine": "yes"}}}),
    (SERVICE_ACCOUNTS, "shop-gateway", {}),
    (ROLES, "shop-gateway", {"rules": []}),
    (ROLE_BINDINGS, "shop-gateway", {"roleRef": {"name": "mine"}}),
    (POD_DISRUPTION_BUDGETS, "shop-gateway", {"spec": {"maxUnavailable": 0}}),
    (NETWORK_POLICIES, "shop-gateway", {"spec": {"podSelector": {}}}),
    (NETWORK_POLICIES, "shop-instances", {"spec": {"podSelector": {}}}),
]


def make() -> World:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    return world


def counts(world: World) -> tuple[int, int, int]:
    spec = world.existing(SCENARIO_GROUPS, "shop-chat")["spec"]
    return spec["replicas"], spec["prefill"]["replicas"], spec["decode"]["replicas"]


def decisions(world: World) -> list[dict[str, Any]]:
    group = world.get(SCENARIO_GROUPS, "shop-chat") or {}
    return list(group.get("status", {}).get("decisions", []))


def set_mode(world: World, **ratio: Any) -> None:
    scenarios = world.existing(PDSERVICES, "shop")["spec"]["scenarios"]
    scenarios[0]["ratio"] |= ratio
    world.patch(PDSERVICES, NS, "shop", {"spec": {"scenarios": scenarios}})


@pytest.mark.invariant(9)
@pytest.mark.parametrize(
    ("resource", "name", "content"), FOREIGN, ids=[f"{r.kind} {n}" for r, n, _ in FOREIGN]
)
def test_a_foreign_object_is_refused_and_left_alone(
    resource: Resource, name: str, content: dict[str, Any]
) -> None:
    @virtual_time
    async def run() -> None:
        world = make()
        theirs = world.create(
            resource,
            {
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "metadata": {"name": name, "namespace": NS},
                **content,
            },
        )
        wanted = service()
        wanted["spec"]["networkPolicy"] = {}
        world.create(PDSERVICES, wanted)
        async with world.running(), world.operator() as task:
            await world.until(
                lambda: (
                    world.condition(PDSERVICES, "shop", "Degraded").get("reason") == "ObjectRefused"
                )
            )
            await asyncio.sleep(60)
            assert not task.done()
            message = world.condition(PDSERVICES, "shop", "Degraded")["message"]
            assert f"{resource.kind} {NS}/{name} exists and has no controller" in message
            assert world.events("ObjectRefused")
            assert world.get(resource, name) == theirs
            # It goes away: the next look makes ours.
            world.api.handle(KubeRequest("delete", resource, NS, name))
            world.patch(PDSERVICES, NS, "shop", {"metadata": {"labels": {"wake": "up"}}})
            await world.until(world.service_ready, 60, "after the foreign object was deleted")

    run()


@pytest.mark.invariant(9)
@virtual_time
async def test_a_scenario_group_written_by_hand_is_not_taken_over() -> None:
    world = make()
    world.rights = Rights(authors_checked=True)  # it names the token of another's service
    group: Object = {
        "apiVersion": "pdserve.io/v1alpha1",
        "kind": "ScenarioGroup",
        "metadata": {"name": "shop-chat", "namespace": NS},
        "spec": {
            k: v
            for k, v in service()["spec"].items()
            if k in ("model", "engine", "prefill", "decode", "fabric")
        }
        | {"service": "shop", "scenario": "chat"},
    }
    world.create(SCENARIO_GROUPS, group)
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await world.until(
            lambda: world.condition(PDSERVICES, "shop", "Degraded").get("reason") == "ObjectRefused"
        )
        await asyncio.sleep(30)
        live = world.existing(SCENARIO_GROUPS, "shop-chat")
        assert "ownerReferences" not in live["metadata"]
        assert live["spec"] == group["spec"]
        assert world.condition(SCENARIO_GROUPS, "shop-chat", "Placed")["reason"] == "CountsMissing"
        # Its author sets the counts: it is served like any other.
        body = {
            "replicas": 1,
            "prefill": {**group["spec"]["prefill"], "replicas": 1},
            "decode": {**group["spec"]["decode"], "replicas": 1},
        }
        world.patch(SCENARIO_GROUPS, NS, "shop-chat", {"spec": body})
        await world.until(lambda: len(world.instances()) == 2, 30)


@pytest.mark.invariant(9)
@virtual_time
async def test_pods_that_look_like_ours_are_not_touched() -> None:
    world = make()
    labels = {
        "pdserve.io/service": "shop", "pdserve.io/scenario": "chat", "pdserve.io/role": "decode",
        "pdserve.io/group-index": "0", "app.kubernetes.io/managed-by": "pdserve",
    }  # fmt: skip
    theirs = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "shop-chat-0-d9-abcdef", "namespace": NS, "labels": labels},
        "spec": {"nodeName": "a-0", "containers": [{"name": "x", "image": "x"}]},
    }
    world.create(PODS, theirs)
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        await asyncio.sleep(60)
        kept = world.get(PODS, "shop-chat-0-d9-abcdef")
        assert kept is not None
        assert "deletionTimestamp" not in kept["metadata"]
        assert "shop-chat-0-d9-abcdef" not in world.routed()
        assert kept["metadata"]["labels"] == labels


@virtual_time
async def test_a_hand_edit_is_undone_and_answered() -> None:
    world = make()
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        world.patch(SCENARIO_GROUPS, NS, "shop-chat", {"spec": {"replicas": 3}})
        await world.until(lambda: counts(world) == (1, 1, 1), 10)
        await asyncio.sleep(1)
        assert len(world.events("CountsPutBack")) == 1
        assert "Fixed or External" in world.events("CountsPutBack")[0]
        assert [d["reason"] for d in decisions(world) if d["outcome"] == "Applied"] == [
            "InitialCounts"
        ]


@virtual_time
async def test_counts_survive_every_switch_of_mode() -> None:
    world = make()
    world.create(PDSERVICES, service(devices=2))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        # Auto -> Fixed
        set_mode(world, mode="Fixed", fixed={"groups": 2, "prefill": 1, "decode": 2})
        await world.until(lambda: counts(world) == (2, 1, 2), 10, "fixed")
        # Fixed -> External: nothing vanishes
        set_mode(world, mode="External")
        await asyncio.sleep(30)
        assert counts(world) == (2, 1, 2)
        # An autoscaler sets the groups; the operator leaves them and takes note.
        world.patch(SCENARIO_GROUPS, NS, "shop-chat", {"spec": {"replicas": 3}})
        await asyncio.sleep(30)
        assert counts(world) == (3, 1, 2)
        assert world.events("CountsPutBack") == []
        assert decisions(world)[-1]["to"] == {"groups": 3, "prefill": 1, "decode": 2}
        # External -> Auto: goes on from what it finds
        set_mode(world, mode="Auto")
        await asyncio.sleep(30)
        assert counts(world) == (3, 1, 2)
        # and owns them again
        world.patch(SCENARIO_GROUPS, NS, "shop-chat", {"spec": {"replicas": 1}})
        await world.until(lambda: counts(world) == (3, 1, 2), 10, "put back")
        # Narrower bounds
        scenarios = world.existing(PDSERVICES, "shop")["spec"]["scenarios"]
        scenarios[0]["groups"] = {"min": 1, "max": 2}
        world.patch(PDSERVICES, NS, "shop", {"spec": {"scenarios": scenarios}})
        await world.until(lambda: counts(world) == (2, 1, 2), 10, "within the bounds")
        applied = [d for d in decisions(world) if d["outcome"] == "Applied"]
        assert applied[-1]["reason"] == "BoundsChanged"


@virtual_time
async def test_external_from_the_start_gets_first_counts_once() -> None:
    world = make()
    world.create(PDSERVICES, service(ratio={"mode": "External"}))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        assert counts(world) == (1, 1, 1)
        world.patch(SCENARIO_GROUPS, NS, "shop-chat", {"spec": {"replicas": 2}})
        await world.until(lambda: len(world.routed()) == 4, 60)
        assert counts(world) == (2, 1, 1)


@virtual_time
async def test_the_scale_selector_counts_groups_not_pods() -> None:
    world = make()
    world.create(
        PDSERVICES,
        service(
            devices=2,
            ratio={"mode": "Fixed", "fixed": {"groups": 2, "prefill": 2, "decode": 1}},
        ),
    )
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        status = world.existing(SCENARIO_GROUPS, "shop-chat")["status"]
        assert status["replicas"] == status["readyReplicas"] == 2
        wanted = dict(term.split("=") for term in status["selector"].split(","))
        matching = [
            p for p in world.instances() if wanted.items() <= p["metadata"]["labels"].items()
        ]
        assert len(matching) == 2


NOT_SEEN = {
    # The shared token of an older operator, seen in test_rotation.
    ("", "secrets", "delete"),
    # While a Node is silent, seen in test_clock.
    ("", "nodes", "get"),
    # Where a template mounts a claim, seen in test_volumes.
    ("", "persistentvolumeclaims", "get"), ("", "persistentvolumes", "get"),
    ("", "persistentvolumes", "list"), ("storage.k8s.io", "storageclasses", "get"),
    # Only when a POST meets an object that the cache does not show yet.
    ("pdserve.io", "scenariogroups", "get"),
    ("", "pods", "get"), ("", "configmaps", "get"), ("", "serviceaccounts", "get"),
    ("", "services", "get"), ("apps", "deployments", "get"),
    ("rbac.authorization.k8s.io", "roles", "get"),
    ("rbac.authorization.k8s.io", "rolebindings", "get"), ("policy", "poddisruptionbudgets", "get"),
    ("networking.k8s.io", "networkpolicies", "get"),
    # Only when their content changes with the operator's version.
    ("", "serviceaccounts", "patch"), ("rbac.authorization.k8s.io", "roles", "patch"),
    ("rbac.authorization.k8s.io", "rolebindings", "patch"),
}  # fmt: skip


@virtual_time
async def test_rights_used_and_granted_agree() -> None:
    world = make()
    fixed = {"mode": "Fixed", "fixed": {"groups": 1, "prefill": 2, "decode": 1}}
    world.create(PDSERVICES, service(scenarios=("search", "chat"), devices=2, ratio=fixed))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        world.kill(world.instances()[0]["metadata"]["name"])
        await asyncio.sleep(60)
        for n in range(3):  # an Event whose count rises
            world.patch(SCENARIO_GROUPS, NS, "shop-chat", {"spec": {"replicas": 2 + n % 2}})
            await asyncio.sleep(5)
        spec = world.existing(PDSERVICES, "shop")["spec"]
        spec["gateway"] = {"replicas": 2, "port": 8080}
        spec["scenarios"] = spec["scenarios"][1:]
        spec["scenarios"][0]["ratio"]["fixed"]["prefill"] = 1
        spec["scenarios"][0]["ratio"]["fixed"]["groups"] = 2
        world.patch(PDSERVICES, NS, "shop", {"spec": spec})
        await asyncio.sleep(60)
        spec["scenarios"][0]["ratio"]["fixed"]["groups"] = 1
        spec["networkPolicy"] = {"clients": [{"podLabels": {"app": "web"}}]}
        annotations = {"annotations": {"pdserve.io/rotate": "1"}}
        world.patch(PDSERVICES, NS, "shop", {"spec": spec, "metadata": annotations})
        await world.until(lambda: len(world.instances()) == 2, 200, "one group left")
        spec["engine"]["image"] = "pdserve/engine:next"
        world.patch(PDSERVICES, NS, "shop", {"spec": spec})
        await world.until(lambda: len(world.seen(CONTROLLER_REVISIONS)) == 2, 60, "both in use")
        spec["engine"]["image"] = "pdserve/engine:test"  # wanted again: deleted and made anew
        world.patch(PDSERVICES, NS, "shop", {"spec": spec})
        again = (CONTROLLER_REVISIONS, "delete")
        await world.until(
            lambda: again in {(r.resource, r.verb) for r in world.recorders[-1].requests}, 60
        )
        await world.until(lambda: len(world.seen(CONTROLLER_REVISIONS)) == 2, 60, "made anew")
        policies: tuple[Object | None, ...] = ({"clients": []}, None)
        for policy in policies:
            world.patch(PDSERVICES, NS, "shop", {"spec": {"networkPolicy": policy}})
            await asyncio.sleep(5)
    used = set()
    for request in world.recorders[-1].requests:
        plural = request.resource.plural
        name = f"{plural}/{request.subresource}" if request.subresource else plural
        used.add((request.resource.group, name, request.verb))
    granted = {
        (group, name, verb)
        for rules in (rbac.NAMESPACED, rbac.CLUSTER)
        for (group, name), verbs in rules.items()
        for verb in verbs
    }
    assert used - granted == set()
    assert granted - used - NOT_SEEN == set()


@virtual_time
async def test_a_field_taken_out_of_the_service_leaves_the_group() -> None:
    world = make()
    wanted = service()
    wanted["spec"]["decode"]["template"] = {"spec": {"hostname": "here"}}
    world.create(PDSERVICES, wanted)

    def template() -> Any:
        group = world.get(SCENARIO_GROUPS, "shop-chat") or {"spec": {"decode": {}}}
        return group["spec"]["decode"].get("template")

    async with world.running(), world.operator():
        await world.until(world.service_ready)
        assert template() == {"spec": {"hostname": "here"}}
        world.patch(PDSERVICES, NS, "shop", {"spec": {"decode": {"template": None}}})
        await world.until(lambda: template() is None)
