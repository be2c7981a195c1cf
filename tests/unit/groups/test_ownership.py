"""Which places a plan keeps, for which slots; and what a start finds again in peer tables."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
from tests.support.builders import RESOURCE, fabric
from tests.support.group_life import world
from tests.support.group_world import World, wanted

from pdserve.groups import types as t
from pdserve.groups.claims import recalled, with_room
from pdserve.groups.ownership import kept_claims
from pdserve.groups.types import DeviceClaim, Observation
from pdserve.groups.view import PlanDraft
from pdserve.terms import Role
from pdserve.topology import Reservation

NODES = "p1 a  n1:8 n2:8"


def claim(name: str, devices: int = 2, node: str = "n1", slot: str = "") -> DeviceClaim:
    """The claim of pod `0-p1-abcdef` of group 0, kept for `slot` (its own: `0-p1`)."""
    pod = f"shop-chat-{name}"
    slot = f"shop-chat-{slot}" if slot else pod[: pod.index("-", len("shop-chat-0-"))]
    index, part = slot.removeprefix("shop-chat-").split("-")
    role: Role = "prefill" if part.startswith("p") else "decode"
    return DeviceClaim(pod, pod, slot, role, int(index), node, ((RESOURCE, devices),))


class Case(NamedTuple):
    """Claims, and which of them are kept for which slots."""

    name: str
    claims: tuple[DeviceClaim, ...]
    kept: dict[str, str]
    groups: int = 1
    devices: tuple[int, int] = (2, 2)
    members: int = 1


CASES = [
    Case("all of them", (claim("0-p0-a"), claim("0-d0-a")), {"0-p0-a": "0-p0", "0-d0-a": "0-d0"}),
    Case(
        "the newer of two of one slot",
        (claim("0-p0-b"), claim("0-p0-a"), claim("0-d0-a")),
        {"0-p0-a": "0-p0", "0-d0-a": "0-d0"},
    ),
    Case(
        "the older one where another slot has none",
        (claim("0-p0-b"), claim("0-p0-a")),
        {"0-p0-a": "0-p0", "0-p0-b": "0-d0"},
    ),
    Case(
        "those of the group that left most",
        (claim("0-p0-a"), claim("1-p0-a"), claim("1-d0-a")),
        {"1-p0-a": "1-p0", "1-d0-a": "1-d0"},
    ),
    Case(
        "what another group left, of the same role",
        (claim("0-p0-a"), claim("1-p0-a"), claim("1-d0-a"), claim("7-p0-a"), claim("7-d0-a")),
        {"1-p0-a": "1-p0", "1-d0-a": "1-d0", "7-p0-a": "7-p0", "7-d0-a": "7-d0"},
        groups=2,
    ),
    Case(
        "what a slot that is wanted no more left",
        (claim("0-p0-a"), claim("0-p5-a"), claim("0-d0-a", node="gone")),
        {"0-p0-a": "0-p0", "0-p5-a": "0-d0"},
    ),
    Case(
        "for the slot that it was kept for",
        (claim("0-p0-a", slot="0-d0"), claim("0-d0-a", slot="0-p0")),
        {"0-p0-a": "0-d0", "0-d0-a": "0-p0"},
    ),
    Case(
        "where it fits",
        (claim("0-p0-a", 2), claim("0-d0-a", 4)),
        {"0-d0-a": "0-p0", "0-p0-a": "0-d0"},
        devices=(4, 2),
    ),
    Case(
        "a larger one rather than a smaller one",
        (claim("0-p0-a", 1), claim("0-p1-a", 6), claim("0-d0-a", 2)),
        {"0-p1-a": "0-p0", "0-d0-a": "0-d0"},
        devices=(4, 2),
    ),
    Case(
        "smaller ones until they are enough together",
        (claim("0-p0-a"), claim("0-p1-a"), claim("0-p2-a"), claim("0-d0-a")),
        {"0-p0-a": "0-p0", "0-p2-a": "0-p0", "0-d0-a": "0-d0"},
        devices=(4, 2),
    ),
    Case(
        "whole instances first",
        (claim("0-p0-b"), claim("0-p0-a"), claim("0-p0-a-m1"), claim("0-d0-a"),
         claim("0-d0-a-m1")),
        {"0-p0-a": "0-p0", "0-p0-a-m1": "0-p0", "0-d0-a": "0-d0", "0-d0-a-m1": "0-d0"},
        members=2,
    ),
]  # fmt: skip


@pytest.mark.invariant(13)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_as_many_places_are_kept_as_slots_lack_one(case: Case) -> None:
    prefill, decode = case.devices
    target = wanted("1P1D", case.groups, members=case.members)
    target = replace(
        target,
        prefill=replace(target.prefill, devices=prefill),
        decode=replace(target.decode, devices=decode),
    )
    seen = Observation(target, (), {}, {}, {}, (), frozenset(), 0.0, claims=case.claims)
    found = kept_claims((), (), seen, PlanDraft(fabric(NODES), claims=list(case.claims)))
    assert {_short(c.pod): _short(c.slot) for c in found} == case.kept


def _short(name: str) -> str:
    return name.removeprefix("shop-chat-")


# --- after a start -----------------------------------------------------------------------------


def found(w: World, *, recorded: tuple[DeviceClaim, ...] = ()) -> set[str]:
    """Pods whose places a start finds in the world's tables."""
    return set(recalled(recorded, w.tables, w.instances(), lambda *_: ((RESOURCE, 2),)))


@pytest.fixture
def w() -> World:
    return world("p1 a  n1:4", "1P1D", devices=2)


@pytest.fixture
def lost(w: World) -> t.NewPod:
    """A decode that the table names and that is gone or ended."""
    return next(p.new for p in w.pods.values() if p.new.role == "decode")


@pytest.mark.parametrize("end", ["vanish", "fail"])
def test_a_start_finds_what_a_table_names_and_that_is_gone(
    w: World, lost: t.NewPod, end: str
) -> None:
    assert found(w) == set()
    getattr(w, end)(lost.name)
    assert found(w) == {lost.name}
    assert found(w, recorded=tuple(w.lost.values())) == set(), "status names it"


def test_what_had_a_successor_is_found_no_more(w: World, lost: t.NewPod) -> None:
    """The operator died between the creation and the new table: the place is the successor's."""
    tables = dict(w.tables)
    w.vanish(lost.name)
    w.operator()
    (own,) = (c for c in w.claims if c.slot == lost.slot)
    assert own.pod != lost.name
    w.tables = tables
    assert found(w, recorded=w.claims) == set()
    assert found(w) == set()
    del w.pods[own.pod]
    assert found(w, recorded=w.claims) == set(), "the successor has a claim"


def test_the_newest_of_a_slot_is_found_beside_a_former_one_that_has_not_ended(
    w: World, lost: t.NewPod
) -> None:
    former = next(p for p in w.pods.values() if p.new.name == lost.name)
    w.delete_from_outside(lost.name)
    (peer,) = (p for p in w.tables[0].instances if p.id == lost.name)
    newer = replace(peer, id=f"{lost.slot}-ffffff")
    others = tuple(p for p in w.tables[0].instances if p.id != lost.name)
    w.tables[0] = replace(w.tables[0], instances=(*others, newer))
    assert former.terminating
    assert found(w) == {newer.id}


def test_a_planned_end_leaves_nothing(w: World, lost: t.NewPod) -> None:
    w.pods[lost.name].drain_started = w.now
    w.fail(lost.name)
    assert found(w) == set()


@pytest.mark.parametrize(("taken", "keeps"), [(0, 2), (4, 2), (5, 1), (7, 0), (8, 0)])
def test_a_place_that_something_else_has_by_now_is_not_found(taken: int, keeps: int) -> None:
    """It was given up before the operator ended, and the table still names who had it."""
    places = {c.pod: c for c in (claim("0-p0-a"), claim("0-d0-a"))}
    tree = fabric(NODES).reserve([Reservation("other", "n1", RESOURCE, taken)])
    assert len(with_room(places, tree)) == keeps


def test_devices_that_are_not_well_are_lost_to_none() -> None:
    places = {c.pod: c for c in (claim("0-p0-a"), claim("0-d0-a"))}
    w = World("p1 a  n1:4", wanted("1P1D", devices=2))
    w.machines["n1"].unhealthy = True
    assert w.fabric().free("n1", RESOURCE) == 0
    assert with_room(places, w.fabric()) == places
