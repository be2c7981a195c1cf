"""Warm spares in the world of `tests.support.group_world`, which checks every action."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from tests.support.group_life import kinds, pods, uids
from tests.support.group_world import World, wanted
from tests.support.instances import observed

from pdserve.groups import types as t
from pdserve.groups.instances import InstanceObs
from pdserve.groups.spares import NO_SPARES, SpareRule, serving

ROOM = "p1 a  n1:8 n2:8 n3:8 n4:8 n5:8 n6:8 n7:8 n8:8"


def with_spares(
    counts: str, spares: int = 1, *, drawing: str = ROOM, flips: bool = True, **more: Any
) -> World:
    """A world at rest that has its spares, of engines that can change their role or cannot."""
    w = World(drawing, wanted(counts, spares=spares, **more))
    w.operator()
    for _ in range(2):
        for pod in w.pods.values():
            pod.flips = flips
        w.settle()
    return w


def roles(w: World) -> tuple[int, int]:
    return len(pods(w, "prefill")), len(pods(w, "decode"))


def spare_names(w: World) -> set[str]:
    decodes = {p.new.instance for p in w.pods.values() if p.new.role == "decode"}
    return decodes - set(w.routed)


def test_a_group_gets_its_spares_once_it_serves() -> None:
    w = World(ROOM, wanted("1P2D", spares=2))
    (made,) = w.operator().actions
    assert isinstance(made, t.CreateGroup)
    assert len(made.pods) == 3
    w.settle()
    assert roles(w) == (1, 4)
    assert len(w.routed) == 3
    assert w.operator().actions == ()
    (group,) = w.operator().groups
    assert (group.decode_desired, group.decode_ready) == (2, 2)
    assert (group.spares_desired, group.spares_ready) == (2, 2)


def test_without_devices_for_a_spare_the_group_serves_and_says_so() -> None:
    w = with_spares("1P2D", drawing="p1 a  n1:8 n2:8 n3:8")
    assert roles(w) == (1, 2)
    plan = w.operator()
    assert len(w.routed) == 3
    assert {c.type: c.status for c in plan.conditions}["Ready"] == "True"
    assert any("stays empty" in reason for reason in plan.reasons)
    assert not plan.settled, "it looks again when a node has room"
    assert plan.groups[0].spares_ready == 0


def test_an_instance_without_a_place_gets_the_one_of_another_groups_spare() -> None:
    w = with_spares("1P2D", drawing="p1 a  n1:8 n2:8 n3:8 n4:8 n5:8 n6:8 n7:8", replicas=2)
    (spare,) = spare_names(w)
    other = 1 - w.pods[spare].new.group_index
    lost = pods(w, "prefill", other)[0]
    w.machines[lost.new.node].unhealthy = True
    for _ in range(3):
        w.settle()
        w.now += 400.0
    assert len(w.routed) == 6
    assert spare_names(w) == set()
    w.machines[lost.new.node].unhealthy = False
    for _ in range(3):
        w.settle()
        w.now += 400.0
    assert len(w.routed) == 6
    assert len(spare_names(w)) == 1


def test_a_group_that_waits_takes_no_devices_from_spares() -> None:
    w = with_spares("1P2D", drawing="p1 a  n1:8 n2:8 n3:8 n4:8")
    spares = spare_names(w)
    w.target = replace(w.target, replicas=2)
    w.settle()
    assert spare_names(w) == spares != set()
    assert len(w.routed) == 3


def test_a_spare_takes_over_by_the_route_table_alone() -> None:
    w = with_spares("1P3D")
    (spare,) = spare_names(w)
    lost = next(p for p in pods(w, "decode") if p.new.name in w.routed)
    lost.failed = True
    w.write_routes()
    assert spare in w.routed
    assert len(w.routed) == 4
    w.settle()
    assert roles(w) == (1, 4)
    assert len(w.routed) == 4
    assert spare in w.routed, "it stays; what replaced the lost one is the spare now"


def test_a_spare_takes_the_role_of_a_lost_prefill() -> None:
    w = with_spares("2P3D")
    (spare,) = spare_names(w)
    known = uids(w)
    lost = pods(w, "prefill")[0]
    lost.failed = True
    seen: list[str] = []
    while w.pods.get(spare) is not None and w.pods[spare].new.role == "decode":
        seen += kinds(w.operator())
        w.write_routes()
        assert len(seen) < 40, seen
    assert "FlipRole" in seen
    w.settle()
    assert roles(w) == (2, 4)
    assert w.pods[spare].new.role == "prefill"
    assert spare in w.routed
    assert len(uids(w) - known) == 1, "one new pod: the next spare"


def test_where_engines_do_not_flip_a_lost_prefill_is_made_anew() -> None:
    w = with_spares("2P3D", flips=False)
    spares, known = spare_names(w), uids(w)
    pods(w, "prefill")[0].failed = True
    w.settle()
    assert (roles(w), spare_names(w)) == ((2, 4), spares)
    assert len(uids(w) - known) == 1


@pytest.mark.parametrize(("to", "flips"), [("1P4D", False), ("2P3D", True)])
def test_growth_takes_the_spare_at_once(to: str, flips: bool) -> None:
    w = with_spares("1P3D", flips=flips)
    (spare,) = spare_names(w)
    w.target = replace(wanted(to), spares=1)
    if to == "1P4D":
        w.write_routes()
        assert spare in w.routed, "before anything is made"
    w.settle()
    assert roles(w) == (int(to[0]), int(to[2]) + 1)
    assert spare in w.routed


def test_a_smaller_group_keeps_its_spares() -> None:
    w = with_spares("1P3D")
    w.target = replace(w.target, decode=replace(w.target.decode, count=2))
    w.settle()
    assert roles(w) == (1, 3)
    assert len(w.routed) == 3


def test_spares_that_are_no_longer_wanted_go() -> None:
    w = with_spares("1P3D", spares=2)
    routed = set(w.routed)
    w.target = replace(w.target, spares=0)
    w.settle()
    assert roles(w) == (1, 3)
    assert len(routed & set(w.routed)) >= 3


def test_a_rollout_brings_spares_of_the_new_revision() -> None:
    w = with_spares("1P2D", drawing=ROOM + " m1:8 m2:8 m3:8 m4:8", replicas=2)
    w.target = replace(w.target, revision="r2")
    w.settle()
    assert {p.new.revision for p in w.pods.values()} == {"r2"}
    assert roles(w) == (1, 3)


@pytest.mark.parametrize("seed", range(40))
def test_faults_at_any_time_end_with_all_spares(seed: int) -> None:
    rng = random.Random(seed)
    w = with_spares("2P3D", spares=rng.choice((1, 2)), drawing=ROOM + " m1:8 m2:8 m3:8 m4:8")
    for pod in w.pods.values():
        pod.flips = rng.random() < 0.8
    for _ in range(rng.randrange(1, 12)):
        match rng.randrange(6):
            case 0 | 1:
                rng.choice(sorted(w.pods.values(), key=lambda p: p.new.name)).failed = True
            case 2:
                counts = rng.choice(("2P3D", "3P2D", "1P4D", "2P2D"))
                w.target = replace(wanted(counts), spares=w.target.spares)
            case 3:
                w.restart_operator()
            case _:
                pass
        w.operator(stop_after=rng.choice((None, 0, 1, 2)))
        w.write_routes()
        w.push_tables()
        for name in sorted(w.pods):
            w.link(name)
        w.now += rng.choice((0.1, 1.0, 15.0))
    w.target = replace(wanted("2P3D"), spares=w.target.spares)
    for _ in range(4):
        w.settle()
        w.now += 400.0
    assert roles(w) == (2, 3 + w.target.spares)
    assert len(w.routed) == 5


def test_who_serves_goes_on_serving_and_a_silent_one_stands_back() -> None:
    one, two, three = (_instance(f"d{k}", "decode", k) for k in range(3))
    first = _instance("p0", "prefill", 0)
    rule = SpareRule(1, 2, frozenset({"d1", "d2"}))
    assert serving([first, one, two, three], rule) == [first, two, three]
    assert serving([first, one, two, three], replace(rule, routed=())) == [first, one, two]
    silent = replace(three, silent=True)
    assert serving([first, one, two, silent], rule) == [first, one, two]
    assert serving([first, one, two], rule) == [first, one, two], "as many as are wanted"
    assert serving([first, one, two, three], NO_SPARES) == [first, one, two, three]


def _instance(name: str, role: str, created: float) -> InstanceObs:
    return observed(
        name, uid=name, node="n1", slot=name, role=role, group_index=0, revision="r1",
        created=created,
    )  # fmt: skip
