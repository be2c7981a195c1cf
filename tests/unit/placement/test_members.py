"""Instances of several members: on one node that has room, else in one leaf; all or nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.builders import RESOURCE, fabric, request

from pdserve.placement import (
    GroupRequest,
    InstancePlacement,
    NoFit,
    PlacedInstance,
    Placement,
    fatal_nodes,
    only_node,
    place,
    place_instance,
    site_of,
)
from pdserve.terms import ROLES
from pdserve.topology import Fabric


def asked(counts: str, prefill: int, decode: int | None = None, members: tuple[int, int] = (2, 2)
          ) -> GroupRequest:  # fmt: skip
    """`asked("1P2D", 4)`: instances of two members of 4 devices each."""
    made = request(counts, prefill, decode)
    return replace(
        made,
        prefill_shape=replace(made.prefill_shape, members=members[0]),
        decode_shape=replace(made.decode_shape, members=members[1]),
    )


def where(found: Placement | NoFit) -> str:
    """`P:n1+n2 D:n3+n3`."""
    if isinstance(found, NoFit):
        return "nowhere"
    return " ".join(f"{a.role[0].upper()}:{'+'.join(a.nodes)}" for a in found.assignments)


CASES = [
    ("a node each where one has room for both", "p1 a  n1:4 n2:4", asked("1P1D", 2),
     "P:n1+n1 D:n2+n2"),
    ("else two nodes of a leaf", "p1 a  n1:4 n2:4 n3:4 n4:4", asked("1P1D", 4),
     "P:n1+n2 D:n3+n4"),
    ("whole nodes before fuller ones", "p1 a  n1:2 n2:2 n3:4", asked("1P1D", 2),
     "P:n3+n3 D:n1+n2"),
    ("not two leaves for one instance", "p1 a  n1:4\np1 b  m1:4\np1 c  k1:4 k2:4", asked("1P1D", 4),
     "nowhere"),
    ("but a leaf for each", "p1 a  n1:4 n2:4\np1 b  m1:4 m2:4", asked("1P1D", 4),
     "P:m1+m2 D:n1+n2"),
    ("members by role", "p1 a  n1:4 n2:4 n3:4", asked("1P1D", 4, members=(1, 2)),
     "P:n1 D:n2+n3"),
    ("sizes that do not divide", "p1 a  n1:6 n2:6 n3:4", asked("1P1D", 3, 2),
     "P:n1+n1 D:n3+n3"),
    ("split where sizes do not divide", "p1 a  n1:3 n2:3 n3:2 n4:2", asked("1P1D", 3, 2),
     "P:n1+n2 D:n3+n4"),
]  # fmt: skip


@pytest.mark.parametrize(("tree", "ask", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_where_members_go(tree: str, ask: GroupRequest, want: str) -> None:
    assert where(place(fabric(tree), ask)) == want


def test_one_more_instance_goes_to_a_leaf_that_has_room_for_all_members() -> None:
    tree = fabric("p1 a  n1:0/4 n2:0/4 n3:4\np1 b  m1:4 m2:4")
    there = [PlacedInstance("p", "prefill", ("n1", "n2"))]
    found = place_instance(tree, asked("1P1D", 4), "decode", there)
    assert isinstance(found, InstancePlacement)
    assert (found.nodes, found.leaf[-1]) == (("m1", "m2"), "b")
    assert [(r.node, r.devices) for r in found.reservations] == [("m1", 4), ("m2", 4)]
    full = tree.reserve(found.reservations)
    none = place_instance(full, asked("1P1D", 4), "decode", there)
    assert isinstance(none, NoFit)
    assert f"no node for one more decode (2 x 4 {RESOURCE})" in none.message


def test_what_one_node_takes_with_it() -> None:
    spread = site_of(
        [PlacedInstance("p", "prefill", ("n1", "n2")), PlacedInstance("d", "decode", ("n2", "n3"))]
    )
    assert only_node([spread]) == "n2"
    assert fatal_nodes([spread]) == {"n1", "n2", "n3"}
    more = site_of(
        [PlacedInstance("p", "prefill", ("n1", "n4")), PlacedInstance("d", "decode", ("n4", "n5"))]
    )
    assert only_node([spread, more]) is None
    assert fatal_nodes([spread, more]) == {"n1"}


def test_a_scenario_is_kept_off_a_node_that_all_its_instances_would_share() -> None:
    tree = fabric("p1 a  n1:8 n2:4 n3:4")
    found = place(tree, asked("1P1D", 2))
    assert isinstance(found, Placement)
    assert only_node([found.site]) is None


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    free=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=3),
    counts=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    members=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_a_place_is_found_whenever_there_is_one(
    free: list[list[int]],
    counts: tuple[int, int],
    sizes: tuple[int, int],
    members: tuple[int, int],
) -> None:
    tree = fabric(
        "\n".join(
            f"p1 l{k}  " + " ".join(f"n{k}{n}:{have}/8" for n, have in enumerate(leaf))
            for k, leaf in enumerate(free)
        )
    )
    ask = asked(f"{counts[0]}P{counts[1]}D", *sizes, members=members)
    found = place(tree, ask)
    if isinstance(found, NoFit):
        assert not _possible(free, counts, sizes, members)
        return
    taken: Counter[str] = Counter()
    for assignment in found.assignments:
        shape = ask.shape(assignment.role)
        assert len(assignment.nodes) == shape.members
        assert len({tree.leaf(n) for n in assignment.nodes}) == 1
        taken.update({n: shape.devices * assignment.nodes.count(n) for n in set(assignment.nodes)})
    assert all(tree.free(n, RESOURCE) >= devices for n, devices in taken.items())
    assert [len(found.on(role)) for role in ROLES] == list(counts)
    _check_reserved(tree, found, taken)


def _check_reserved(tree: Fabric, found: Placement, taken: Counter[str]) -> None:
    after = tree.reserve(found.reservations)
    for node, devices in taken.items():
        assert after.free(node, RESOURCE) == tree.free(node, RESOURCE) - devices


def _possible(
    free: list[list[int]],
    counts: tuple[int, int],
    sizes: tuple[int, int],
    members: tuple[int, int],
) -> bool:
    """By trying every leaf for every instance, and every node for every member of those in it."""

    def fits(leaf: tuple[int, ...], parts: tuple[int, ...]) -> bool:
        if not parts:
            return True
        options = {k: have for k, have in enumerate(leaf) if have >= parts[0]}
        return any(
            fits((*leaf[:k], have - parts[0], *leaf[k + 1 :]), parts[1:])
            for k, have in options.items()
        )

    def parts(p: int, d: int) -> tuple[int, ...]:
        every = [sizes[0]] * (p * members[0]) + [sizes[1]] * (d * members[1])
        return tuple(sorted(every, reverse=True))

    left = {counts}
    for leaf in free:
        left |= {
            (p - x, d - y)
            for p, d in left
            for x in range(p + 1)
            for y in range(d + 1)
            if fits(tuple(leaf), parts(x, y))
        }
    return (0, 0) in left
