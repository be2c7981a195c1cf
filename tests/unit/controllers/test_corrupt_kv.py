"""The operator replaces an instance that makes KV arrive corrupt, elsewhere, and says which."""

from __future__ import annotations

import pytest

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import service


def counted(bad: str, said: object) -> object:
    """A report of 90 pulls from each peer, of which 9 corrupt where `bad` is an end of the pair."""
    assert isinstance(said, dict)
    pulls = dict.fromkeys(said["up"], 90)
    here = {peer: 9 for peer in pulls if bad in (peer, said.get("me"))}
    return {**said, "pulls": pulls, **({"corrupt": here} if here else {})}


@pytest.mark.invariant(1)
@pytest.mark.parametrize("role", ["p", "d"])
@virtual_time
async def test_who_makes_kv_corrupt_is_replaced_on_another_node(role: str) -> None:
    world = World()
    world.nodes(["a", "b"], per_leaf=3)
    world.domain()
    world.create(PDSERVICES, service(prefill=(2, 2), decode=(2, 2)))
    async with world.running(), world.operator() as task:
        await world.until(world.service_ready, 60)
        before = world.routed()
        bad = next(name for name in sorted(before) if f"-{role}1-" in name)
        node = next(p for p in world.instances() if p["metadata"]["name"] == bad)["spec"]
        for engine in world.engines.by_ip.values():
            me, decodes = engine.pod, "-d" in engine.pod
            if decodes:
                engine.spoil = lambda said, me=me: counted(bad, {**said, "me": me})  # type: ignore[misc,dict-item]
        await world.until(lambda: bad not in world.routed(), 120)
        told = world.condition(SCENARIO_GROUPS, "shop-chat", "Progressing")
        assert told is not None
        assert f"{bad} (KvCorrupt)" in told["message"]
        for engine in world.engines.by_ip.values():
            engine.spoil = None  # with that instance gone
        await world.until(world.service_ready, 120)
        assert before - world.routed() == {bad}, "no other instance was touched"
        (new,) = (p for p in world.instances() if p["metadata"]["name"] not in before)
        assert new["spec"]["nodeName"] != node["nodeName"]
        (group,) = world.seen(SCENARIO_GROUPS)
        (repair,) = group["status"]["repairs"]
        assert repair["fault"] == "KvCorrupt"
        assert "arrived corrupt" in repair["message"]
        assert repair["suspectNode"] == node["nodeName"]
        assert any(bad in event for event in world.events("InstanceSubstituted"))
        assert not task.done()
