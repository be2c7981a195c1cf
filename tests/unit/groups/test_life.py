"""The life of P/D groups in short scenarios, in the world of `tests.support.group_world`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.group_life import ROOMY, THREE, kinds, pods, uids, world
from tests.support.group_world import World, counts, wanted

from pdserve.groups import types as t
from pdserve.groups.plan import plan as plan_of
from pdserve.terms import Role

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


def test_a_half_made_gang_is_completed_before_others_that_wait() -> None:
    """A POST failed: its devices were free for it, and are (seed 610608 of the simulation)."""
    w = World("p1 a  n1:8 n2:8", wanted("1P1D"))
    w.operator()
    del w.pods[pods(w, "decode")[0].new.name]
    (half,) = w.pods
    waiting = wanted("1P1D", devices=4).group_request()
    seen, tree = replace(w.observation(), ahead=(waiting,)), w.fabric()
    made = plan_of(seen, tree)
    assert [a.pod.role for a in made.actions if isinstance(a, t.CreateInstance)] == ["decode"]
    assert half not in {a.name for a in made.actions if isinstance(a, t.BeginDrain | t.DeletePod)}


def test_a_half_made_successor_is_completed_with_what_its_predecessor_left() -> None:
    """The claims were counted for all of it (seed 610608 of the simulation)."""
    w = world("p1 a  n1:8 n2:8 n3:8 n4:8", "1P1D", 2, devices=8)
    w.want(lambda x: replace(x, revision="r2"))
    made = w.operator()
    while not any(isinstance(a, t.CreateGroup) for a in made.actions):
        told = w.claims
        _, made = w.round()
        w.advance(1)
    # The POST of the decode failed, so status was not written; the claims are another index's.
    w.claims = tuple(
        replace(
            c, group_index=7, slot=c.slot.replace("-1-", "-7-"), pod=c.pod.replace("-1-", "-7-")
        )
        for c in told
    )
    (half,) = (a.pods for a in made.actions if isinstance(a, t.CreateGroup))
    del w.pods[next(p.name for p in half if p.role == "decode")]
    again = w.operator()
    assert "CreateInstance" in kinds(again) and "BeginDrain" not in kinds(again)


# --- scaling and the ratio -----------------------------------------------------------------------


@pytest.mark.invariant(3)
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_instance_stays_until_gateways_know_another_of_its_role(role: Role) -> None:
    """Routes and counts are written by two reconcilers (seed 621446 of the simulation)."""
    w = world(ROOMY, "2P2D")
    w.want(lambda x: counts(x, *((1, 2) if role == "prefill" else (2, 1))))
    seen, tree = w.observation(), w.fabric()

    def drained(observation: t.Observation) -> list[str]:
        actions = plan_of(observation, tree).actions
        return [a.name for a in actions if isinstance(a, t.BeginDrain)]

    (leaves,) = drained(seen)
    (stays,) = {p.new.name for p in pods(w, role)} - {leaves}
    assert drained(replace(seen, routed=seen.routed - {stays})) == []
    assert drained(replace(seen, routed=frozenset())) == []
    assert drained(replace(seen, routed=seen.routed - {leaves})) == [leaves]
    assert drained(replace(seen, routed=frozenset(), has_routes=False)) == [leaves]


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


def test_what_is_in_a_table_but_was_never_linked_is_not_waited_for() -> None:
    w = world(ROOMY, "1P1D")
    w.want(lambda x: replace(x, replicas=2))
    w.operator()
    new = [p.new.name for role in ("prefill", "decode") for p in pods(w, role, 1)]
    for name in (*new, *new):
        w.kubelet(name)
    assert kinds(w.operator()) == ["PublishTable"]
    # Its engines answer neither the table nor a drain; devices may be waited for elsewhere.
    w.want(lambda x: replace(x, replicas=1))
    assert kinds(w.operator()) == ["BeginDrain", "BeginDrain"]
    assert kinds(w.operator()) == ["PublishTable"]
    assert kinds(w.operator()) == ["DeletePod", "DeletePod"]


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
