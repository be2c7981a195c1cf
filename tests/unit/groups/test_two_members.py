"""P/D groups whose instances have two members: through planner, peer table and route table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.builders import RESOURCE, fabric
from tests.support.group_objects import Pod
from tests.support.group_world import World, counts, wanted

from pdserve.groups import types as t
from pdserve.groups.plan import plan
from pdserve.placement import Shape
from pdserve.wire import names

ROOMY = """p1 a  n1:8 n2:8 n3:8 n4:8
           p1 b  m1:8 m2:8 m3:8 m4:8"""
FULL = "p1 a  n1:8 n2:8 n3:8 n4:8"


def world(drawing: str = ROOMY, counts_: str = "1P1D", **more: object) -> World:
    """A world of two-member instances at rest."""
    made = World(drawing, wanted(counts_, members=2, **more))  # type: ignore[arg-type]
    made.settle()
    return made


def pods(w: World, role: str) -> list[Pod]:
    """Pods of one role, each instance's leader first."""
    found = [p for p in w.pods.values() if p.new.role == role]
    return sorted(found, key=lambda p: p.new.name)


def uids(found: list[Pod]) -> set[str]:
    return {p.uid for p in found}


def made_by(made: t.Plan, kind: type[Any]) -> list[str]:
    found: list[Any] = [a for a in made.actions if isinstance(a, kind)]
    return [a.name for a in found]


# --- set-up --------------------------------------------------------------------------------------


def test_each_instance_is_created_as_two_pods_of_one_leaf() -> None:
    w = World(ROOMY, wanted("1P1D", members=2))
    (create,) = (a for a in w.operator().actions if isinstance(a, t.CreateGroup))
    assert [(p.role, p.member, p.members, p.scale_unit) for p in create.pods] == [
        ("prefill", 0, 2, True), ("prefill", 1, 2, False),
        ("decode", 0, 2, False), ("decode", 1, 2, False),
    ]  # fmt: skip
    leader, other = create.pods[:2]
    assert other.name == f"{leader.name}-m1"
    assert (leader.instance, other.instance) == (leader.name, leader.name)
    assert (leader.slot, other.slot) == ("shop-chat-0-p0", "shop-chat-0-p0")
    assert [p.node for p in create.pods] == ["n1", "n2", "n3", "n4"]
    assert {p.domains["leaf"] for p in create.pods} == {"a"}


def test_the_name_of_an_instance_does_not_tell_how_many_members_it_has() -> None:
    w = World(ROOMY, wanted("1P1D"))
    (create,) = (a for a in w.operator().actions if isinstance(a, t.CreateGroup))
    two = {p.new.name for p in world().pods.values() if p.new.member == 0}
    assert {p.name for p in create.pods} == two


def test_members_share_a_node_that_has_room_for_all() -> None:
    w = world(devices=4)
    assert {p.new.instance: p.new.node for p in w.pods.values()} == {
        p.new.instance: p.new.node for p in w.pods.values() if p.new.member == 0
    }
    assert [len({p.new.node for p in pods(w, role)}) for role in ("prefill", "decode")] == [1, 1]


@pytest.mark.parametrize(
    ("drawing", "says"),
    [
        ("p1 a  n1:8 n2:8 n3:8", "1 of 2 instances have no node"),
        ("p1 a  n1:8 n2:8 n3:8\np1 b  m1:8", "1 of 2 instances have no node"),
    ],
    ids=["one node too few", "the fourth is in another leaf"],
)
def test_no_pod_before_every_member_has_a_place(drawing: str, says: str) -> None:
    w = World(drawing, wanted("1P1D", members=2))
    assert w.operator().actions == ()
    placed = w.condition("Placed")
    assert (placed.status, placed.reason) == ("False", "NoFit")
    assert says in placed.message
    assert f"2 x 8 {RESOURCE} each" in placed.message


def test_the_table_has_one_entry_and_the_routes_one_id_for_both() -> None:
    w = world()
    (table,) = w.tables.values()
    prefill, decode = table.instances
    leader, other = pods(w, "prefill")
    assert (prefill.id, decode.role) == (leader.new.name, "decode")
    addresses = [f"10.0.0.{p.uid.removeprefix('uid-')}" for p in (leader, other)]
    assert prefill.endpoint == f"http://{addresses[0]}:{names.PORT_HTTP}"
    assert prefill.transfer == f"{addresses[0]}:{names.PORT_TRANSFER}"
    assert [(n.name, n.transfer) for n in prefill.nodes] == [
        (leader.new.node, ""), (other.new.node, f"{addresses[1]}:{names.PORT_TRANSFER}"),
    ]  # fmt: skip
    ids = [i.id for g in w.routes for i in g.instances]
    assert ids == [pods(w, "prefill")[0].new.name, pods(w, "decode")[0].new.name]
    assert next(i.endpoint for g in w.routes for i in g.instances) == prefill.endpoint
    assert w.last is not None
    (status,) = w.last.groups
    assert (status.prefill_ready, status.decode_ready) == (1, 1)
    assert status.cells == ("a: 1P1D",)
    assert w.last.budgets[0].least == 4
    assert w.condition("Linked").message == "2 instances are linked"


def test_an_instance_enters_the_table_when_all_members_run() -> None:
    w = World(ROOMY, wanted("1P1D", members=2))
    w.operator()
    *early, late = sorted(w.pods)
    for _ in range(2):
        for name in early:
            w.kubelet(name)
    leaders = {p.new.name: p for p in w.pods.values() if p.new.member == 0}
    told = [(a.name, a.address) for a in w.operator().actions if isinstance(a, t.TellLeader)]
    assert told == [
        (f"{name}-m1", f"10.0.0.{p.uid.removeprefix('uid-')}")
        for name, p in sorted(leaders.items(), reverse=True)
    ]
    assert w.operator().actions == ()
    for _ in range(2):
        w.kubelet(late)
    assert [type(a) for a in w.operator().actions] == [t.PublishTable]


def test_both_members_are_linked_or_none() -> None:
    w = World(ROOMY, wanted("1P1D", members=2))
    while not any(isinstance(a, t.MarkLinked) for a in w.operator().actions):
        w.each(w.kubelet)
        w.push_tables()
        w.each(w.link)
    assert w.last is not None
    assert sorted(made_by(w.last, t.MarkLinked)) == sorted(w.pods)


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize("kind", ["crash_loop", "fail", "delete_from_outside"])
def test_the_fault_of_a_member_replaces_its_instance_and_no_other(kind: str, member: int) -> None:
    w = world()
    decodes, lost = uids(pods(w, "decode")), pods(w, "prefill")
    getattr(w, kind)(lost[member].new.name)
    w.settle()
    found = pods(w, "prefill")
    assert len(found) == 2 and not uids(found) & uids(lost)
    assert {p.new.replaces for p in found} == {lost[0].uid}
    assert uids(pods(w, "decode")) == decodes
    assert w.routed == {p.new.instance for p in w.pods.values()}


@pytest.mark.parametrize("member", [0, 1])
def test_a_pod_that_vanishes_is_one_fault_of_its_instance(member: int) -> None:
    w = world()
    lost = pods(w, "prefill")
    del w.pods[lost[member].new.name]
    w.write_routes()
    w.operator()
    assert [(r.failures, r.fault, r.last_uid) for r in w.repairs] == [
        (1, "MemberLost", lost[0].uid)
    ]
    w.settle()
    assert w.repairs[0].failures == 1
    assert not uids(pods(w, "prefill")) & uids(lost)
    assert len(w.pods) == 4


def test_after_a_crash_between_two_pods_of_an_instance_it_is_made_anew() -> None:
    w = World(ROOMY, wanted("1P1D", members=2))
    w.operator()
    half = pods(w, "prefill")
    del w.pods[half[1].new.name]
    w.settle()
    assert len(w.pods) == 4
    assert half[0].uid not in uids(pods(w, "prefill"))
    assert w.condition("Ready").reason == "AllReady"


def test_a_member_that_restarts_in_place_takes_the_links_of_both() -> None:
    w = world()
    leader, other = pods(w, "prefill")
    w.restart(other.new.name)
    w.write_routes()
    assert leader.new.name not in w.routed
    w.kubelet(other.new.name)
    made = w.operator()
    assert sorted(made_by(made, t.MarkUnlinked)) == [leader.new.name, other.new.name]
    before = uids(list(w.pods.values()))
    w.settle()
    assert uids(list(w.pods.values())) == before
    assert leader.new.name in w.routed


def test_only_the_node_of_the_member_at_fault_is_suspect() -> None:
    w = world()
    _, other = pods(w, "prefill")
    w.machines[other.new.node].unhealthy = True
    w.write_routes()
    w.operator()
    assert [[s.node for s in r.suspects] for r in w.repairs] == [[other.new.node]]


def test_devices_of_all_members_are_kept_for_the_group_until_it_is_whole_again() -> None:
    w = world(FULL)
    lost = pods(w, "prefill")
    w.silence(lost[1].new.node)
    w.advance(60)
    w.write_routes()
    for _ in range(4):
        w.operator()
        w.round()
    kept = {(c.pod, c.node, c.uid) for c in w.claims}
    assert kept == {(p.new.name, p.new.node, lost[0].uid) for p in lost}
    w.hear_again(lost[1].new.node)
    w.settle()
    assert w.claims == ()
    assert {p.new.node for p in pods(w, "prefill")} == {p.new.node for p in lost}


def test_of_a_lost_instance_one_claim_per_member_survives_a_new_operator() -> None:
    w = world(FULL)
    lost = pods(w, "decode")
    for pod in lost:
        del w.pods[pod.new.name]
    w.restart_operator()
    assert {(c.pod, c.node) for c in w.all_claims()} == {(p.new.name, p.new.node) for p in lost}
    w.settle()
    assert {p.new.node for p in pods(w, "decode")} == {p.new.node for p in lost}


# --- planned changes -----------------------------------------------------------------------------


def test_growth_adds_a_whole_instance_and_shrinking_takes_one() -> None:
    w = world("p1 a  n1:8 n2:8 n3:8 n4:8 n5:8 n6:8")
    before = set(w.pods)
    w.want(lambda old: counts(old, 1, 2))
    w.settle()
    grown = sorted(set(w.pods) - before)
    assert grown == [grown[0], f"{grown[0]}-m1"]
    assert len(w.routed) == 3
    w.want(lambda old: counts(old, 1, 1))
    w.request()
    w.write_routes()
    made = w.operator()
    drained = made_by(made, t.BeginDrain)
    assert drained == [drained[0], f"{drained[0]}-m1"]
    assert made_by(made, t.DeletePod) == []
    w.write_routes()
    assert made_by(w.operator(), t.DeletePod) == []
    w.settle()
    assert len(w.pods) == 4 and not set(drained) & set(w.pods)


def test_growth_without_room_for_both_members_waits() -> None:
    w = world("p1 a  n1:8 n2:8 n3:8 n4:8 n5:8\np1 b  m1:8")
    w.want(lambda old: counts(old, 1, 2))
    w.settle()
    assert len(w.pods) == 4
    assert f"no node for one more decode (2 x 8 {RESOURCE})" in w.condition("Placed").message


def test_a_crash_in_the_midst_of_a_drain_is_mended() -> None:
    w = world("p1 a  n1:8 n2:8 n3:8 n4:8 n5:8 n6:8", "1P2D")
    w.want(lambda old: counts(old, 1, 1))
    w.operator(stop_after=1)
    half = [p.new.name for p in w.pods.values() if p.drain_started is not None]
    assert len(half) == 1
    w.write_routes()
    (other,) = made_by(w.operator(), t.BeginDrain)
    assert names.instance_name(other) == names.instance_name(half[0])
    w.settle()
    assert len(w.pods) == 4 and w.repairs == ()


def test_a_roll_replaces_instances_of_two_by_instances_of_two() -> None:
    w = world()
    old = uids(list(w.pods.values()))
    w.want(lambda target: replace(target, revision="r2"))
    w.settle()
    assert len(w.pods) == 4 and not uids(list(w.pods.values())) & old
    assert {p.new.revision for p in w.pods.values()} == {"r2"}


def test_a_closed_node_of_a_member_closes_its_instance() -> None:
    w = world("p1 a  n1:8 n2:8 n3:8 n4:8 n5:8 n6:8", "1P1D")
    other = pods(w, "decode")[1]
    closed = " ".join(
        f"{n}:{0 if n in {p.new.node for p in w.pods.values()} else 8}/8"
        + ("!Unschedulable" if n == other.new.node else "")
        for n in w.machines
    )
    made = plan(w.observation(), fabric(f"p1 a  {closed}"))
    (stand_in,) = (a for a in made.actions if isinstance(a, t.CreateInstance))
    assert stand_in.stands_in
    assert [p.node for p in stand_in.pods] == ["n5", "n6"]
    assert f"as {other.new.node} takes no new instance" in stand_in.reason
    assert made.budgets[0].least == 4


def test_a_budget_counts_the_pods_of_instances_on_open_nodes() -> None:
    """Another group serves, so closed instances may go: the Ready pods of the others must stay."""
    w = world("p1 a  n1:8 n2:8 n3:8 n4:8\np1 b  m1:8 m2:8 m3:8 m4:8", replicas=2)
    first = [p for p in pods(w, "decode") if p.new.group_index == 0]
    closed = {
        leaf: " ".join(
            f"{n}:0/8" + ("!Unschedulable" if n == first[1].new.node else "")
            for n, machine in w.machines.items()
            if machine.labels["example.com/leaf"] == leaf
        )
        for leaf in ("a", "b")
    }
    made = plan(w.observation(), fabric("\n".join(f"p1 {x}  {line}" for x, line in closed.items())))
    assert [made.budgets[k].least for k in (0, 1)] == [2, 4]


def test_what_all_members_take_is_reserved() -> None:
    shape = Shape(RESOURCE, 4, requests=(("memory", 7),), members=2)
    assert shape.total == 8
    found = shape.reservations("x", ("n1", "n2"))
    assert [(r.node, r.resource, r.devices) for r in found] == [
        ("n1", RESOURCE, 4), ("n1", "memory", 7), ("n2", RESOURCE, 4), ("n2", "memory", 7),
    ]  # fmt: skip
