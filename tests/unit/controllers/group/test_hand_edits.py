"""Edits by hand of objects of pdserve are undone, and cost no sound instance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NPU, NS, service
from pdserve.kube.resource import PODS, Object
from pdserve.wire import names

NEVER = "9999-12-31T23:59:59Z"
GROUP = "shop-chat"


def labels(changed: dict[str, Any] | None) -> Callable[[World], None]:
    def change(world: World) -> None:
        name = world.instances()[0]["metadata"]["name"]
        world.patch(PODS, NS, name, {"metadata": {"labels": changed}})

    return change


def status(**changed: Any) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.patch(SCENARIO_GROUPS, NS, GROUP, {"status": changed}, subresource="status")

    return change


def decided(groups: int, prefill: int, decode: int) -> Callable[[World], None]:
    counts = {"groups": groups, "prefill": prefill, "decode": decode}
    before = {"groups": 1, "prefill": 1, "decode": 1}
    entry = {"time": NEVER, "from": before, "to": counts, "outcome": "Applied", "reason": "Grow"}
    return status(decisions=[entry])


def claim(number: int, node: str) -> Object:
    return {
        "slot": f"s{number}", "pod": f"s{number}-{node}", "uid": "u", "groupIndex": 0,
        "role": "prefill", "node": node, "resource": NPU, "devices": 1 << 20,
        "beside": [{"resource": "memory", "amount": 1 << 62}],
    }  # fmt: skip


@pytest.mark.invariant(13)
@pytest.mark.parametrize(
    "edit",
    [
        labels({names.LABEL_ROLE: None}),
        labels({names.LABEL_GROUP_INDEX: None}),
        labels(None),
        decided(0, 0, 0),
        decided(0, 64, 64),
        status(claims=[claim(n, node) for n in range(50) for node in ("a-0", "a-1", "b-0")]),
        status(repairs=[{"slot": f"{GROUP}-0-p0", "failures": 1 << 20,
                         "lastFailureTime": NEVER, "notBeforeTime": NEVER}]),
        status(fabric={"domain": "az1", "spec": "[" * 3000}),
        status(conditions=[], groups=[{"index": 9}], replicas=0, selector="nothing"),
    ],
    ids=["role", "index", "labels", "no groups", "no groups, wide", "claims", "repairs", "fabric",
         "counts"],
)  # fmt: skip
def test_sound_instances_outlive_an_edit_by_hand(edit: Callable[[World], None]) -> None:
    @virtual_time
    async def run() -> None:
        world = World()
        world.nodes(["a", "b"], per_leaf=2)
        world.domain()
        world.create(PDSERVICES, service(devices=2, prefill=(2, 4)))
        async with world.running(), world.operator():
            await world.until(world.service_ready, 120)
            await asyncio.sleep(20)
            before = pods(world)
            edit(world)
            asked = len(world.recorders[0].requests)
            await asyncio.sleep(300)
            assert before <= pods(world)
            assert world.service_ready()
            assert len(world.routed()) >= 3
            writes = [r for r in world.recorders[0].requests[asked:] if r.verb not in READS]
            assert len(writes) < 80

    run()


READS = ("get", "list", "watch")


def pods(world: World) -> set[str]:
    """Uids of the instances by name; no test here edits names."""
    found = [p["metadata"] for p in world.seen(PODS) if p["metadata"]["name"].startswith(GROUP)]
    return {meta["uid"] for meta in found if "deletionTimestamp" not in meta}
