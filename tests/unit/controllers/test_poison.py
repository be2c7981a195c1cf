"""Rule: no value in one object, answer or metric stops the operator or delays a neighbour.

A transport between the API model and the real operator changes what is of others: any value at any
place of their objects may be wrong, huge, deep, non-finite or missing. (The API server would refuse
many of these; the rule does not lean on it.)"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import pytest
from tests.support.hostile import VALUES, deep, places, put, without
from tests.support.ratio_values import sample
from tests.support.world_state import routes_count, unrouted

from pdserve.controllers.core import Core
from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.controllers.shared.instance_calls import EngineApi, Target
from pdserve.controllers.shared.tokens import Tokens
from pdserve.dst.api_net import FakeTransport, Faults
from pdserve.dst.moments import now
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NPU, service
from pdserve.exposition import Registry
from pdserve.kube.client import KubeClient
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import CONFIGMAPS, NAMESPACES, NODES, PODS, Object
from pdserve.ratio.types import LoopSettings, ScenarioSample, Unknown
from pdserve.telemetry.source import LiveInstances, ScenarioKey
from pdserve.wire import names
from pdserve.wire.links import DrainReport, LinkReport
from pdserve.wire.peers import PeerTable

BAD = "bad"
# No parser lets a lone surrogate in, and it could not be written anywhere.
HOSTILE_VALUES = (*(v for v in VALUES if v != "\ud800"), deep())
IDENTITY = {("metadata", k) for k in ("name", "namespace", "uid", "resourceVersion")}
RNG_ERRORS = (ValueError, TypeError, KeyError, RecursionError, OverflowError, AttributeError)


def is_bad(obj: Any) -> bool:
    meta = obj.get("metadata", {})
    return meta.get("namespace") == BAD or str(meta.get("name", "")).startswith(BAD)


class Corrupter:
    """A transport that changes one place of every bad object on its way to the operator."""

    def __init__(self, inner: FakeTransport, rng: random.Random) -> None:
        self.inner, self.rng = inner, rng
        self.quiet = False
        self.changed = 0

    def corrupt(self, obj: Object) -> Object:
        if self.quiet or not is_bad(obj):
            return obj
        # Devices of the shared kind stay true: who says that it has some gets work.
        chosen = [p for p in places(obj) if p and p[:2] not in IDENTITY and NPU not in p]
        path = self.rng.choice([p for p in chosen if p != ("metadata",)])
        self.changed += 1
        if self.rng.random() < 0.1:
            return dict(without(obj, path))
        return dict(put(obj, path, self.rng.choice(HOSTILE_VALUES)))

    async def send(self, request: KubeRequest) -> Object:
        answer = await self.inner.send(request)
        if request.verb == "list":
            return {**answer, "items": [self.corrupt(item) for item in answer["items"]]}
        return self.corrupt(answer) if "metadata" in answer else answer

    async def stream(self, request: KubeRequest) -> AsyncIterator[Object]:
        async for event in self.inner.stream(request):
            yield {**event, "object": self.corrupt(event["object"])}

    async def close(self) -> None:
        await self.inner.close()


class FailingEngines:
    """Answers of bad instances cannot be read, with any kind of error."""

    def __init__(self, inner: EngineApi, rng: random.Random) -> None:
        self.inner, self.rng = inner, rng

    def _check(self, target: Target) -> None:
        if target.service.startswith(BAD):
            raise self.rng.choice(RNG_ERRORS)("an answer that cannot be read")

    async def put_peers(self, target: Target, table: PeerTable) -> None:
        self._check(target)
        await self.inner.put_peers(target, table)

    async def get_links(self, target: Target) -> LinkReport:
        self._check(target)
        return await self.inner.get_links(target)

    async def post_drain(self, target: Target) -> DrainReport:
        self._check(target)
        return await self.inner.post_drain(target)


class FalseSource:
    """True numbers for good scenarios; for bad ones what no arithmetic takes."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    async def sample(
        self, live: Mapping[ScenarioKey, LiveInstances]
    ) -> Mapping[ScenarioKey, ScenarioSample | Unknown]:
        if self.rng.random() < 0.2:
            raise self.rng.choice(RNG_ERRORS)("the metrics source failed")
        return {key: self._of(key) for key in live}

    def _of(self, key: ScenarioKey) -> ScenarioSample | Unknown:
        if key.namespace != BAD:
            return sample(at=now(), rate=2.0)
        bad: Any = self.rng.choice((1e308, float("nan"), "many", None, -1.0, 10**400))
        return sample(at=now(), rate=2.0, expired=bad, ttft_seconds=bad)

    async def close(self) -> None:
        pass


def bad_objects(world: World) -> None:
    world.create(NAMESPACES, {"metadata": {"name": BAD}})
    for n in range(3):
        pod = {
            "metadata": {"name": f"bad-{n}", "namespace": BAD, "labels": {"a": "b"}},
            "spec": {
                "nodeName": f"a-{n % 2}",
                "tolerations": [{"key": "k", "operator": "Exists"}],
                "containers": [
                    {"name": "c", "resources": {"limits": {"example.com/x": "1"}}},
                ],
            },
            "status": {"phase": "Running"},
        }
        world.create(PODS, {"apiVersion": "v1", "kind": "Pod", **pod})
    for leaf in ("a", "b"):
        world.node(leaf, f"bad-node-{leaf}", 0)
        annotations = {
            names.ANNOTATION_ROCE_DEVICES: '[{"id": 0, "ip": "10.0.0.1"}]',
            names.ANNOTATION_UNHEALTHY_DEVICES: "0",
        }
        taints = [{"key": "bad", "value": "", "effect": "NoSchedule"}]
        body = {"metadata": {"annotations": annotations}, "spec": {"taints": taints}}
        world.patch(NODES, "", f"bad-node-{leaf}", body)
    world.domain("bad-az")
    theirs = service("bad-shop", devices=2)
    theirs["metadata"]["namespace"] = BAD
    theirs["spec"]["fabric"]["domainRef"]["name"] = "bad-az"
    theirs["spec"]["prefill"]["instance"]["resource"] = "bad.example/npu"
    theirs["spec"]["decode"]["instance"]["resource"] = "bad.example/npu"
    theirs["spec"]["prefill"]["template"] = {"metadata": {"labels": {"x": "y"}}, "spec": {}}
    world.create(PDSERVICES, theirs)


def touch_bad(world: World, step: int) -> None:
    """An event of every bad object, so that the corrupter changes it again."""
    for resource in (PODS, NODES, ROCE_DOMAINS, PDSERVICES, SCENARIO_GROUPS, CONFIGMAPS):
        for obj in list(world.api.objects(resource)):
            if is_bad(obj):
                meta = obj["metadata"]
                body = {"metadata": {"labels": {"step": str(step)}}}
                world.patch(resource, meta.get("namespace") or "", meta["name"], body)


@pytest.mark.invariant(10)
@pytest.mark.parametrize("seed", range(4))
def test_false_values_of_others_neither_stop_the_operator_nor_delay_a_good_repair(
    seed: int,
) -> None:
    @virtual_time
    async def run() -> None:
        rng = random.Random(seed)
        world = World(seed)
        world.nodes(["a", "b"], per_leaf=2)
        world.domain()
        world.create(PDSERVICES, service(prefill=(1, 2), decode=(1, 2)))
        bad_objects(world)
        registry = Registry()
        corrupter = Corrupter(FakeTransport(world.api, Faults(seed)), rng)
        core = Core(
            KubeClient(corrupter), namespace=None, operator_namespace="pdserve-system",
            gateway_image="x", registry=registry,
            now=now, rng=random.Random(seed),
        )  # fmt: skip

        async def engines(_tokens: Tokens) -> EngineApi:
            return FailingEngines(world.engines, rng)

        async def operate() -> None:
            settings = LoopSettings(fast_period=5.0)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(core.follow())
                tasks.create_task(core.act(engines, FalseSource(rng), settings))

        task = asyncio.create_task(operate())
        try:
            async with world.running():
                await world.until(world.service_ready, 60, "the good service")
                killed: set[str] = set()
                for step in range(30):
                    touch_bad(world, step)
                    await asyncio.sleep(1)
                    assert not task.done(), task.exception()
                    if step % 10 == 9:
                        # A slot's second fault waits 10 s, whatever is changed.
                        fresh = (p for p in sorted(world.routed()) if p[:-7] not in killed)
                        victim = next(fresh)
                        killed.add(victim[:-7])
                        world.kill(victim)
                        await world.until(partial(unrouted, world, victim), 5, victim)
                        size = len(routed_wanted(world))
                        took = await world.until(partial(routes_count, world, size), 5)
                        assert took <= 5, f"{victim} was replaced after {took:.1f} s"
                assert corrupter.changed > 500
                skipped = "pdserve_operator_skipped_objects_total"
                assert skipped in registry.render()
                assert world.events("ObjectSkipped")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run()


def routed_wanted(world: World) -> list[str]:
    """Slots of the good service: as many instances as its counts name."""
    spec = (world.get(SCENARIO_GROUPS, "shop-chat") or {})["spec"]
    return ["x"] * (spec["replicas"] * (spec["prefill"]["replicas"] + spec["decode"]["replicas"]))
