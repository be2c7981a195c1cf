"""Role flips in the world of `tests.support.group_world`, which checks every action."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.group_life import kinds, pods, uids
from tests.support.group_world import World, wanted

from pdserve.groups import types as t

SIX = "p1 a  n1:8 n2:8 n3:8 n4:8 n5:8 n6:8"
ROOM_FOR_MORE = SIX + " n7:8 n8:8"


def flipping(counts: str, *, flips: bool = True, **more: Any) -> World:
    """A world at rest whose engines can change their role."""
    w = World(ROOM_FOR_MORE, wanted(counts, **more))
    w.operator()
    for pod in w.pods.values():
        pod.flips = flips
    w.settle()
    return w


def resized(w: World, counts: str, **more: Any) -> None:
    w.target = wanted(counts, **more)


def roles(w: World) -> tuple[int, int]:
    return len(pods(w, "prefill")), len(pods(w, "decode"))


@pytest.mark.parametrize(
    ("before", "after", "want"),
    [("2P4D", "3P3D", (3, 3)), ("3P3D", "2P4D", (2, 4)), ("1P5D", "3P3D", (3, 3))],
)
def test_a_move_between_roles_keeps_every_pod(
    before: str, after: str, want: tuple[int, int]
) -> None:
    w = flipping(before)
    known, containers = uids(w), {p.process.container for p in w.pods.values() if p.process}
    resized(w, after)
    w.settle()
    assert roles(w) == want
    assert uids(w) == known
    assert {p.process.container for p in w.pods.values() if p.process} == containers
    assert len(w.routed) == 6
    assert w.operator().actions == ()


def test_what_is_left_over_grows_or_shrinks_as_ever() -> None:
    w = flipping("2P4D")
    known = uids(w)
    resized(w, "4P3D")
    w.settle()
    assert roles(w) == (4, 3)
    assert known < uids(w)
    assert len(uids(w) - known) == 1


@pytest.mark.parametrize("role_wanted", ["engine cannot", "roles differ"])
def test_other_pods_are_deleted_and_created(role_wanted: str) -> None:
    w = flipping("2P4D", flips=role_wanted != "engine cannot")
    known = uids(w)
    resized(w, "3P3D")
    if role_wanted == "roles differ":
        w.target = replace(w.target, decode=replace(w.target.decode, startup_deadline=60.0))
    w.settle()
    assert roles(w) == (3, 3)
    assert len(known - uids(w)) == 1


def test_an_instance_that_works_flips_when_it_is_idle() -> None:
    w = flipping("1P2D")
    w.request()
    resized(w, "2P1D")
    (began,) = w.operator().actions
    assert isinstance(began, t.BeginDrain)
    assert began.flip_to == "prefill"
    w.write_routes()
    assert began.name not in w.routed
    for _ in range(3):
        assert "FlipRole" not in kinds(w.operator()), "requests still run there"
    w.pods[began.name].requests = 0
    seen = [kind for _ in range(4) for kind in kinds(w.operator())]
    assert seen[:3] == ["PublishTable", "MarkUnlinked", "FlipRole"]
    w.settle()
    assert roles(w) == (2, 1)


def test_a_crash_after_any_action_ends_in_one_of_the_roles() -> None:
    for stop in range(1, 9):
        w = flipping("2P4D")
        known = uids(w)
        resized(w, "3P3D")
        left = stop
        while left > 0:
            done = min(left, 1)
            w.operator(stop_after=done)
            w.restart_operator()
            w.write_routes()
            w.push_tables()
            for name in sorted(w.pods):
                w.pods[name].requests = 0
                w.link(name)
            left -= 1
        w.settle()
        assert (roles(w), uids(w)) == ((3, 3), known), stop


def test_one_that_is_lost_in_its_flip_is_no_growth_of_either_role() -> None:
    w = flipping("2P4D")
    resized(w, "3P3D")
    (began,) = w.operator().actions
    assert isinstance(began, t.BeginDrain)
    w.pods[began.name].failed = True
    w.settle()
    assert roles(w) == (3, 3)
    assert began.name not in w.pods


def test_a_flip_that_is_taken_back_ends_where_it_is_wanted() -> None:
    w = flipping("2P4D")
    known = uids(w)
    resized(w, "3P3D")
    w.operator()
    resized(w, "2P4D")
    w.settle()
    assert roles(w) == (2, 4)
    assert known & uids(w) == known
