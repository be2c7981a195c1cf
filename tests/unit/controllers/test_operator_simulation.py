"""The operator as a whole in a simulated cluster: the life of one service."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from tests.support.simulated_operator import fix_counts, make, names_of, uids_of

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NPU, NS, service
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import CONFIGMAPS, NODES, PODS, SECRETS
from pdserve.wire import names
from pdserve.wire.pin import pinned_node


@virtual_time
async def test_from_apply_to_ready() -> None:
    world = make()
    world.create(PDSERVICES, service(scenarios=("chat", "search"), prefill=(2, 4)))
    async with world.running(), world.operator() as task:
        seconds = await world.until(world.service_ready, 60, "PDService Ready")
        assert not task.done()
    assert seconds < 30
    pods = world.instances()
    assert len(pods) == 6
    assert all(p["spec"]["nodeName"] == pinned_node(p) for p in pods)
    assert world.routed() == names_of(world)
    status = world.existing(PDSERVICES, "shop")["status"]
    assert status["url"] == "http://shop-gateway.default.svc"
    assert status["summary"]["prefill"] == "4/4"
    assert status["devices"] == [{"resource": NPU, "used": 24}]


@virtual_time
async def test_an_unchanged_service_costs_no_write_and_a_question_a_minute_to_a_decode() -> None:
    world = make()
    world.create(PDSERVICES, service(scenarios=("chat", "search")))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        await asyncio.sleep(90)  # virtual: the held decision is recorded, reports settle
        recorder = world.recorders[-1]
        before = len(recorder.writes())
        calls = Counter(world.engines.calls)
        await asyncio.sleep(1800)  # more than two resyncs
        assert recorder.writes()[before:] == []
        decodes = sum("-d" in p["metadata"]["name"] for p in world.instances())
        assert decodes == 2
        assert world.engines.calls - calls == {"links": 30 * decodes}, "is KV corrupt there?"


@pytest.mark.invariant(2)
@virtual_time
async def test_a_restart_of_the_operator_touches_no_running_instance() -> None:
    world = make()
    world.create(PDSERVICES, service())
    async with world.running():
        async with world.operator():
            await world.until(world.service_ready)
            await asyncio.sleep(60)
        before = {p["metadata"]["uid"]: p["metadata"]["resourceVersion"] for p in world.instances()}
        async with world.operator():
            await asyncio.sleep(60)
            assert world.recorders[-1].writes() == []
        after = {p["metadata"]["uid"]: p["metadata"]["resourceVersion"] for p in world.instances()}
    assert after == before


@pytest.mark.invariant(4)
@virtual_time
async def test_one_fault_replaces_one_instance() -> None:
    world = make()
    fixed = {"mode": "Fixed", "fixed": {"groups": 1, "prefill": 2, "decode": 2}}
    world.create(PDSERVICES, service(ratio=fixed))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        before = uids_of(world)
        victim = next(n for n in sorted(names_of(world)) if "-d" in n)
        lost = world.existing(PODS, victim)["metadata"]["uid"]
        world.kill(victim)
        await world.until(lambda: victim not in world.routed(), 5, "out of the routes")
        await world.until(
            lambda: len(world.routed()) == 4 and world.service_ready(), 30, "repaired"
        )
        after = uids_of(world)
        assert before - after == {lost}
        assert len(after - before) == 1
        replacement = world.get(PODS, next(iter(names_of(world) - {victim} & world.ever)))
        assert replacement is not None
        await asyncio.sleep(300)
        assert uids_of(world) == after
        assert len(world.ever) == 5
        assert len(world.events("InstanceSubstituted")) == 1


@virtual_time
async def test_growing_adds_and_shrinking_drains_only_the_difference() -> None:
    world = make()
    fixed = {"mode": "Fixed", "fixed": {"groups": 1, "prefill": 1, "decode": 1}}
    world.create(PDSERVICES, service(ratio=fixed))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        first = uids_of(world)
        fix_counts(world, 1, 3, 1)
        await world.until(lambda: len(world.routed()) == 4, 60, "grown")
        assert first <= uids_of(world)
        assert world.engines.drained == []
        grown = uids_of(world)
        fix_counts(world, 1, 2, 1)
        await world.until(lambda: len(world.instances()) == 3, 120, "shrunk")
        assert uids_of(world) < grown
        assert len(set(world.engines.drained)) == 1
        assert world.routed() == names_of(world)
        fix_counts(world, 2, 2, 1)
        await world.until(lambda: len(world.routed()) == 6, 60, "a second group")
        assert {g["index"] for g in world.routes()["scenarios"][0]["groups"]} == {0, 1}
        fix_counts(world, 1, 2, 1)
        await world.until(lambda: len(world.instances()) == 3, 120, "one group again")

        def tables() -> list[object]:
            found = world.api.objects(CONFIGMAPS)
            return [c for c in found if names.KEY_PEERS in (c.get("data") or {})]

        await world.until(lambda: len(tables()) == 1, 5, "its table is gone too")


@pytest.mark.invariant(1)
@virtual_time
async def test_an_instance_leaves_the_routes_before_it_gets_the_drain_order() -> None:
    world = make()
    fixed = {"mode": "Fixed", "fixed": {"groups": 2, "prefill": 2, "decode": 2}}
    world.create(PDSERVICES, service(ratio=fixed, devices=2))
    seen: list[tuple[str, bool]] = []
    tell = world.engines.post_drain

    async def post_drain(target):  # type: ignore[no-untyped-def]
        seen.append((target.instance, target.instance in world.routed()))
        return await tell(target)

    world.engines.post_drain = post_drain  # type: ignore[method-assign]
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        fix_counts(world, 1, 1, 1)
        await world.until(lambda: len(world.instances()) == 2, 180, "shrunk")
    assert {pod for pod, _ in seen}
    assert not any(routed for _, routed in seen)


@pytest.mark.invariant(1)
@virtual_time
async def test_a_container_that_restarts_in_place_is_unrouted_until_it_is_linked_again() -> None:
    world = make()
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        pod = next(
            p for p in world.instances() if p["metadata"]["labels"][names.LABEL_ROLE] == "decode"
        )
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        world.machinery.restart(name, NS)
        # Kubernetes leaves the gate True: only the container id tells.
        await world.until(lambda: name not in world.routed(), 5, "unrouted")
        await world.until(lambda: name in world.routed(), 30, "linked again")
        assert world.existing(PODS, name)["metadata"]["uid"] == uid
        assert len(world.ever) == 2


@virtual_time
async def test_a_removed_scenario_is_unrouted_and_deleted() -> None:
    world = make()
    world.create(PDSERVICES, service(scenarios=("search", "chat")))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        left = [
            s
            for s in world.existing(PDSERVICES, "shop")["spec"]["scenarios"]
            if s["name"] == "chat"
        ]
        world.patch(PDSERVICES, NS, "shop", {"spec": {"scenarios": left}})
        await world.until(lambda: len(world.instances()) == 2, 60, "pods of search gone")
        assert world.get(SCENARIO_GROUPS, "shop-search") is None
        assert [s["name"] for s in world.routes()["scenarios"]] == ["chat"]


@virtual_time
async def test_deleting_the_service_leaves_nothing() -> None:
    world = make()
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        world.api.handle(KubeRequest("delete", PDSERVICES, NS, "shop"))
        await world.until(lambda: not world.api.objects(PODS), 120, "pods gone")
        await asyncio.sleep(30)
        assert world.api.objects(CONFIGMAPS) == []
        assert world.api.objects(SCENARIO_GROUPS) == []


@virtual_time
async def test_a_template_that_touches_a_protected_field_changes_nothing_that_serves() -> None:
    world = make()
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        before = uids_of(world)
        prefill = world.existing(PDSERVICES, "shop")["spec"]["prefill"]
        prefill["template"] = {"spec": {"nodeName": "elsewhere"}}
        world.patch(PDSERVICES, NS, "shop", {"spec": {"prefill": prefill}})
        await world.until(
            lambda: world.condition(PDSERVICES, "shop", "TemplateValid").get("status") == "False"
        )
        message = world.condition(PDSERVICES, "shop", "TemplateValid")["message"]
        assert message.startswith("prefill: template.spec.nodeName")
        await asyncio.sleep(60)
        assert uids_of(world) == before
        group = world.existing(SCENARIO_GROUPS, "shop-chat")
        assert "template" not in group["spec"]["prefill"]


@virtual_time
async def test_a_lost_node_is_replaced_after_its_patience_only() -> None:
    world = make()
    world.create(PDSERVICES, service(recovery={"drainSeconds": 60, "nodeSuspectSeconds": 30}))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        node = world.instances()[0]["spec"]["nodeName"]
        on_node = {
            p["metadata"]["name"] for p in world.instances() if p["spec"]["nodeName"] == node
        }
        world.lose_node(node)
        await asyncio.sleep(25)
        assert names_of(world) == world.ever, "nothing may move before nodeSuspectSeconds"
        await world.until(
            lambda: world.service_ready() and not (world.routed() & on_node), 90, "substituted"
        )
        fresh = [p for p in world.instances() if p["metadata"]["name"] in world.routed()]
        assert all(p["spec"]["nodeName"] != node for p in fresh)


@virtual_time
async def test_peer_tables_and_routes_only_rise() -> None:
    world = make()
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        world.kill(sorted(names_of(world))[0])
        await asyncio.sleep(60)
        await world.until(world.service_ready)
    for key in (names.KEY_PEERS, names.KEY_ROUTES):
        versions = _versions(world, key)
        assert versions == sorted(set(versions)), key
        assert len(versions) > 1


def _versions(world: World, key: str) -> list[int]:
    found: list[int] = []
    for change in world.api.store(CONFIGMAPS).history:
        text = (change.object.get("data") or {}).get(key)
        if text and change.type != "DELETED":
            version = json.loads(text)["version"]
            if not found or found[-1] != version:
                found.append(version)
    return found


@virtual_time
async def test_heartbeats_of_nodes_wake_no_handler() -> None:
    world = make()
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        await asyncio.sleep(60)
        recorder = world.recorders[-1]
        before = len(recorder.requests)
        for n in range(50):
            ready = {
                "type": "Ready",
                "status": "True",
                "lastHeartbeatTime": f"2026-01-01T00:00:{n:02d}Z",
                "lastTransitionTime": world.ready_since["a-0"],
            }
            body = {"status": {"conditions": [ready]}}
            world.patch(NODES, "", "a-0", body, subresource="status")
            await asyncio.sleep(0.1)
        assert len(recorder.requests) == before


@virtual_time
async def test_tables_that_a_user_deletes_or_breaks_come_back_higher() -> None:
    world = make()
    fixed = {"mode": "Fixed", "fixed": {"groups": 1, "prefill": 1, "decode": 1}}
    world.create(PDSERVICES, service(ratio=fixed))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        fix_counts(world, 1, 2, 1)
        await world.until(lambda: len(world.routed()) == 3, 60)
        before = world.routes()["version"]
        held = max(e.table.version for e in world.engines.by_ip.values() if e.table)
        world.patch(CONFIGMAPS, NS, "shop-routes", {"data": {names.KEY_ROUTES: "{broken"}})
        await world.until(lambda: "{broken" not in str(world.get(CONFIGMAPS, "shop-routes")), 10)
        assert world.routes()["version"] > before
        world.api.handle(KubeRequest("delete", CONFIGMAPS, NS, "shop-chat-0-peers"))
        await world.until(lambda: world.get(CONFIGMAPS, "shop-chat-0-peers") is not None, 10)
        fix_counts(world, 1, 2, 2)
        await world.until(lambda: len(world.routed()) == 4, 60, "linked despite the loss")
        assert max(e.table.version for e in world.engines.by_ip.values() if e.table) > held


@virtual_time
async def test_a_group_written_by_hand_becomes_ready_without_a_service() -> None:
    world = make()
    spec = service()["spec"]
    role = {
        "prefill": spec["prefill"] | {"replicas": 1},
        "decode": spec["decode"] | {"replicas": 1},
    }
    world.create(
        SCENARIO_GROUPS,
        {
            "apiVersion": "pdserve.io/v1alpha1",
            "kind": "ScenarioGroup",
            "metadata": {"name": "mine", "namespace": NS},
            "spec": {k: spec[k] for k in ("model", "engine", "fabric")}
            | role
            | {"service": "shop", "scenario": "chat", "replicas": 1},
        },
    )
    async with world.running(), world.operator():
        await world.until(lambda: world.get(SECRETS, "shop-credentials") is not None)
        await world.until(
            lambda: world.condition(SCENARIO_GROUPS, "mine", "Ready").get("status") == "True"
        )
