"""The life of P/D groups in short stories, in the world of `tests.support.group_world`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.group_objects import Pod
from tests.support.group_world import World, counts, wanted

from pdserve.groups import types as t
from pdserve.groups.plan import plan

ROOMY = """p1 a  n1:8 n2:8 n3:8 n4:8
           p1 b  m1:8 m2:8 m3:8 m4:8
           p2 c  k1:8 k2:8 k3:8 k4:8"""
THREE = "p1 a  n1:8 n2:8 n3:8"


def world(drawing: str, counts_: str, replicas: int = 1, **more: Any) -> World:
    """A world at rest."""
    made = World(drawing, wanted(counts_, replicas, **more))
    made.settle()
    return made


def pods(w: World, role: str = "", index: int = 0) -> list[Pod]:
    """Pods of one group and role, by name."""
    return [
        w.pods[name]
        for name in sorted(w.pods)
        if w.pods[name].new.group_index == index and w.pods[name].new.role.startswith(role)
    ]


def uids(w: World) -> set[str]:
    return {p.uid for p in w.pods.values()}


def kinds(plan: t.Plan) -> list[str]:
    return [type(a).__name__ for a in plan.actions]


# --- set-up --------------------------------------------------------------------------------------


def test_no_pod_before_the_whole_group_has_a_place() -> None:
    w = World("p1 a  n1:8 n2:8", wanted("2P1D"))
    plan = w.operator()
    assert plan.actions == ()
    assert w.pods == {}
    placed = w.condition("Placed")
    assert (placed.status, placed.reason) == ("False", "NoFit")
    assert "1 of 3 instances have no node" in placed.message
    assert "largest P/D group that fits now: 1P1D" in placed.message
    assert w.condition("Ready").reason == "NotPlaced"
    assert w.condition("Progressing").reason == "NeedsDevices"


def test_a_group_is_created_at_once_pinned_and_with_one_scale_unit() -> None:
    w = World(ROOMY, wanted("2P1D", 2))
    plan = w.operator()
    first, second = (a for a in plan.actions if isinstance(a, t.CreateGroup))
    assert [p.slot for p in first.pods] == ["shop-chat-0-p0", "shop-chat-0-p1", "shop-chat-0-d0"]
    assert [p.scale_unit for p in first.pods] == [True, False, False]
    assert first.pods[0].name.startswith("shop-chat-0-p0-")
    assert first.pods[0].domains == {"pod": "p1", "leaf": "a"}
    assert not {p.node for p in first.pods} & {p.node for p in second.pods}


def test_the_first_table_waits_for_both_roles_and_routes_for_links() -> None:
    w = World(ROOMY, wanted("1P1D"))
    w.operator()
    prefill, decode = pods(w)[1].new.name, pods(w)[0].new.name
    for _ in range(2):
        w.kubelet(prefill)
    assert kinds(w.operator()) == []
    for _ in range(2):
        w.kubelet(decode)
    assert kinds(w.operator()) == ["PublishTable"]
    w.push_tables()
    w.link(prefill)
    assert kinds(w.operator()) == [], "the decode does not report the link yet"
    w.write_routes()
    assert w.routes == ()
    w.link(decode)
    assert kinds(w.operator()) == ["MarkLinked", "MarkLinked"]
    w.write_routes()
    assert w.routed == {prefill, decode}
    w.operator()
    assert w.condition("Ready").status == "True"


@pytest.mark.invariant(8)
def test_at_rest_a_plan_asks_for_nothing() -> None:
    w = world(ROOMY, "2P1D", 2)
    plan = w.operator()
    assert plan.actions == ()
    assert plan.requeue_after is None
    assert plan == w.operator()


def test_a_gang_that_lost_its_place_half_way_is_rolled_back() -> None:
    w = World("p1 a  n1:8 n2:8", wanted("1P1D"))
    w.operator()
    del w.pods[pods(w, "decode")[0].new.name]
    w.machines["n1"].foreign = w.machines["n2"].foreign = 8
    w.pods[pods(w, "prefill")[0].new.name].bound = True
    w.machines[pods(w, "prefill")[0].new.node].foreign = 0
    plan = w.operator()
    assert kinds(plan) == ["BeginDrain", "DeletePod"]
    assert "cannot be completed" in plan.reasons[-1]


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.invariant(4)
@pytest.mark.parametrize("fault", ["fail", "crash_loop", "delete_from_outside"])
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_one_fault_replaces_one_instance(fault: str, role: str) -> None:
    w = world("p1 a  n1:8 n2:8 n3:8 n4:8 n5:8\np2 c  k1:8", "2P2D", 2, devices=4)
    before, version = uids(w), w.tables[0].version
    lost = pods(w, role)[0]
    getattr(w, fault)(lost.new.name)
    w.operator()
    w.settle()
    assert before - uids(w) == {lost.uid}
    (new,) = [p for p in w.pods.values() if p.uid not in before]
    assert new.new.slot == lost.new.slot
    assert new.new.name != lost.new.name
    assert new.new.replaces == lost.uid
    assert new.new.domains == lost.new.domains, "the same leaf has room"
    assert w.tables[0].version > version
    assert w.tables[1].version == 1, "the other group hears nothing of it"
    assert w.condition("Ready").status == "True"


@pytest.mark.invariant(1)
def test_a_lost_instance_leaves_routes_and_table_before_it_is_deleted() -> None:
    w = world(ROOMY, "2P1D")
    lost = pods(w, "prefill")[0].new.name
    w.fail(lost)
    plan = w.operator()
    assert kinds(plan) == ["CreateInstance", "PublishTable", "MoveScaleUnit", "MoveScaleUnit"]
    assert w.tables[0].peer(lost) is None
    assert kinds(w.operator()) == [], "gateways still have it in their routes"
    w.write_routes()
    assert lost not in w.routed
    assert kinds(w.operator()) == ["DeletePod"]


@pytest.mark.invariant(2)
def test_a_restart_in_place_is_relinked_not_replaced() -> None:
    w = world(ROOMY, "2P1D")
    before, version = uids(w), w.tables[0].version
    name = pods(w, "decode")[0].new.name
    w.restart(name)
    w.write_routes()
    assert w.routes == (), "its only decode is away"
    w.kubelet(name)
    plan = w.operator()
    assert kinds(plan) == ["MarkUnlinked"]
    assert "container restarted" in plan.reasons[0]
    w.settle()
    assert uids(w) == before
    assert w.tables[0].version == version
    assert name in w.routed


def test_a_silent_node_is_given_its_time() -> None:
    w = world(ROOMY, "1P1D", devices=8)
    lost = pods(w, "decode")[0]
    w.silence(lost.new.node)
    w.advance(29)
    plan = w.operator()
    assert kinds(plan) == []
    assert plan.requeue_after == pytest.approx(1.0)
    w.advance(1)
    plan = w.operator()
    (made,) = [a for a in plan.actions if isinstance(a, t.CreateInstance)]
    assert made.pod.node != lost.new.node
    assert made.pod.replaces == lost.uid
    (repair,) = plan.repairs
    assert (repair.suspect_node, repair.fault) == (lost.new.node, "NodeLost")


def test_a_pod_on_a_silent_node_is_never_forced_but_on_a_deleted_one_it_is() -> None:
    w = world(ROOMY, "1P1D", devices=8)
    lost = pods(w, "decode")[0]
    w.silence(lost.new.node)
    w.advance(30)
    w.operator()
    w.write_routes()
    (delete,) = w.operator().actions
    assert isinstance(delete, t.DeletePod)
    assert not delete.force
    w.destroy(lost.new.node)
    (delete,) = [a for a in w.operator().actions if isinstance(a, t.DeletePod)]
    assert delete.force
    assert lost.new.name not in w.pods


def test_repeated_faults_back_off_and_then_avoid_the_node() -> None:
    w = world("p1 a  n1:8 n2:8 n3:8", "1P1D", devices=8)
    nodes, delays = [], []
    for _ in range(4):
        w.fail(pods(w, "decode")[0].new.name)
        before = w.now
        w.settle()
        delays.append(round(w.now - before))
        nodes.append(pods(w, "decode")[0].new.node)
    assert delays == [0, 10, 20, 40]
    (repair,) = w.repairs
    assert repair.failures == 4
    assert len(set(nodes)) > 1
    w.advance(1800)
    w.operator()
    assert w.repairs == (), "a slot that kept well starts afresh"


def test_without_spare_devices_the_same_node_serves_once_it_is_free() -> None:
    w = world("p1 a  n1:8 n2:8", "1P1D", devices=8)
    lost = pods(w, "decode")[0]
    w.crash_loop(lost.new.name)
    plan = w.operator()
    assert "CreateInstance" not in kinds(plan)
    assert w.condition("Placed").status == "False"
    assert "no node for one more decode (8 example.com/npu)" in w.condition("Placed").message
    w.settle()
    assert pods(w, "decode")[0].new.node == lost.new.node
    assert pods(w, "decode")[0].new.replaces == lost.uid


def test_an_unhealthy_device_moves_its_instance_off_the_node() -> None:
    w = world(ROOMY, "1P1D", devices=8)
    lost = pods(w, "prefill")[0]
    w.machines[lost.new.node].unhealthy = True
    w.settle()
    (new,) = pods(w, "prefill")
    assert new.new.node != lost.new.node
    assert [r.fault for r in w.repairs] == ["DeviceUnhealthy"]


def test_a_lost_node_that_returns_before_its_pod_is_gone_costs_no_second_change() -> None:
    w = world(ROOMY, "1P1D", devices=8)
    lost = pods(w, "decode")[0]
    w.silence(lost.new.node)
    w.advance(31)
    w.operator()
    w.hear_again(lost.new.node)
    w.settle()
    assert len(pods(w, "decode")) == 1
    assert w.condition("Ready").status == "True"


# --- scaling and the ratio -----------------------------------------------------------------------


def test_scale_up_and_down_whole_groups_highest_index_first() -> None:
    w = world(ROOMY, "1P1D", 1)
    first = uids(w)
    w.want(lambda x: replace(x, replicas=3))
    w.settle()
    assert {p.new.group_index for p in w.pods.values()} == {0, 1, 2}
    w.want(lambda x: replace(x, replicas=2))
    w.settle()
    assert {p.new.group_index for p in w.pods.values()} == {0, 1}
    assert first <= uids(w), "what ran was not touched"
    assert set(w.tables) == {0, 1}


def test_a_group_that_does_not_serve_goes_before_one_that_does() -> None:
    w = world(ROOMY, "1P1D", 2)
    w.crash_loop(pods(w, "decode", 0)[0].new.name)
    w.operator(stop_after=0)
    w.want(lambda x: replace(x, replicas=1))
    w.settle()
    assert {p.new.group_index for p in w.pods.values()} == {1}


def test_scale_to_zero() -> None:
    w = world(ROOMY, "2P1D", 2)
    w.want(lambda x: replace(x, replicas=0))
    w.settle()
    assert (w.pods, w.tables, w.routes) == ({}, {}, ())
    ready = w.condition("Ready")
    assert (ready.status, ready.reason) == ("False", "ScaledToZero")
    assert "503" in ready.message
    assert w.condition("Progressing").reason == "Complete"


@pytest.mark.invariant(5)
def test_drain_waits_for_routes_then_for_requests() -> None:
    w = world(ROOMY, "2P1D")
    w.request()
    w.want(lambda x: counts(x, 1, 1))
    (drain,) = (a for a in w.operator().actions if isinstance(a, t.BeginDrain))
    assert w.pods[drain.name].requests == 1
    assert kinds(w.operator()) == [], "still in the routes that gateways have"
    w.write_routes()
    plan = w.operator()
    assert kinds(plan) == [], "one request is still there"
    assert plan.requeue_after == pytest.approx(60.0)
    w.finish(drain.name)
    assert kinds(w.operator()) == ["PublishTable"]
    assert kinds(w.operator()) == ["DeletePod"]
    w.settle()
    assert w.condition("Ready").status == "True"


@pytest.mark.invariant(5)
def test_a_drain_ends_at_its_deadline() -> None:
    w = world(ROOMY, "2P1D")
    w.request()
    w.want(lambda x: counts(x, 1, 1))
    w.operator()
    w.write_routes()
    w.advance(59)
    assert kinds(w.operator()) == []
    w.advance(1)
    assert kinds(w.operator()) == ["PublishTable"]
    assert kinds(w.operator()) == ["DeletePod"]


@pytest.mark.invariant(5)
def test_when_a_group_goes_its_decodes_outlast_its_prefills() -> None:
    w = world(ROOMY, "1P1D", 2)
    w.request()
    w.want(lambda x: replace(x, replicas=1))
    w.operator()
    w.write_routes()
    (prefill,), (decode,) = pods(w, "prefill", 1), pods(w, "decode", 1)
    w.operator()
    assert prefill.process is not None and prefill.process.draining
    assert decode.process is not None and not decode.process.draining
    w.finish(prefill.new.name)
    w.operator()
    w.operator()
    assert decode.process.draining


@pytest.mark.invariant(3)
def test_a_ratio_change_grows_first_and_shrinks_when_the_growth_is_ready() -> None:
    w = world(ROOMY, "2P1D")
    w.want(lambda x: counts(x, 1, 2))
    plan = w.operator()
    assert kinds(plan) == ["CreateInstance"]
    assert any("until the other role's growth is ready" in r for r in plan.reasons)
    w.settle()
    assert (len(pods(w, "prefill")), len(pods(w, "decode"))) == (1, 2)


@pytest.mark.invariant(3)
def test_without_spare_devices_it_shrinks_first() -> None:
    w = world(THREE, "2P1D")
    kept = {pods(w, "decode")[0].uid}
    w.want(lambda x: counts(x, 1, 2))
    assert "BeginDrain" in kinds(w.operator())
    w.settle()
    assert (len(pods(w, "prefill")), len(pods(w, "decode"))) == (1, 2)
    assert kept <= uids(w)


def test_a_pod_that_vanished_unseen_is_made_again() -> None:
    w = world(ROOMY, "2P1D")
    before = uids(w)
    lost = pods(w, "decode")[0]
    w.delete_from_outside(lost.new.name)
    w.kubelet(lost.new.name)
    plan = w.operator()
    assert kinds(plan) == ["CreateInstance", "PublishTable"]
    assert next(a for a in plan.actions if isinstance(a, t.CreateInstance)).pod.replaces == lost.uid
    w.settle()
    assert before - uids(w) == {lost.uid}
    assert w.condition("Ready").status == "True"


def test_growth_that_never_served_is_given_up_without_a_drain() -> None:
    w = world(ROOMY, "1P1D")
    w.want(lambda x: counts(x, 1, 4))
    w.operator()
    w.want(lambda x: counts(x, 1, 1))
    assert kinds(w.operator()) == ["BeginDrain", "DeletePod"] * 3
    w.want(lambda x: counts(x, 1, 4))
    made = [a for a in w.operator().actions if isinstance(a, t.CreateInstance)]
    assert [a.pod.replaces for a in made] == [None] * 3, "own deletions are no losses"
    w.want(lambda x: counts(x, 1, 1))
    w.settle()
    assert len(w.pods) == 2


def test_paused_changes_nothing_planned_but_still_repairs() -> None:
    w = world(ROOMY, "2P1D")
    w.want(lambda x: replace(counts(x, 3, 3), replicas=2, paused=True))
    assert w.operator().actions == ()
    assert w.condition("Progressing").reason == "Paused"
    w.fail(pods(w, "prefill")[0].new.name)
    assert "CreateInstance" in kinds(w.operator())


# --- revisions -----------------------------------------------------------------------------------


@pytest.mark.invariant(3)
def test_a_rollout_creates_first_where_devices_are_spare() -> None:
    w = world(ROOMY, "2P1D", 2)
    old = uids(w)
    w.want(lambda x: replace(x, revision="r2"))
    plan = w.operator()
    assert kinds(plan) == ["CreateGroup"], "one group at a time, the old ones stay"
    assert w.condition("Progressing").reason == "RollingOut"
    w.settle()
    assert {p.new.revision for p in w.pods.values()} == {"r2"}
    assert not old & uids(w)
    assert len(w.pods) == 6


@pytest.mark.invariant(3)
def test_it_deletes_first_where_another_group_serves() -> None:
    w = world("p1 a  n1:8 n2:8\np1 b  m1:8 m2:8", "1P1D", 2, devices=8)
    w.want(lambda x: replace(x, revision="r2"))
    plan = w.operator()
    assert kinds(plan) == ["BeginDrain", "BeginDrain"]
    assert {
        w.pods[a.name].new.group_index for a in plan.actions if isinstance(a, t.BeginDrain)
    } == {1}
    assert any("delete first" in r for r in plan.reasons)
    w.settle()
    assert {p.new.revision for p in w.pods.values()} == {"r2"}


@pytest.mark.invariant(3)
def test_a_roll_does_not_lean_on_a_group_whose_node_is_silent() -> None:
    w = world("p1 a  n1:8 n2:8\np1 b  m1:8 m2:8", "1P1D", 2, devices=8)
    w.want(lambda x: replace(x, revision="r2"))
    seen = w.observation()
    of_group_0 = [i.name for i in seen.instances if i.group_index == 0]
    for name in of_group_0:
        silent = tuple(replace(i, silent=i.name == name) for i in seen.instances)
        held = plan(replace(seen, instances=silent), w.fabric())
        assert "BeginDrain" not in kinds(held)
    assert kinds(w.operator()) == ["BeginDrain", "BeginDrain"]


@pytest.mark.invariant(3)
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_roll_does_not_lean_on_a_group_that_gateways_do_not_know(role: str) -> None:
    """Deleting first, group 1 would go in favour of group 0."""
    w = world("p1 a  n1:8 n2:8\np1 b  m1:8 m2:8", "1P1D", 2, devices=8)
    w.want(lambda x: replace(x, revision="r2"))
    seen = w.observation()
    unknown = {i.name for i in seen.instances if i.group_index == 0 and i.role == role}
    held = plan(replace(seen, routed=seen.routed - unknown), w.fabric())
    assert "BeginDrain" not in kinds(held)
    assert kinds(plan(seen, w.fabric())) == ["BeginDrain", "BeginDrain"]
    # Where no gateway was ever told anything there is none that would not know it.
    assert "BeginDrain" in kinds(plan(replace(seen, routed=frozenset()), w.fabric()))


@pytest.mark.invariant(3)
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_outdated_group_stays_until_gateways_know_its_successor(role: str) -> None:
    w = world("p1 a  n1:8 n2:8\np1 b  m1:8 m2:8", "1P1D", devices=8)
    w.want(lambda x: replace(x, revision="r2"))
    for _ in range(50):
        seen, tree = w.observation(), w.fabric()
        if "BeginDrain" in kinds(plan(seen, tree)):
            break
        w.operator()
        w.each(w.kubelet)
        w.push_tables()
        w.each(w.link)
        w.write_routes()
    else:
        raise AssertionError("the outdated group never went")
    successor = {i.name for i in seen.instances if i.revision == "r2" and i.role == role}
    assert successor and successor <= seen.routed
    held = plan(replace(seen, routed=seen.routed - successor), tree)
    assert "BeginDrain" not in kinds(held)


@pytest.mark.invariant(3)
@pytest.mark.parametrize("silent_group", [0, 1])
def test_of_two_serving_groups_the_one_whose_node_is_silent_is_given_up(silent_group: int) -> None:
    w = world("p1 a  n1:8 n2:8\np1 b  m1:8 m2:8", "1P1D", 2, devices=8)
    w.want(lambda x: replace(x, replicas=1))
    seen = w.observation()
    name = next(i.name for i in seen.instances if i.group_index == silent_group)
    silent = tuple(replace(i, silent=i.name == name) for i in seen.instances)
    given_up = plan(replace(seen, instances=silent), w.fabric())
    assert {w.pods[a.name].new.group_index for a in given_up.actions} == {silent_group}


@pytest.mark.invariant(3)
def test_the_only_group_is_not_given_up_and_the_wait_is_explained() -> None:
    w = world("p1 a  n1:8 n2:8", "1P1D", devices=8)
    w.want(lambda x: replace(x, revision="r2"))
    assert w.settle().actions == ()
    progressing = w.condition("Progressing")
    assert (progressing.status, progressing.reason) == ("False", "NeedsDevices")
    assert "group 0 is the only one that surely serves" in progressing.message
    assert "2 of 2 instances have no node" in progressing.message
    assert len(w.routed) == 2


# A group of two nodes; all but `short` groups fit.
SHORT = "p1 a  n1:8 n2:8\np1 b  m1:8 m2:8\np1 c  k1:8 k2:8"


@pytest.mark.parametrize("wanted_groups", [4, 5])
def test_a_rollout_goes_on_while_a_group_cannot_be_placed(wanted_groups: int) -> None:
    w = world(SHORT, "1P1D", 3, devices=8)
    w.want(lambda x: replace(x, replicas=wanted_groups))
    w.settle()
    assert w.condition("Placed").reason == "NoFit"
    w.want(lambda x: replace(x, revision="r2"))
    fewest = 3
    for _ in range(200):
        w.round()
        fewest = min(fewest, len({g.index for g in w.routes}))
    w.settle()
    assert {p.new.revision for p in w.pods.values()} == {"r2"}
    assert len(w.pods) == 6
    assert fewest == 2, "one group at a time"


def test_a_rollout_stops_at_a_revision_that_does_not_come_up() -> None:
    w = world(ROOMY, "1P1D", 2)
    old = uids(w)
    w.want(lambda x: replace(x, revision="bad"))
    w.operator()
    for pod in pods(w, index=2):
        w.crash_loop(pod.new.name)
    for _ in range(5):
        w.operator()
        w.advance(1)
    assert old <= uids(w)
    assert w.routed >= {p.new.name for p in pods(w, index=0)}


@pytest.mark.invariant(7)
@pytest.mark.parametrize("steps", range(12))
def test_a_revert_deletes_no_serving_pod_of_the_old_revision(steps: int) -> None:
    w = world(ROOMY, "1P1D", 3)
    w.want(lambda x: replace(x, revision="r2"))
    for _ in range(steps):
        w.each(w.kubelet)
        w.push_tables()
        w.each(w.link)
        w.write_routes()
        w.operator()
    serving = {
        n for n in w.routed if w.pods[n].new.revision == "r1" and not w.pods[n].drain_started
    }
    w.want(lambda x: replace(x, revision="r1"))
    w.settle()
    assert serving <= set(w.pods)
    assert {p.new.revision for p in w.pods.values()} == {"r1"}


def test_an_outdated_group_is_not_resized() -> None:
    w = world("p1 a  n1:8 n2:8", "1P1D", devices=4)
    w.want(lambda x: replace(counts(x, 2, 2), revision="r2", locality_mode="Required"))
    w.machines["n1"].foreign = 0
    plan = w.operator()
    assert "CreateInstance" not in kinds(plan)


def _bad_rollout(drawing: str, groups: int, devices: int = 8) -> World:
    """Stuck: the new revision runs, and crashes whenever it does."""
    w = world(drawing, "1P1D", groups, devices=devices)
    w.want(lambda x: replace(x, revision="bad"))
    _crash_the_bad(w, 30)
    assert {g.revision for g in w.routes} == {"r1"}
    return w


def _crash_the_bad(w: World, rounds: int) -> None:
    for _ in range(rounds):
        w.round()
        for pod in list(w.pods.values()):
            if pod.new.revision == "bad" and pod.process is not None:
                w.crash_loop(pod.new.name)
        w.advance(5)


def _serving(w: World) -> set[int]:
    return {g.index for g in w.routes}


# Room for one group more, or for none.
@pytest.mark.parametrize("drawing", [ROOMY, "p1 a  n1:8 n2:8\np1 b  m1:8 m2:8\np1 c  k1:8 k2:8"])
@pytest.mark.parametrize("lost", ["prefill", "decode", "both", "restart"])
def test_a_bad_revision_and_one_fault_per_group_is_no_outage(drawing: str, lost: str) -> None:
    w = _bad_rollout(drawing, 3)
    old = sorted(_serving(w))
    assert len(old) >= 2
    for index in old:
        members = [p for p in pods(w, index=index) if p.new.revision == "r1"]
        for pod in members:
            if lost == "restart":
                w.restart(pod.new.name)
            elif lost in ("both", pod.new.role):
                w.fail(pod.new.name)
        _crash_the_bad(w, 20)
        assert sorted(_serving(w)) == old, "repaired at its own revision"
        assert {g.revision for g in w.routes} == {"r1"}
    # The next revision is a good one.
    w.want(lambda x: replace(x, revision="r3"))
    w.settle()
    assert {p.new.revision for p in w.pods.values()} == {"r3"}
    assert len(_serving(w)) == 3


def test_lost_groups_come_back_at_the_revision_that_serves() -> None:
    w = _bad_rollout(ROOMY, 3)
    for index in (0, 1):
        for pod in pods(w, index=index):
            w.pods.pop(pod.new.name)  # seen by nobody
        w.tables.pop(index)
    _crash_the_bad(w, 60)
    assert len(_serving(w)) == 2, "all but the one that tries the new revision"
    assert {g.revision for g in w.routes} == {"r1"}


def test_a_revision_whose_substitute_fails_too_does_not_hold_up_its_successor() -> None:
    w = world("p1 a  n1:8 n2:8", "1P1D", devices=8)
    w.want(lambda x: replace(x, revision="r2"))
    for _ in range(40):
        for pod in list(w.pods.values()):
            if pod.new.revision == "r1" and pod.new.role == "decode" and pod.process is not None:
                w.crash_loop(pod.new.name)
        w.round()
        w.advance(10)
    w.settle()
    assert {g.revision for g in w.routes} == {"r2"}


@pytest.mark.invariant(7)
@pytest.mark.parametrize("steps", range(0, 24, 2))
def test_a_revert_of_a_bad_revision_deletes_no_serving_pod(steps: int) -> None:
    w = world(ROOMY, "1P1D", 3)
    w.want(lambda x: replace(x, revision="bad"))
    _crash_the_bad(w, steps)
    serving = set(w.routed)
    w.want(lambda x: replace(x, revision="r1"))
    w.settle()
    assert serving <= set(w.pods)
    assert {p.new.revision for p in w.pods.values()} == {"r1"}
    assert len(w.pods) == 6


def test_without_its_template_an_outdated_group_is_left_as_it_is() -> None:
    w = _bad_rollout(ROOMY, 2)
    w.templates.clear()
    w.fail(pods(w, "decode", 0)[0].new.name)
    _crash_the_bad(w, 10)
    assert sorted(_serving(w)) == [1]


# --- the scale unit ------------------------------------------------------------------------------


def test_the_scale_unit_moves_off_before_it_moves_on() -> None:
    w = world(ROOMY, "2P1D")
    (carrier,) = [p for p in w.pods.values() if p.scale_unit]
    w.fail(carrier.new.name)
    moves = [a for a in w.operator().actions if isinstance(a, t.MoveScaleUnit)]
    assert [(m.present, m.name == carrier.new.name) for m in moves] == [
        (False, True),
        (True, False),
    ]
    w.settle()
    assert sum(p.scale_unit for p in w.pods.values()) == 1


# --- status --------------------------------------------------------------------------------------


def test_status_tells_cells_crossing_and_versions() -> None:
    w = world("p1 a  n1:8 n2:8\np1 b  m1:8", "2P1D", devices=8)
    (status,) = w.operator().groups
    assert status.cells == ("a: 1P1D", "b: 1P0D")
    assert status.cross_leaf_percent == 50
    assert (status.prefill_ready, status.prefill_desired) == (2, 2)
    assert status.table_version == 1


def test_a_degraded_group_says_what_it_lacks() -> None:
    w = world(ROOMY, "2P1D", 2)
    w.fail(pods(w, "prefill")[0].new.name)
    w.operator()
    ready = w.condition("Ready")
    assert (ready.status, ready.reason) == ("False", "Degraded")
    assert ready.message == "1/2 P/D groups ready; group 0 has 1/2 prefill, 1/1 decode"
    assert w.condition("Progressing").reason == "Repairing"
    assert "PodFailed" in w.condition("Progressing").message
