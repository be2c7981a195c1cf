"""What one node holds: devices, what binds beside them, and how a leaf adds it up."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
from tests.support.builders import LABELS, RESOURCE, SPEC, fabric, request

from pdserve.placement import GroupRequest, NoFit, Placement, Shape, place, place_instance, prepare
from pdserve.placement.beside import Caps, Offer
from pdserve.placement.capacity import Capacity, NodeRoom, Room, capacity_for
from pdserve.terms import ROLES
from pdserve.topology import Fabric, NodeView, Reservation, build_fabric, summarise
from pdserve.topology.fabric import MAX_KEPT

GPU = "example.com/gpu"
LEAF = ("p1", "a")


def node(devices: dict[str, int], **offers: int) -> Capacity:
    """What a node has for prefills of 2 devices and 2 of memory, decodes of 2 and 1."""
    labels = {LABELS[0]: LEAF[0], LABELS[1]: LEAF[1]}
    view = NodeView("n1", labels=labels, capacity=devices, allocatable=devices, offers=offers)
    other = GPU if GPU in devices else RESOURCE
    prefill = Shape(RESOURCE, 2, requests=(("memory", 2),))
    decode = Shape(other, 2, requests=(("memory", 1),))
    return capacity_for(build_fabric(SPEC, [view]), GroupRequest(1, 1, prefill, decode))


SHARED, OWN = {RESOURCE: 8}, {RESOURCE: 8, GPU: 6}
ROOMS: list[tuple[str, dict[str, int], int, NodeRoom]] = [
    ("devices alone", SHARED, 8, NodeRoom("n1", 8, 8)),
    ("as if it had fewer devices", SHARED, 2, NodeRoom("n1", 2, 4, (2, 0))),
    ("one of either", SHARED, 1, NodeRoom("n1", 0, 2, (1,))),
    ("nothing", SHARED, 0, NodeRoom("n1", 0, 0)),
    ("some of each", SHARED, 5, NodeRoom("n1", 4, 8, (4, 3, 1))),
    ("devices of their own alone", OWN, 11, NodeRoom("n1", 8, 6)),
    ("memory for fewer", OWN, 3, NodeRoom("n1", 2, 6, (3, 1))),
    ("memory for decodes only", OWN, 1, NodeRoom("n1", 0, 2)),
]


@pytest.mark.parametrize(
    ("devices", "memory", "want"), [r[1:] for r in ROOMS], ids=[r[0] for r in ROOMS]
)
def test_what_a_node_offers(devices: dict[str, int], memory: int, want: NodeRoom) -> None:
    capacity = node(devices, memory=memory)
    held = capacity.nodes[LEAF]
    assert held == ((want,) if want.prefill or want.decode else ())


def test_a_node_short_of_memory_is_one_of_fewer_devices_where_that_says_it_all() -> None:
    labels = {LABELS[0]: LEAF[0], LABELS[1]: LEAF[1]}
    view = NodeView("n1", labels=labels, allocatable={RESOURCE: 8}, offers={"memory": 3})
    shape = Shape(RESOURCE, 2, requests=(("memory", 1),))
    capacity = capacity_for(build_fabric(SPEC, [view]), GroupRequest(1, 1, shape, shape))
    assert capacity.nodes[LEAF] == (NodeRoom("n1", 6, 6),)
    assert not capacity.uneven(LEAF), "sums say it"


@pytest.mark.parametrize(("decodes", "fits"), [(1, True), (2, False)])
def test_what_one_role_takes_beside_its_devices_may_be_the_devices_of_the_other(
    decodes: int, fits: bool
) -> None:
    labels = {LABELS[0]: LEAF[0], LABELS[1]: LEAF[1]}
    view = NodeView("n1", labels=labels, allocatable={RESOURCE: 4, GPU: 4})
    both, plain = Shape(RESOURCE, 2, requests=((GPU, 1),)), Shape(GPU, 2)
    tree = build_fabric(SPEC, [view])
    for asked in (
        GroupRequest(2, decodes, both, plain),
        GroupRequest(decodes, 2, plain, both),
    ):
        assert isinstance(place(tree, asked), Placement) is fits


OFFERS = [
    ("own devices: all of both just suffice", Offer(4, 6, (2, 2), False), (3, 2), 12, False),
    ("own devices: one less", Offer(4, 6, (2, 2), False), (3, 2), 11, True),
    ("own devices: none of a role", Offer(0, 6, (2, 2), False), (9, 2), 6, False),
    ("one pool: prefills alone just suffice", Offer(8, 8, (2, 4), True), (3, 1), 12, False),
    ("one pool: prefills alone exceed", Offer(8, 8, (2, 4), True), (3, 1), 11, True),
    ("one pool: decodes alone just suffice", Offer(8, 8, (2, 4), True), (1, 6), 12, False),
    ("one pool: decodes alone exceed", Offer(8, 8, (2, 4), True), (1, 6), 11, True),
    ("one pool, one role barred", Offer(0, 8, (2, 4), True), (0, 6), 11, True),
    ("nothing is taken of it", Offer(8, 8, (2, 4), True), (0, 0), 0, False),
]


@pytest.mark.parametrize(
    ("offer", "each", "have", "may"), [o[1:] for o in OFFERS], ids=[o[0] for o in OFFERS]
)
def test_whether_instances_may_take_more_than_there_is(
    offer: Offer, each: tuple[int, int], have: int, may: bool
) -> None:
    assert offer.may_exceed(*each, have) is may


FRONTIERS = [
    ("one pool", Offer(8, 8, (2, 3), True), (2, 2, 1, 0, 0)),
    ("own devices", Offer(4, 6, (2, 3), False), (2, 2, 2)),
    ("no prefill may be there", Offer(0, 8, (2, 3), True), (2,)),
    ("no decode may be there", Offer(8, 0, (4, 3), True), (0, 0, 0)),
]


@pytest.mark.parametrize(
    ("offer", "want"), [f[1:] for f in FRONTIERS], ids=[f[0] for f in FRONTIERS]
)
def test_most_decodes_beside_prefills(offer: Offer, want: tuple[int, ...]) -> None:
    assert offer.frontier() == want


CAPS = [
    ("no more than devices hold", Caps(((99, 1, 1),), 9, 9, False), (3, 2, 1)),
    ("memory", Caps(((4, 2, 1),), 9, 9, False), (3, 2, 0)),
    ("memory ends the prefills", Caps(((3, 2, 1),), 9, 9, False), (3, 1)),
    ("of which decodes take none", Caps(((4, 2, 0),), 9, 9, False), (3, 2, 1)),
    ("the scarcer of two", Caps(((4, 2, 1), (2, 1, 1)), 9, 9, False), (2, 1, 0)),
    ("a port for one decode", Caps((), 9, 1, False), (1, 1, 1)),
    ("a port for one prefill", Caps((), 1, 9, False), (3, 2)),
    ("no port for a prefill", Caps((), 0, 9, False), (3,)),
    ("roles that share a port", Caps((), 9, 9, True), (3, 0, 0)),
]


@pytest.mark.parametrize(("caps", "want"), [c[1:] for c in CAPS], ids=[c[0] for c in CAPS])
def test_what_binds_beside_devices(caps: Caps, want: tuple[int, ...]) -> None:
    assert caps.frontier((3, 2, 1)) == want


MOST = [
    ("equal sizes", Room(4, 4, 32, 8, 8), [4, 3, 2, 1, 0, -1]),
    ("a prefill in place of two decodes", Room(2, 4, 16, 8, 4), [4, 2, 0, -1]),
    ("a decode in place of two prefills", Room(4, 2, 16, 4, 8), [2, 1, 1, 0, 0, -1]),
    ("holes too small for decodes", Room(5, 1, 20, 4, 8), [1, 1, 1, 1, 0, 0, -1]),
    ("own devices", Room(2, 3, 40, 8, 8, False), [3, 3, 3, -1]),
    ("a frontier", Room(3, 5, 8, 3, 2, True, (5, 2, 1)), [5, 2, 1, -1, -1]),
]


@pytest.mark.parametrize(("room", "want"), [m[1:] for m in MOST], ids=[m[0] for m in MOST])
def test_most_decodes_of_a_leaf_beside_prefills(room: Room, want: list[int]) -> None:
    assert [room.most_decodes(p) for p in range(len(want))] == want
    for p, most in enumerate(want):
        assert room.fits(p, most) is (most >= 0 or most == -1)
        assert not room.fits(p, most + 1)


@pytest.mark.parametrize(
    ("drawing", "sizes", "want"),
    [
        ("p1 a  n1:7 n2:9", (4, 2), Room(3, 7, 16, 4, 2)),
        ("p1 a  n1:7 n2:0/8", (4, 4), Room(1, 1, 7, 4, 4)),
        ("p1 a  n1:8!NotReady n2:8", (3, 2), Room(2, 4, 8, 3, 2, True, (4, 2, 1))),
        ("p1 a  n1:8", (3, 2), Room(2, 4, 8, 3, 2, True, (4, 2, 1))),
        ("p1 a  n1:8!NotReady", (4, 4), Room(0, 0, 0, 4, 4)),
    ],
)
def test_the_room_of_a_leaf(drawing: str, sizes: tuple[int, int], want: Room) -> None:
    assert capacity_for(fabric(drawing), request("1P1D", *sizes)).leaves[LEAF] == want


def test_the_room_of_several_leaves_is_that_of_each_added_up() -> None:
    tree = fabric("p1 a  n1:8\np1 b  m1:7\np2 c  k1:9")
    for sizes, frontier in (
        ((4, 2), None),
        ((2, 3), (7, 7, 6, 6, 5, 4, 4, 3, 2, 2, 1, 0)),
        ((3, 2), (11, 10, 9, 7, 6, 4, 3, 1)),
    ):
        capacity = capacity_for(tree, request("1P1D", *sizes))
        found = capacity.together(tree.leaves)
        assert found.free == 24
        assert found.frontier == frontier
        assert capacity.part((), tuple(tree.leaves)) == found
        assert (found.prefill_size, found.decode_size) == sizes


def test_room_is_counted_for_as_many_instances_as_a_group_may_have() -> None:
    asked = request("1P1D", 1)
    shape = replace(asked.prefill_shape, members=2)
    twice = replace(asked, prefill_shape=shape, decode_shape=shape)
    room = capacity_for(fabric("p1 a  n1:300"), twice).leaves[LEAF]
    assert (room.prefills, room.decodes, room.prefill_size, room.decode_size) == (64, 150, 2, 2)
    assert room.frontier == tuple(150 - p for p in range(65))


def test_what_was_counted_last_is_remembered() -> None:
    tree = fabric("p1 a  n1:300")

    def leaves(ratio: str, size: int) -> object:
        return capacity_for(tree, request(ratio, size)).leaves

    first = leaves("1P1D", 1)
    for size in range(2, MAX_KEPT + 1):
        assert leaves("1P1D", size) is leaves("3P3D", size)
    assert leaves("1P1D", 1) is first
    second = leaves("1P1D", 2)
    leaves("1P1D", MAX_KEPT + 1)
    assert len(tree.memo) == MAX_KEPT
    assert leaves("1P1D", 2) is second, "the one counted first has gone"
    assert leaves("1P1D", 1) is not first


def test_a_fabric_without_readers_needs_no_garbage_collector() -> None:
    def there() -> int:
        return sum(type(obj) is Fabric for obj in gc.get_objects())

    gc.collect()
    before = there()
    gc.disable()
    try:
        tree, asked = fabric("p1 a  n1:8\np2 b  m1:8"), request("1P1D", 4)
        taken = tree.reserve([Reservation("x", "n1", RESOURCE, 4)])
        place(taken, asked)
        place(tree, request("9P9D", 8))
        prepare(tree, request("2P2D", 2), 1)
        summarise(tree)
        later = tree.renewed({}, {})
        place(later, asked)
        del tree, taken, later
        assert there() == before
    finally:
        gc.enable()


def test_a_tree_with_more_promised_is_counted_once_too() -> None:
    tree, asked = fabric("p1 a  n1:8\np2 b  m1:8"), request("1P1D", 4)
    taken = tree.reserve([Reservation("x", "n1", RESOURCE, 4)])
    found = capacity_for(taken, asked)
    assert capacity_for(taken, asked).leaves is found.leaves
    assert capacity_for(tree, asked).leaves[LEAF].prefills == 2
    assert found.leaves[LEAF].prefills == 1
    again = capacity_for(taken.reserve([Reservation("y", "m1", RESOURCE, 8)]), asked)
    assert {leaf[-1]: room.prefills for leaf, room in again.leaves.items()} == {"a": 1, "b": 0}


def test_a_required_group_without_an_instance_yet_is_refused_anywhere() -> None:
    found = place_instance(fabric("p1 a  n1:4"), request("1P1D", mode="Required"), "decode", [])
    assert isinstance(found, NoFit)
    assert "4 devices are free on usable nodes, none has 8 together" in found.message


def test_counts_and_shapes_by_role() -> None:
    asked = request("2P5D", 8, 4)
    assert [(asked.count(role), asked.shape(role).devices) for role in ROLES] == [(2, 8), (5, 4)]
