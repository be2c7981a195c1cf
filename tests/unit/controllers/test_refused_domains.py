"""A RoCEDomain that today's rules or the API server refuse says so and stops nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.errors import KubeError
from pdserve.kube.request import KubeRequest


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
