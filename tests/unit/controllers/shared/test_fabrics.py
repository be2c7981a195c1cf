"""A fabric is made in steps, whatever changes meanwhile, and is the one that stands then."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from pdserve.controllers.shared.caches import Caches, make_caches
from pdserve.controllers.shared.fabrics import STEP_NODES, Fabrics
from pdserve.dst.api_server import FakeApi
from pdserve.exposition import Registry
from pdserve.placement import GroupRequest, NoFit, Placement, Shape, place
from pdserve.topology import Fabric, FabricLevel, TreeSpec, build_fabric, summarise
from pdserve.topology.obstacle import Obstacle

NPU = "example.com/npu"
LEVELS = (FabricLevel("leaf", "leaf", 1),)
SPEC = TreeSpec("az1", LEVELS, {"fabric": "az1"})
OTHER = TreeSpec("az1", (FabricLevel("leaf", "leaf", 7),), {"fabric": "az1"})
LEAF = 20
NODES = 5 * STEP_NODES
ASKED = GroupRequest(2, 1, Shape(NPU, 4), Shape(NPU, 8))
TOO_LARGE = replace(ASKED, prefill=NODES, decode=NODES)


class Site:
    """Nodes in a cache, and the fabrics kept of them."""

    def __init__(self, nodes: int = NODES) -> None:
        self.caches: Caches = make_caches(FakeApi().client(), None, Registry(), lambda *_: None)
        self.fabrics = Fabrics(self.caches)
        self.version = 1
        for number in range(nodes):
            self.put(number)

    def put(self, number: int, leaf: int | None = None, devices: int = 8) -> None:
        self.version += 1
        where = number // LEAF if leaf is None else leaf
        node = {
            "metadata": {
                "name": f"n{number:05d}", "uid": f"u{number}",
                "resourceVersion": str(self.version),
                "labels": {"fabric": "az1", "leaf": f"l{where:03d}"},
            },
            "status": {
                "allocatable": {NPU: str(devices)},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }  # fmt: skip
        self.caches.nodes.observe(node)

    def drop(self, number: int) -> None:
        name = f"n{number:05d}"
        self.version += 1
        version = str(self.version)
        meta = {"name": name, "uid": f"u{number}", "resourceVersion": version}
        self.caches.nodes.observe_gone({"metadata": meta})

    def fresh(self, spec: TreeSpec = SPEC) -> Fabric:
        return build_fabric(spec, self.caches.nodes.list())


class Steps:
    """How many nodes were looked at between two turns of the event loop, at most."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = self.total = 0
        looked_at = Fabric.blocked
        read = Fabric.renewed

        def blocked(fabric: Fabric, *args: Any) -> Obstacle | None:
            self._count(1)
            return looked_at(fabric, *args)

        def renewed(fabric: Fabric, changed: Any, reserved: Any) -> Fabric:
            self._count(len(changed))
            return read(fabric, changed, reserved)

        monkeypatch.setattr(Fabric, "blocked", blocked)
        monkeypatch.setattr(Fabric, "renewed", renewed)

    def _count(self, nodes: int) -> None:
        self.now += nodes
        self.total += nodes
        self.most = max(self.most, self.now)

    async def watch(self) -> None:
        while True:
            self.now = 0
            await asyncio.sleep(0)


@pytest.mark.invariant(14)
async def test_what_is_prepared_is_read_in_steps_and_not_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site, steps = Site(), Steps(monkeypatch)
    watching = asyncio.create_task(steps.watch())
    await site.fabrics.prepare_summary(SPEC)
    await site.fabrics.prepare(SPEC, (ASKED,))
    watching.cancel()
    assert steps.most <= 2 * STEP_NODES
    # Each node is read, summed up, and counted for both roles at once.
    assert steps.total == 3 * NODES
    steps.total = 0
    assert isinstance(place(site.fabrics.of(SPEC), ASKED), Placement)
    assert steps.total == 0
    # What does not fit is refused for reasons that are counted for each role.
    watching = asyncio.create_task(steps.watch())
    await site.fabrics.prepare(SPEC, (TOO_LARGE,))
    watching.cancel()
    assert steps.most <= 2 * STEP_NODES
    assert steps.total == 2 * NODES
    steps.total = 0
    tree = site.fabrics.of(SPEC)
    assert isinstance(place(tree, TOO_LARGE), NoFit)
    assert summarise(tree).nodes_ready == NODES
    assert steps.total == 0


@pytest.mark.invariant(14)
async def test_many_changes_are_counted_in_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    await site.fabrics.prepare(SPEC, (ASKED,))
    for number in range(0, NODES, 2):
        site.put(number, devices=4)
        site.fabrics.of(SPEC)  # as others ask that place nothing
    steps = Steps(monkeypatch)
    watching = asyncio.create_task(steps.watch())
    await site.fabrics.prepare(SPEC, (ASKED,))
    watching.cancel()
    assert steps.most <= 2 * STEP_NODES
    steps.total = 0
    assert place(site.fabrics.of(SPEC), ASKED) == place(site.fresh(), ASKED)


@pytest.mark.invariant(14)
async def test_changes_that_came_all_at_once_are_read_in_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site()
    await site.fabrics.prepare(SPEC)
    for number in range(NODES):
        site.put(number, devices=4)
    steps = Steps(monkeypatch)
    watching = asyncio.create_task(steps.watch())
    await site.fabrics.prepare(SPEC)
    watching.cancel()
    assert steps.most <= 2 * STEP_NODES
    assert site.fabrics.of(SPEC).nodes == site.fresh().nodes
    assert steps.total == NODES, "each once"


@pytest.mark.parametrize("seed", range(3))
async def test_changes_while_it_is_made_are_in_it(seed: int) -> None:
    site, rng = Site(), random.Random(seed)

    async def change() -> None:
        while True:
            kind, number = rng.randrange(4), rng.randrange(NODES + 50)
            if kind == 0:
                site.drop(number)
            elif kind == 1:
                site.put(number, leaf=rng.randrange(NODES // LEAF + 2))
            else:
                site.put(number, devices=rng.randrange(9))
            if kind == 3:
                site.fabrics.of(SPEC)
            await asyncio.sleep(0)

    changing = asyncio.create_task(change())
    await site.fabrics.prepare_summary(SPEC)
    await site.fabrics.prepare(SPEC, (ASKED,))
    assert not changing.done()
    changing.cancel()
    tree, fresh = site.fabrics.of(SPEC), site.fresh()
    assert (tree.leaves, tree.parts, tree.nodes) == (fresh.leaves, fresh.parts, fresh.nodes)
    assert tree.version == fresh.version
    assert summarise(tree) == summarise(fresh)
    assert place(tree, ASKED) == place(fresh, ASKED)


async def test_two_specs_of_one_domain_prepare_beside_each_other_and_end() -> None:
    """A reconciliation began with the spec of before, another has the new one."""
    site = Site()
    asked = [site.fabrics.prepare(spec, (ASKED,)) for spec in (SPEC, OTHER, SPEC, OTHER)]
    async with asyncio.timeout(60):
        await asyncio.gather(*asked)
    for spec in (SPEC, OTHER):
        assert site.fabrics.of(spec).version == site.fresh(spec).version
