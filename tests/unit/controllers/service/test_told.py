"""Whatever keeps a service from running is a condition within 10 s, and goes when it is mended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.machinery import Machinery
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.errors import KubeError
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import CONFIGMAPS, DEPLOYMENTS, PODS, SECRETS, Object

TOLD = 10.0
"""Seconds within which a condition names what is wrong."""
NO_IMAGE = "nosuch/engine:9"
PULL = {"reason": "ErrImagePull", "message": "nosuch/engine:9: not found"}


class KubeletWorld(World):
    """A kubelet that cannot start some containers, and an API server that refuses some objects."""

    stuck: Callable[[Object], dict[str, str] | None] = staticmethod(lambda _pod: None)
    """What a container waits for; None: it starts."""
    refuse: Callable[[KubeRequest], KubeError | None] = staticmethod(lambda _request: None)

    def __post_init__(self) -> None:
        super().__post_init__()
        handle = self.api.handle

        def guarded(request: KubeRequest) -> Object:
            error = self.refuse(request)
            if error is not None:
                raise error
            return handle(request)

        self.api.handle = guarded  # type: ignore[method-assign]
        self.machinery = KubeletMachinery(self)


class KubeletMachinery(Machinery):
    """Containers that are `stuck` wait."""

    world: KubeletWorld

    def start(self, pod: Object) -> None:
        waiting = self.world.stuck(pod)
        if waiting is None:
            super().start(pod)
            return
        name = pod["spec"]["containers"][0]["name"]
        statuses = [{"name": name, "ready": False, "restartCount": 0,
                     "state": {"waiting": waiting}}]  # fmt: skip
        self.set_status(pod, {"phase": "Pending", "containerStatuses": statuses}, [])


def make() -> KubeletWorld:
    world = KubeletWorld()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    return world


def is_gateway(pod: Object) -> bool:
    return pod["metadata"]["labels"].get("app.kubernetes.io/component") == "gateway"


def image(pod: Object) -> str:
    return str(pod["spec"]["containers"][0]["image"])


def degraded(world: World) -> tuple[str, str]:
    found = world.condition(PDSERVICES, "shop", "Degraded")
    return (found.get("reason", ""), found.get("message", ""))


async def told(world: World, reason: str, words: str) -> None:
    await world.until(lambda: degraded(world)[0] == reason, TOLD, f"Degraded {reason}")
    assert world.condition(PDSERVICES, "shop", "Degraded")["status"] == "True"
    assert words in degraded(world)[1]


async def mended(world: World, seconds: float = 60.0) -> None:
    await world.until(lambda: degraded(world)[0] == "AsWanted", seconds, "Degraded=False")
    await world.until(world.service_ready, 120)


@virtual_time
async def test_what_cannot_be_placed_is_an_event() -> None:
    """K6.1."""
    world = make()
    world.create(PDSERVICES, service(devices=8, groups=(4, 4)))
    async with world.running(), world.operator():
        await world.until(lambda: world.events("NoFit") != [], TOLD, "Event NoFit")
        assert "group 2" in world.events("NoFit")[0]
        await told(world, "NoFit", "group 2")
        await asyncio.sleep(600)
        assert len(world.events("NoFit")) <= 2, "said once, not at every look"


@virtual_time
async def test_an_image_that_cannot_be_pulled_is_reported_for_instances() -> None:
    """K6.3."""
    world = make()
    world.stuck = lambda pod: PULL if image(pod) == NO_IMAGE else None
    world.create(PDSERVICES, service(devices=2))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        world.patch(PDSERVICES, NS, "shop", {"spec": {"engine": {"image": NO_IMAGE}}})
        await told(world, "ImageError", "nosuch/engine:9: not found")
        # It stays told while the next try waits.
        for _ in range(60):
            await asyncio.sleep(10)
            assert degraded(world)[0] == "ImageError"
        world.patch(PDSERVICES, NS, "shop", {"spec": {"engine": {"image": "pdserve/engine:test"}}})
        await mended(world, 400)


def unscheduled(world: World) -> None:
    """No node takes gateways: every one is tainted."""
    schedule = world.machinery.schedule

    def refuse(pod: Object) -> None:
        if is_gateway(pod):
            said = "0/4 nodes are available: untolerated taint {dedicated: llm}"
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                         "message": said}  # fmt: skip
            body = {"status": {"phase": "Pending", "conditions": [condition]}}
            name = pod["metadata"]["name"]
            world.api.handle(
                KubeRequest("patch", PODS, NS, name, "status", body=body, patch="strategic")
            )
        else:
            schedule(pod)

    world.machinery.schedule = refuse  # type: ignore[method-assign]


def placed(world: World) -> tuple[str, str]:
    found = world.condition(SCENARIO_GROUPS, "shop-chat", "Placed")
    return (found.get("reason", ""), found.get("message", ""))


@virtual_time
async def test_an_instance_without_a_node_is_reported_in_the_words_of_the_scheduler() -> None:
    world = make()
    words = "node(s) had volume node affinity conflict"
    world.unfit = lambda _node, pod: None if is_gateway(pod) else words
    world.create(PDSERVICES, service(devices=2))
    async with world.running(), world.operator():
        await told(world, "Unschedulable", words)
        assert words in placed(world)[1]
        # It stays told while further nodes are tried, and while the next try waits.
        for _ in range(600):
            await asyncio.sleep(1)
            assert placed(world)[0] == degraded(world)[0] in ("Unschedulable", "NoFit")
            assert words in placed(world)[1]
            assert words in degraded(world)[1]
        world.unfit = lambda _node, _pod: None
        await mended(world, 1300)
        assert placed(world)[0] == "AllPlaced"


GATEWAY_STUCK: list[tuple[str, dict[str, str], str]] = [
    ("ImageError", {"reason": "ImagePullBackOff", "message": "Back-off pulling"}, "Back-off"),
    ("ContainerConfigError",
     {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}, 'secret "x"'),
    ("CrashLoop", {"reason": "CrashLoopBackOff", "message": "back-off 10s"}, "back-off 10s"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "waiting", "words"), GATEWAY_STUCK)
def test_a_gateway_that_cannot_start_is_reported(
    reason: str, waiting: dict[str, str], words: str
) -> None:
    """K6.2."""

    @virtual_time
    async def run() -> None:
        world = make()
        world.stuck = lambda pod: waiting if is_gateway(pod) else None
        world.create(PDSERVICES, service())
        async with world.running(), world.operator():
            await told(world, reason, words)
            world.stuck = lambda _pod: None
            await mended(world)

    run()


@virtual_time
async def test_a_gateway_without_a_node_is_reported() -> None:
    """K6.2."""
    world = make()
    unscheduled(world)
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await told(world, "Unschedulable", "untolerated taint {dedicated: llm}")


@pytest.mark.parametrize(
    "words", ["exceeded quota: small", "minimum memory usage per Container is 256Mi"]
)
def test_gateway_pods_that_are_refused_are_reported(words: str) -> None:
    """K6.2."""

    @virtual_time
    async def run() -> None:
        world = make()
        world.create(PDSERVICES, service())
        async with world.running(), world.operator():
            await world.until(world.service_ready)
            failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
                       "message": f"pods is forbidden: {words}"}  # fmt: skip
            set_conditions(world, [failure])
            await told(world, "GatewayRefused", words)
            set_conditions(world, [{**failure, "status": "False"}])
            await mended(world)

    def set_conditions(world: World, conditions: list[Any]) -> None:
        body = {"status": {"conditions": conditions}}
        world.patch(DEPLOYMENTS, NS, "shop-gateway", body, subresource="status")

    run()


@virtual_time
async def test_a_missing_secret_of_the_gateway_is_reported() -> None:
    """K6.2."""
    world = make()
    creating = {"reason": "ContainerCreating"}
    world.stuck = lambda pod: (
        creating if is_gateway(pod) and world.get(SECRETS, "keys") is None else None
    )
    world.create(PDSERVICES, service(gateway={"auth": {"secretRef": {"name": "keys"}}}))
    async with world.running(), world.operator():
        await told(world, "SecretMissing", "there is no Secret 'keys'")
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}}
        secret["metadata"] |= {"namespace": NS}  # type: ignore[operator]
        world.create(SECRETS, secret)
        await mended(world)


@virtual_time
async def test_a_template_refused_for_a_missing_priority_class_is_tried_again() -> None:
    """K6.5."""
    world = make()
    classes: set[str] = set()

    def refuse(request: KubeRequest) -> KubeError | None:
        if request.verb != "create" or request.resource != PODS or request.body is None:
            return None
        wanted = request.body["spec"].get("priorityClassName")
        if wanted is None or wanted in classes:
            return None
        return KubeError(403, "Forbidden", f"no PriorityClass with name {wanted} was found")

    world.refuse = refuse
    made = service()
    for role in ("prefill", "decode"):
        made["spec"][role]["template"] = {"spec": {"priorityClassName": "serving"}}
    world.create(PDSERVICES, made)
    async with world.running(), world.operator():
        await told(world, "TemplateInvalid", "no PriorityClass with name serving")
        await asyncio.sleep(300)
        assert len(world.events("TemplateInvalid")) == 1
        assert world.instances() == []
        classes.add("serving")
        await mended(world)


@virtual_time
async def test_an_object_that_the_api_server_refuses_is_reported_and_tried_again() -> None:
    world = make()
    full = True

    def refuse(request: KubeRequest) -> KubeError | None:
        made = request.verb == "create" and request.resource == CONFIGMAPS
        if not made or not full:
            return None
        return KubeError(403, "Forbidden", "exceeded quota: configmaps")

    world.refuse = refuse
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await told(world, "WriteRefused", "exceeded quota: configmaps")
        full = False
        await mended(world)
        assert world.condition(SCENARIO_GROUPS, "shop-chat", "Ready")["status"] == "True"
