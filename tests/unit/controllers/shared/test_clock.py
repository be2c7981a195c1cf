"""Clocks that step, an API server that stands still: neither is a fault of what runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.controllers.shared.clock import Clock, NodeSilence
from pdserve.dst.api_net import Faults
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import service
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import UNREACHABLE, KubeError
from pdserve.kube.resource import NODES, Object
from pdserve.topology import NodeView

RECOVERY = {"drainSeconds": 60, "nodeSuspectSeconds": 10}


class Time:
    """A wall clock and a monotonic one."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_700_000_000.0, 50.0

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_what_is_seen_to_begin_now_begins_now_whatever_its_stamp(step: float) -> None:
    time = Time()
    clock = Clock(lambda: time.wall, lambda: time.steady)
    clock.met("group")
    time.wall += step
    stamp = time.wall
    began = clock.since("group", "pod", "running", stamp)
    assert clock.now() - began == 0
    time.passes(12)
    assert clock.now() - clock.since("group", "pod", "running", stamp) == pytest.approx(12)


def test_after_a_start_stamps_count_within_the_life_of_the_process() -> None:
    """The clock may have been set before: a stamp of an hour ago may be five seconds old."""
    time = Time()
    clock = Clock(lambda: time.wall, lambda: time.steady)
    start = time.wall
    time.passes(50)
    assert clock.now() - clock.since("group", "a", "drain", start + 10) == pytest.approx(40)
    assert clock.now() - clock.since("group", "b", "drain", start - 3600) == pytest.approx(50)
    assert clock.now() - clock.since("group", "c", "drain", start + 3600) == 0


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_what_an_operator_stamped_never_lies_ahead(ahead: float) -> None:
    """It is as old as it was when first seen, plus the time that has passed since."""
    time = Time()
    clock = Clock(lambda: time.wall, lambda: time.steady)
    stamp = time.wall + ahead
    for passed in (0, 50, 3600, 3600):
        time.passes(passed)
        assert clock.now() - clock.written("group", stamp) == pytest.approx(
            max(0.0, -ahead) + time.steady - 50
        )
    clock.forget("DELETED", {"metadata": {"uid": "group"}}, None)
    assert clock.written("group", clock.now() + 1) == clock.now()


def node(ready: bool) -> NodeView:
    return NodeView("n1", ready=ready)


class Api(KubeClient):
    """Answers, fails, or keeps silent."""

    def __init__(self) -> None:
        self.mode = "answers"
        self.asked = 0

    async def get(self, *_: object, **__: object) -> Object:
        self.asked += 1
        if self.mode == "stalls":
            await asyncio.sleep(3600)
        if self.mode == "refuses":
            raise KubeError(0, UNREACHABLE, "connection refused")
        if self.mode == "forbids":
            raise KubeError(403, "Forbidden", "nodes is forbidden")
        return {"metadata": {"name": "n1"}}


@virtual_time
async def test_a_server_that_forbids_answers() -> None:
    """Else no node would ever be lost where the right to read one is missing."""
    api, silence = Api(), NodeSilence(asyncio.get_running_loop().time)
    api.mode = "forbids"
    task = asyncio.create_task(silence.listen(api))
    await asyncio.sleep(10)
    silence.changed("MODIFIED", node(True), node(False))
    await asyncio.sleep(60)
    assert silence.of("n1") == pytest.approx(60, abs=1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("mode", ["stalls", "refuses"])
@virtual_time
async def test_time_without_answers_is_no_silence_of_a_node(mode: str) -> None:
    api, silence = Api(), NodeSilence(asyncio.get_running_loop().time)
    task = asyncio.create_task(silence.listen(api))
    await asyncio.sleep(60)
    assert api.asked == 0, "no node is silent: nothing is asked"
    silence.changed("MODIFIED", node(True), node(False))
    await asyncio.sleep(20)
    assert silence.of("n1") == pytest.approx(20, abs=1)
    api.mode = mode
    await asyncio.sleep(120)
    assert (silence.of("n1") or 0) <= 26
    api.mode = "answers"
    await asyncio.sleep(15)
    assert (silence.of("n1") or 0) <= 26, "kubelets get a moment to be heard again"
    await asyncio.sleep(40)
    assert 40 <= (silence.of("n1") or 0) <= 66
    silence.changed("MODIFIED", node(False), node(True))
    assert silence.of("n1") is None
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def heard_again(world: World, node: str) -> None:
    body = {"type": "Ready", "status": "True", "lastTransitionTime": world.ready_since[node]}
    world.broken_nodes.discard(node)
    world.patch(NODES, "", node, {"status": {"conditions": [body]}}, subresource="status")


@pytest.mark.invariant(13)
@pytest.mark.parametrize("seconds", [40, 120])
@virtual_time
async def test_an_api_server_that_stands_still_costs_no_instance(seconds: int) -> None:
    """While it stands still no kubelet renews anything: every Node is found NotReady with a stamp
    from the time of the outage, and is heard again some seconds after its end."""
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    fixed = {"mode": "Fixed", "fixed": {"groups": 2, "prefill": 2, "decode": 2}}
    world.create(PDSERVICES, service(ratio=fixed, recovery=RECOVERY))
    faults = Faults()
    async with world.running(), world.operator(faults):
        await world.until(world.service_ready)
        before = {p["metadata"]["uid"] for p in world.instances()}
        faults.down = True
        world.api.wake_watches()
        await asyncio.sleep(5)
        for name in world.ready_since:
            world.lose_node(name)
        await asyncio.sleep(seconds)
        faults.down = False
        world.api.wake_watches()
        await asyncio.sleep(9)
        for name in world.ready_since:
            heard_again(world, name)
        await asyncio.sleep(120)
        assert {p["metadata"]["uid"] for p in world.instances()} == before
        group = world.get(SCENARIO_GROUPS, "shop-chat") or {}
        assert group["status"].get("repairs", []) == []
        assert world.service_ready()


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
@virtual_time
async def test_no_wait_is_longer_because_the_clock_stepped(step: float) -> None:
    """A back-off of seconds stays one of seconds, over a step and a restart of the operator."""
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service(recovery=RECOVERY))
    async with world.running():
        async with world.operator():
            await world.until(world.service_ready)
            for _ in range(2):
                world.kill(min(world.routed()))
                await asyncio.sleep(2)
                world.step_clock(step)
                await world.until(lambda: len(world.routed()) == 2, 60, "replaced")
            world.kill(min(world.routed()))
            await asyncio.sleep(2)
            world.step_clock(step)
        async with world.operator():
            await world.until(lambda: len(world.routed()) == 2, 60, "replaced after its back-off")
            await asyncio.sleep(120)
            assert len(world.instances()) == 2
