"""A quota or a policy that refuses pods is reported, costs few requests, and ends when it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.errors import KubeError
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import (
    CONFIGMAPS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    POD_DISRUPTION_BUDGETS,
    PODS,
    SECRETS,
    SERVICES,
    Resource,
)
from pdserve.wire import names

TEAM = "team"
REASON = "exceeded quota: compute"
MOST = 60
"""Requests of ten minutes about what is refused, reads of lists and watches left out."""


class Quota:
    """Refuses pods of instances in one namespace while `closed`."""

    def __init__(self, world: World) -> None:
        self.closed = False
        self.refused = 0
        self._handle = world.api.handle
        world.api.handle = self._answer  # type: ignore[method-assign]

    def _answer(self, request: KubeRequest) -> Any:
        body = request.body if request.verb == "create" and request.resource == PODS else None
        ours = body is not None and names.LABEL_ROLE in body["metadata"].get("labels", {})
        if self.closed and ours and request.namespace == TEAM:
            self.refused += 1
            raise KubeError(403, "Forbidden", f"pods is forbidden: {REASON}")
        return self._handle(request)


@pytest.mark.invariant(10)
@pytest.mark.parametrize("lost", [1, 2, 3], ids=["one", "a role", "all"])
def test_a_refused_substitute_is_reported_and_tried_a_few_times_a_minute(lost: int) -> None:
    @virtual_time
    async def run() -> None:
        world = World(namespaces=(NS, TEAM))
        world.nodes(["a", "b"], per_leaf=2)
        world.domain()
        world.create(PDSERVICES, service())
        world.create(PDSERVICES, service("mart", namespace=TEAM, devices=1, prefill=(2, 4)))
        quota = Quota(world)
        async with world.running(), world.operator():
            await world.until(
                lambda: world.service_ready() and world.service_ready("mart", TEAM), 120
            )
            await asyncio.sleep(10)
            quota.closed = True
            theirs = [
                p["metadata"] for p in world.instances() if p["metadata"]["namespace"] == TEAM
            ]
            roles = sorted(theirs, key=lambda meta: meta["labels"][names.LABEL_ROLE], reverse=True)
            for meta in roles[:lost]:
                world.delete_pod(meta["name"], TEAM)
            await world.until(lambda: quota.refused > 0, 30)
            await world.until(lambda: REASON in placed(world), 10, "the group says so")
            await world.until(lambda: any(REASON in e for e in world.events("CreateFailed")), 10)
            asked = len(world.recorders[0].requests)
            await asyncio.sleep(600)
            later = world.recorders[0].requests[asked:]
            assert quota.refused > 5, "it is tried again"
            assert len([r for r in later if r.verb not in ("list", "watch")]) < MOST * (1 + lost)
            assert world.service_ready(), "the neighbour serves on"
            quota.closed = False
            await world.until(lambda: world.service_ready("mart", TEAM), 120, "after the quota")

    run()


@pytest.mark.invariant(10)
@pytest.mark.parametrize(
    "resource", [CONTROLLER_REVISIONS, POD_DISRUPTION_BUDGETS], ids=lambda r: str(r.kind)
)
def test_what_instances_serve_without_is_in_a_condition_when_refused(
    resource: Resource,
) -> None:
    """Nothing may be refused without a condition, and the condition ends with the refusal."""

    @virtual_time
    async def run() -> None:
        world = World()
        world.nodes(["a"], per_leaf=2)
        world.domain()
        handle, closed = world.api.handle, True

        def answer(request: KubeRequest) -> Any:
            if closed and request.resource == resource and request.verb == "create":
                raise KubeError(403, "Forbidden", f"{resource.plural} is forbidden: {REASON}")
            return handle(request)

        world.api.handle = answer  # type: ignore[method-assign]
        world.create(PDSERVICES, service())

        def told(kind: Resource, name: str) -> bool:
            found = world.condition(kind, name, "Degraded")
            return found.get("status") == "True" and REASON in found["message"]

        async with world.running(), world.operator():
            await world.until(lambda: told(SCENARIO_GROUPS, "shop-chat"), 10, "the group says so")
            await world.until(lambda: told(PDSERVICES, "shop"), 10, "and its service")
            await world.until(world.service_ready, 120, "it serves without")
            closed = False
            await world.until(lambda: not told(PDSERVICES, "shop"), 60, "after the quota")
            ended = world.condition(SCENARIO_GROUPS, "shop-chat", "Degraded")
            assert (ended["status"], ended["reason"]) == ("False", "AsWanted")

    run()


def placed(world: World) -> str:
    return str(world.condition(SCENARIO_GROUPS, "mart-chat", "Placed", TEAM).get("message", ""))


@pytest.mark.invariant(10)
def test_in_a_namespace_that_is_being_deleted_little_is_tried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its content goes in any order; it may stay for long (another controller's finalizer)."""

    @virtual_time
    async def run() -> None:
        world = World(namespaces=(NS, TEAM))
        world.nodes(["a", "b"], per_leaf=2)
        world.domain()
        world.create(PDSERVICES, service())
        world.create(PDSERVICES, service("mart", namespace=TEAM, devices=1))
        handle, ending, refused = world.api.handle, False, 0

        def answer(request: KubeRequest) -> Any:
            nonlocal refused
            if ending and request.namespace == TEAM and request.verb == "create":
                refused += 1
                what = "unable to create new content in namespace team: it is being terminated"
                cause = {"reason": "NamespaceTerminating", "field": "metadata.namespace"}
                raise KubeError(403, "Forbidden", what, causes=(cause,))
            return handle(request)

        world.api.handle = answer  # type: ignore[method-assign]
        async with world.running(), world.operator():
            await world.until(
                lambda: world.service_ready() and world.service_ready("mart", TEAM), 120
            )
            await asyncio.sleep(10)
            ending = True
            for kind in (PODS, CONFIGMAPS, SECRETS, DEPLOYMENTS, SERVICES, CONTROLLER_REVISIONS):
                for key in [k for k in world.api.store(kind).objects if k.namespace == TEAM]:
                    handle(KubeRequest("delete", kind, key.namespace, key.name))
            caplog.clear()
            asked = len(world.recorders[0].requests)
            await asyncio.sleep(600)
            later = world.recorders[0].requests[asked:]
            assert refused > 5
            assert len([r for r in later if r.verb not in ("list", "watch")]) < 900
            assert sum(r.levelname == "WARNING" for r in caplog.records) < 60
            world.delete_pod(world.instances()[0]["metadata"]["name"])
            await world.until(lambda: not world.service_ready(), 30, "the neighbour lost one")
            await world.until(world.service_ready, 60, "the neighbour is repaired")

    run()
