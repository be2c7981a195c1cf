"""Rule: no value in one object, answer or metric stops the operator or delays a neighbour.

A transport between the API model and the real operator changes what is of others: any value at any
place of their objects may be wrong, huge, deep, non-finite or missing. (The API server would refuse
many of these; the rule does not lean on it.)
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import pytest
from tests.support.hostile import VALUES, deep, places, put, without
from tests.support.ratio_values import sample
from tests.support.world_state import routes_count, unrouted

from pdserve.controllers.app import Core
from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.controllers.shared.linker import EngineApi, Target
from pdserve.controllers.shared.tokens import Tokens
from pdserve.dst.api_net import FakeTransport, Faults
from pdserve.dst.moments import now
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NPU, NS, service
from pdserve.exposition import Registry
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import CONFIGMAPS, NAMESPACES, NODES, PODS, Object
from pdserve.ratio.types import LoopSettings, ScenarioSample, Unknown
from pdserve.telemetry.source import LiveInstances, ScenarioKey
from pdserve.wire import names
from pdserve.wire.bounds import MAX_VERSION, parse_json
from pdserve.wire.links import DrainReport, LinkReport
from pdserve.wire.peers import PeerTable
from pdserve.wire.routes import RouteTable

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


@pytest.mark.invariant(10)
@virtual_time
async def test_a_stored_domain_that_todays_rules_refuse_says_so_and_stops_no_other() -> None:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain("old")
    world.domain()
    for name, domain in (("lost", "old"), ("shop", "az1")):
        wanted = service(name)
        wanted["spec"]["fabric"]["domainRef"]["name"] = domain
        world.create(PDSERVICES, wanted)
    break_domain(world, "old")
    async with world.running(), world.operator() as task:
        await world.until(world.service_ready, 60, "the good service")
        ready = await condition(world, ROCE_DOMAINS, "old", "Ready", "ObjectInvalid")
        assert "spec.levels" in ready["message"]
        placed = world.condition(SCENARIO_GROUPS, "lost-chat", "Placed")
        assert (placed["status"], placed["reason"]) == ("False", "DomainInvalid")
        await asyncio.sleep(120)
        assert not task.done()
        victim = sorted(world.routed())[0]
        world.kill(victim)
        await world.until(lambda: victim not in world.routed(), 5)
        await world.until(lambda: len(world.routed()) == 2, 5, "a good repair")
        # Corrected, it is taken up again, and the refusal is taken back.
        repair_domain(world, "old")
        await world.until(lambda: world.service_ready("lost"), 60, "after the correction")
        again = world.existing(ROCE_DOMAINS, "old", "")["status"]["conditions"]
        assert {c["type"]: c["status"] for c in again}["Reconciled"] == "True"


def break_domain(world: World, name: str) -> None:
    """As if stored under rules of which today's CRD knows nothing."""
    change_domain(world, name, [{"name": "UPPER CASE", "nodeLabel": 5, "hopCost": -1}])


def repair_domain(world: World, name: str) -> None:
    level = {"name": "leaf", "nodeLabel": "fabric/leaf", "hopCost": 10}
    change_domain(world, name, [level])


def change_domain(world: World, name: str, levels: Any) -> None:
    store = world.api.store(ROCE_DOMAINS)
    key = next(k for k in store.objects if k.name == name)
    before = store.objects[key]
    spec = {**before["spec"], "levels": levels}
    meta = {**before["metadata"], "generation": before["metadata"]["generation"] + 1}
    world.api.commit(store, key, "MODIFIED", before, {**before, "spec": spec, "metadata": meta})


async def condition(
    world: World, resource: Any, name: str, kind: str, reason: str, seconds: float = 10.0
) -> dict[str, Any]:
    """The condition, once it has that reason; an error after `seconds`."""

    def found() -> dict[str, Any]:
        namespace = NS if resource.namespaced else ""
        obj = world.get(resource, name, namespace) or {}
        conditions = obj.get("status", {}).get("conditions", ())
        return next((dict(c) for c in conditions if c["type"] == kind), {})

    await world.until(lambda: found().get("reason") == reason, seconds, f"{kind} {reason}")
    return found()


@pytest.mark.parametrize(
    ("verb", "plural", "status"),
    [
        ("create", "configmaps", 413), ("create", "configmaps", 403), ("create", "pods", 500),
        ("create", "secrets", 403), ("create", "deployments", 422), ("create", "pods", 400),
        ("create", "rolebindings", 403), ("create", "scenariogroups", 403),
    ],
)  # fmt: skip
def test_every_refusal_of_the_api_server_is_a_condition_within_ten_seconds(
    verb: str, plural: str, status: int
) -> None:
    @virtual_time
    async def run() -> None:
        world = Refusing(verb, plural, status)
        world.nodes(["a", "b"], per_leaf=2)
        world.domain()
        world.create(PDSERVICES, service())
        async with world.running(), world.operator() as task:
            started = asyncio.get_running_loop().time()
            await world.until(world.told, 20, f"a condition about {verb} {plural} {status}")
            first = world.first
            assert first is not None
            took = asyncio.get_running_loop().time() - max(first, started)
            assert took <= 10, f"told after {took:.1f} s"
            world.refuses = False
            await world.until(world.service_ready, 180, "once it is not refused any more")
            await world.until(lambda: not world.told(), 90, "the refusal is taken back")
            assert not task.done()

    run()


class Refusing(World):
    """The API server refuses one kind of request of the operator."""

    def __init__(self, verb: str, plural: str, status: int) -> None:
        super().__init__()
        self.refuses = True
        self.first: float | None = None
        self.text = f"no {verb} of {plural} today"

        def delay(request: KubeRequest) -> float:
            wanted = (request.verb, request.resource.plural) == (verb, plural)
            if self.refuses and wanted and "dryRun" not in request.query:
                self.first = self.first or asyncio.get_running_loop().time()
                raise KubeError(status, "Refused", self.text)
            return 0.0

        self.delay = delay

    def told(self) -> bool:
        """A condition of one of our objects has the API server's words."""
        return any(
            self.text in c["message"] and (c["type"], c["status"]) != ("Degraded", "False")
            for resource in (PDSERVICES, SCENARIO_GROUPS)
            for obj in self.seen(resource)
            for c in obj.get("status", {}).get("conditions", ())
        )


@pytest.mark.invariant(10)
@pytest.mark.parametrize("version", [2**51, 2**52 + 1, 2**53 - 1, 2**53, 2**63 - 1, 2**63])
@pytest.mark.parametrize("key", [names.KEY_PEERS, names.KEY_ROUTES])
@virtual_time
async def test_a_forged_table_of_any_version_leaves_a_version_for_the_next(
    key: str, version: int
) -> None:
    """Who follows a forged version to the last one that readers take has no next table."""
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service())
    async with world.running(), world.operator() as task:
        await world.until(world.service_ready, 60)
        table = next(c for c in world.seen(CONFIGMAPS) if key in c.get("data", {}))
        text = json.dumps({**json.loads(table["data"][key]), "version": version})
        world.patch(CONFIGMAPS, NS, table["metadata"]["name"], {"data": {key: text}})
        await asyncio.sleep(2)
        await repaired(world)
        written = world.get(CONFIGMAPS, table["metadata"]["name"]) or {}
        value = parse_json(written["data"][key])
        read = PeerTable if key == names.KEY_PEERS else RouteTable
        assert read.from_json(value).version < MAX_VERSION
        assert not task.done()


def newer(version: int, said: object) -> object:
    """A report whose table is at least of `version`."""
    assert isinstance(said, dict)
    return {**said, "version": max(version, said["version"])}


@pytest.mark.invariant(10)
@pytest.mark.parametrize("version", [2**51, 2**51 + 1, MAX_VERSION])
@virtual_time
async def test_an_instance_that_says_any_version_leaves_one_for_the_next(version: int) -> None:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service(prefill=(2, 2), decode=(1, 1)))
    async with world.running(), world.operator() as task:
        await world.until(world.service_ready, 60)
        (decode,) = (e for e in world.engines.by_ip.values() if "-d0-" in e.pod)
        decode.spoil = partial(newer, version)
        for n in (0, 1):  # each publishes tables, and the false value arrives after the first
            await repaired(world, next(p for p in sorted(world.routed()) if f"-p{n}-" in p))
            await asyncio.sleep(20)
        table = next(c for c in world.seen(CONFIGMAPS) if names.KEY_PEERS in c.get("data", {}))
        value = parse_json(table["data"][names.KEY_PEERS])
        assert PeerTable.from_json(value).version < MAX_VERSION
        assert not task.done()


async def repaired(world: World, victim: str = "") -> None:
    """An instance is lost; returns once another one is routed instead."""
    size, lost = len(world.routed()), victim or sorted(world.routed())[0]
    world.kill(lost)
    await world.until(lambda: lost not in world.routed(), 10, f"{lost} leaves the routes")
    await world.until(lambda: len(world.routed()) == size, 10, f"{lost} is replaced")
