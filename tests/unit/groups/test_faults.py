"""Faults in the life of P/D groups: what is replaced, and when."""

from __future__ import annotations

import pytest
from tests.support.group_life import ROOMY, kinds, pods, uids, world

from pdserve.groups import types as t


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
