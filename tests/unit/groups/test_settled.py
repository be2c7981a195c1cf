"""`Plan.settled`: of all nodes, only those of its instances mean anything to a ScenarioGroup."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.support.builders import RESOURCE
from tests.support.group_world import World, wanted

from pdserve.groups.plan import plan
from pdserve.topology import Fabric, NodeView

DRAWING = "p1 a  n1:8 n2:8 n3:8\np1 b  n4:8 n5:8 n6:8"
Change = Callable[[NodeView], NodeView | None]
CHANGES: dict[str, Change] = {
    "goes": lambda _node: None,
    "is not ready": lambda node: replace(node, ready=False),
    "is cordoned": lambda node: replace(node, unschedulable=True),
    "is full": lambda node: replace(node, used={RESOURCE: 8}),
    "has sick devices": lambda node: replace(node, unhealthy=frozenset({0, 1})),
    "has another label": lambda node: replace(node, labels={**node.labels, "fabric/leaf": "c"}),
    "becomes free": lambda node: replace(node, used={}),
}


def changed(
    fabric: Fabric, nodes: set[str], change: Callable[[NodeView], NodeView | None]
) -> Fabric:
    return fabric.renewed({name: change(fabric.nodes[name]) for name in sorted(nodes)}, {})


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("counts", "groups"), [("1P1D", 1), ("1P1D", 2), ("2P1D", 1)])
def test_no_node_of_others_changes_the_plan_of_a_settled_group(
    counts: str, groups: int, change: Change
) -> None:
    world = World(DRAWING, wanted(counts, groups, devices=4))
    made = world.settle()
    assert made.settled
    seen, fabric = world.observation(), world.fabric()
    used = {m.node for i in seen.instances for m in i.members}
    others = sorted(set(fabric.nodes) - used)
    assert others
    rng = random.Random(1)
    for chosen in (set(others), {others[0]}, set(rng.sample(others, 2))):
        assert plan(seen, changed(fabric, chosen, change)) == plan(seen, fabric)


@pytest.mark.parametrize("happens", ["an instance fails", "more is wanted", "its node is cordoned"])
def test_what_has_something_to_do_or_to_wait_for_is_not_settled(happens: str) -> None:
    world = World("p1 a  n1:8 n2:8", wanted("1P1D", 1, devices=8))
    assert world.settle().settled
    seen, fabric = world.observation(), world.fabric()
    if happens == "an instance fails":
        first, *rest = seen.instances
        seen = replace(seen, instances=(replace(first, fault="PodFailed"), *rest))
    elif happens == "more is wanted":  # and no node has room for it
        seen = replace(seen, wanted=replace(seen.wanted, replicas=2))
    else:
        node = seen.instances[0].nodes[0]
        fabric = changed(fabric, {node}, CHANGES["is cordoned"])
    assert not plan(seen, fabric).settled
