"""A fabric that followed changes answers as one that is built from what is there now."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, Literal

import pytest
from tests.support.builders import LEVELS, RESOURCE, draw

from pdserve.placement import GroupRequest, Shape, place, place_instance
from pdserve.placement.capacity import capacity_for
from pdserve.topology import (
    Fabric,
    FabricLevel,
    NodeView,
    Reservation,
    TreeSpec,
    build_fabric,
    summarise,
)
from pdserve.topology.spec import HOSTNAME_LABEL

CARDS = "example.com/card"
STEPS = 60
HOSTS = (*LEVELS, FabricLevel("host", HOSTNAME_LABEL, 0))
ASKED = (
    GroupRequest(1, 2, Shape(RESOURCE, 2), Shape(RESOURCE, 2)),
    GroupRequest(2, 1, Shape(RESOURCE, 3), Shape(RESOURCE, 2)),
    GroupRequest(1, 1, Shape(RESOURCE, 4), Shape(CARDS, 1)),
    GroupRequest(
        9,
        9,
        Shape(RESOURCE, 8, requests=(("memory", 2),)),
        Shape(RESOURCE, 8),
        exclude=frozenset({"n03", "n14"}),
    ),
)


class Site:
    """Nodes and reservations that change at random, and the fabric that follows them."""

    def __init__(self, rng: random.Random, spec: TreeSpec) -> None:
        self.rng = rng
        self.spec = spec
        self.nodes: dict[str, NodeView] = {}
        self.promised: dict[str, int] = {}
        for number in range(12):
            self._join(f"n{number:02d}")
        self.fabric = self.fresh()

    def fresh(self) -> Fabric:
        promises = [Reservation("x", n, RESOURCE, k) for n, k in self.promised.items()]
        return build_fabric(self.spec, [*self.nodes.values()], promises)

    def step(self) -> None:
        """A few changes at once, as a reader finds them who comes by now and then."""
        changed = {self._change() for _ in range(self.rng.randint(1, 3))}
        wanted = self.spec.selector.items()
        views = {
            name: node
            if (node := self.nodes.get(name)) and all(node.labels.get(k) == v for k, v in wanted)
            else None
            for name in changed
        }
        reserved = {(name, RESOURCE): count for name, count in self.promised.items()}
        self.fabric = self.fabric.renewed(views, reserved)

    def _change(self) -> str:
        rng = self.rng
        name = rng.choice([*self.nodes, f"n{rng.randint(0, 15):02d}"])
        node = self.nodes.get(name)
        if node is None:
            self._join(name)
            return name
        kind = rng.randrange(7)
        if kind == 0:
            del self.nodes[name]
            self.promised.pop(name, None)
        elif kind == 1:
            self._join(name)
        elif kind == 2:
            self.nodes[name] = replace(node, ready=not node.ready)
        elif kind == 3:
            self.nodes[name] = replace(node, used={RESOURCE: rng.randint(0, 8)})
        elif kind == 4:
            self.nodes[name] = replace(node, unhealthy=frozenset({rng.randint(0, 7)}))
        elif kind == 5:
            self.nodes[name] = replace(node, problems=(f"odd {rng.randint(0, 9)}",))
        else:
            self.promised[name] = rng.randint(0, 4)
        return name

    def _join(self, name: str) -> None:
        rng = self.rng
        labels = {"pool": rng.choice(("llm", "llm", "llm", "web")), HOSTNAME_LABEL: name}
        for level in LEVELS:
            if rng.random() < 0.9:  # few values, so that leaves end, begin and have two parents
                labels[level.node_label] = rng.choice("abc")
        have = {RESOURCE: rng.choice((4, 8)), CARDS: rng.randint(0, 2)}
        self.nodes[name] = NodeView(name, labels=labels, capacity=have, allocatable=have)


@pytest.mark.parametrize("levels", [LEVELS, HOSTS], ids=["to the leaf", "to the host"])
@pytest.mark.parametrize("missing", ["Exclude", "UnknownDomain"])
@pytest.mark.parametrize("seed", range(4))
def test_a_renewed_fabric_is_the_one_that_would_be_built(
    seed: int, missing: Literal["Exclude", "UnknownDomain"], levels: tuple[FabricLevel, ...]
) -> None:
    rng = random.Random(f"{seed} {missing} {len(levels)}")
    site = Site(rng, TreeSpec("test", levels, {"pool": "llm"}, missing=missing))
    for _ in range(STEPS):
        site.step()
        now, fresh = site.fabric, site.fresh()
        assert list(now.nodes.items()) == list(fresh.nodes.items())
        for what in ("leaves", "parts"):
            assert list(getattr(now, what).items()) == list(getattr(fresh, what).items())
        assert (now.version, now.problems) == (fresh.version, fresh.problems)
        assert {n: now.free(n, RESOURCE) for n in now.nodes} == {
            n: fresh.free(n, RESOURCE) for n in fresh.nodes
        }
        if rng.random() < 0.5:  # what is kept of leaves is asked for after one change or several
            assert summarise(now) == summarise(fresh)
        for request in ASKED:
            if rng.random() < 0.5:
                mine, theirs = capacity_for(now, request), capacity_for(fresh, request)
                assert (mine.leaves, mine.nodes) == (theirs.leaves, theirs.nodes)
                assert place(now, request) == place(fresh, request)
                some = [
                    Reservation("y", n, RESOURCE, 8) for n in (*now.nodes,)[:: rng.randint(1, 9)]
                ]
                now_view, fresh_view = now.reserve(some), fresh.reserve(some)
                assert place(now_view, request) == place(fresh_view, request)
                one, other = (
                    place_instance(v, request, "decode", ()) for v in (now_view, fresh_view)
                )
                assert one == other


@pytest.mark.parametrize("request_", [ASKED[0], ASKED[3]], ids=["a place", "a refusal"])
def test_after_a_change_of_a_node_only_its_leaf_is_looked_at(
    request_: GroupRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = "\n".join(
        f"p{leaf % 5} l{leaf:02d} " + " ".join(f"n{leaf:02d}{k}:8" for k in range(6))
        for leaf in range(40)
    )
    tree = build_fabric(TreeSpec("test", LEVELS), draw(drawn))
    place(tree, request_)
    summarise(tree)
    node = tree.nodes["n010"]
    tree = tree.renewed({node.name: replace(node, used={RESOURCE: 8})}, {})
    looked_at: set[str] = set()
    blocked = Fabric.blocked

    def counted(fabric: Fabric, name: str, *args: Any) -> Any:
        looked_at.add(name)
        return blocked(fabric, name, *args)

    monkeypatch.setattr(Fabric, "blocked", counted)
    place(tree, request_)
    summarise(tree)
    assert looked_at == {f"n01{k}" for k in range(6)}


def test_no_former_fabric_is_kept_alive() -> None:
    site = Site(random.Random(5), TreeSpec("test", LEVELS, {"pool": "llm"}))
    for number in range(50):
        site.step()
        capacity_for(site.fabric, ASKED[number % len(ASKED)])
        summarise(site.fabric)
    found, held = [site.fabric], set()
    while found:
        fabric = found.pop()
        held.add(id(fabric))
        for known in fabric.memo.values():
            capacity = getattr(known, "capacity", None)
            if capacity is not None and id(capacity.fabric) not in held:
                found.append(capacity.fabric)
        if fabric.parent is not None:
            found.append(fabric.parent)
    assert len(held) == 1
