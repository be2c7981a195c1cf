"""Devices freed by a fault, a deletion or a roll belong to their group until it gives them up."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from tests.support.builders import RESOURCE
from tests.support.contention import Scarce, cluster, run, settle
from tests.support.group_world import World, counts, wanted

from pdserve.groups.claims import (
    after_those_ahead,
    of_fullest,
    of_gone_groups,
    reservations,
    with_lifted,
)
from pdserve.groups.types import DeviceClaim, Repair, Suspect
from pdserve.groups.view import PlanDraft
from pdserve.placement import NoFit, place, place_instance
from pdserve.terms import Role
from pdserve.topology import Reservation

SCHEDULES = 200


@pytest.mark.invariant(13)
@pytest.mark.parametrize("scarce", ["devices", "memory"])
@pytest.mark.parametrize("first", range(0, SCHEDULES, 20))
def test_no_serving_group_loses_devices_to_a_waiting_one(first: int, scarce: Scarce) -> None:
    for seed in range(first, first + (20 if scarce == "devices" else 10)):
        run(seed, scarce)


def test_what_is_given_up_goes_to_those_who_wait_by_rank() -> None:
    """`late` comes before `last`; both fit one after the other as `chat` and `code` shrink."""
    worlds = {w.target.name: w for w in cluster()}
    settle(list(worlds.values()))
    worlds["code"].want(lambda w: replace(w, replicas=1))
    order = [worlds[n] for n in ("last", "code", "chat", "late")]
    settle(order)
    assert len(worlds["late"].pods) == 2
    assert worlds["last"].pods == {}
    worlds["chat"].want(lambda w: replace(w, replicas=0))
    settle(order)
    assert len(worlds["last"].pods) == 3


@pytest.mark.parametrize("change", ["smaller", "gone", "node deleted"])
def test_a_claim_ends_when_it_is_given_up(change: str) -> None:
    w = World("p1 a  n1:4 n2:4", wanted("2P2D", devices=2))
    w.settle()
    lost = next(p for p in w.pods.values() if p.new.role == "prefill")
    w.crash_loop(lost.new.name)
    w.operator()
    w.write_routes()
    w.operator()
    assert [c.pod for c in w.claims] == [lost.new.name], "no room for another beside it"
    if change == "smaller":
        w.want(lambda x: counts(x, 1, 2))
    elif change == "gone":
        w.want(lambda x: replace(x, replicas=0))
    else:
        w.destroy(lost.new.node)
    for _ in range(8):
        w.round()
    assert w.claims == ()


def test_what_a_group_left_is_kept_though_another_one_is_made_anew() -> None:
    """All instances of two groups are lost at once; one group is back, the other backs off."""
    w = World("p1 a  n1:8", wanted("1P1D", 2, devices=2))
    w.settle()
    for name in list(w.pods):
        w.delete_from_outside(name)
    w.each(w.kubelet)
    assert w.pods == {}
    slot = next(c.slot for c in w.all_claims() if c.group_index == 1)
    w.repairs = (Repair(slot, 3, w.now, (), w.now + 100, "", "PodFailed", ""),)
    for _ in range(4):
        w.operator()
    assert {p.new.group_index for p in w.pods.values()} == {0}
    assert [c.group_index for c in w.claims if c.pod not in w.pods] == [1, 1]
    w.settle()
    assert len(w.pods) == 4


def test_a_group_made_anew_has_the_claims_of_its_index_though_another_group_left_more() -> None:
    """Group 1 left three, as the successor of a failed pod was there, and backs off."""
    w = World("p1 a  n1:2 n2:2 n3:4", wanted("1P1D", 2, devices=2))
    w.settle()
    first = sorted(p.new.node for p in w.pods.values() if p.new.group_index == 0)
    for name in list(w.pods):
        w.delete_from_outside(name)
    w.each(w.kubelet)
    w.operator()
    assert not w.tables
    extra = next(c for c in w.claims if c.group_index == 1)
    w.claims = (*w.claims, replace(extra, pod=extra.pod[:-6] + "abcdef"))
    w.repairs = (Repair(extra.slot, 3, w.now, (), w.now + 100, "", "PodFailed", ""),)
    for _ in range(4):
        w.operator()
    assert sorted(p.new.node for p in w.pods.values()) == first
    left = {(c.group_index, c.role) for c in w.claims if c.pod not in w.pods}
    assert left == {(1, "prefill"), (1, "decode")}
    w.settle()
    assert len(w.pods) == 4


def test_a_group_made_on_what_another_left_leaves_its_own_to_it() -> None:
    """One claim of group 0 is on a node that is gone: it is made on all that group 1 left."""
    world = World("p1 a  n1:4 n2:4", wanted("1P1D", devices=2))
    own = replace(_claim(0, "d0"), node="n2", takes=(("example.com/npu", 4),))
    lifted = [_claim(1, "p0"), _claim(1, "d0")]
    tree = world.fabric().reserve(reservations([own, *lifted]))
    draft = PlanDraft(tree, claims=[own, *lifted])
    request = world.target.group_request()
    found = with_lifted(draft, lifted, lifted, lambda fabric: place(fabric, request))
    assert not isinstance(found, NoFit)
    assert draft.claims == [own]
    assert {c.pod: c.node for c in draft.spent} == {"g1-d0": "n1", "g1-p0": "n1"}
    assert [draft.fabric.free(n, RESOURCE) for n in ("n1", "n2")] == [4, 0]


@pytest.mark.parametrize("beside", [(), (("memory", 9),)])
def test_what_is_placed_breaks_up_no_larger_place_but_its_own(
    beside: tuple[tuple[str, int], ...],
) -> None:
    """Half of another's would be of no use to it; of its own the rest stays a claim."""
    world = World("p1 a  n1:8", wanted("1P1D", devices=2))
    large = replace(_claim(0, "d0"), takes=((RESOURCE, 4), *beside))
    whole = replace(_claim(0, "p0"), takes=((RESOURCE, 2), *beside))
    tree = world.fabric().reserve([Reservation("other", "n1", RESOURCE, 2)])
    find = partial(place_instance, request=world.target.group_request(), role="prefill", members=())

    def left(claims: list[DeviceClaim], *own: DeviceClaim) -> list[DeviceClaim] | None:
        full = tree.reserve(reservations(claims))
        taken = full.free("n1", RESOURCE)
        full = full.reserve([Reservation("more", "n1", RESOURCE, taken)])
        draft = PlanDraft(full, claims=list(claims))
        found = with_lifted(draft, claims, own, find)
        assert draft.fabric.free("n1", RESOURCE) == (0 if isinstance(found, NoFit) else 2)
        return None if isinstance(found, NoFit) else draft.claims

    assert left([large]) is None
    assert left([large], large) == [replace(large, takes=((RESOURCE, 2),))]
    assert left([large, whole], whole) == [large]


def test_one_that_takes_anothers_place_leaves_its_own_to_it() -> None:
    """Two prefills are lost. One may not go back to its node, and the other backs off."""
    w = World("p1 a  n1:2 n2:2 n3:2", wanted("2P1D", devices=2))
    w.settle()
    first, second = [p for p in w.pods.values() if p.new.role == "prefill"]
    for pod in (first, second):
        w.delete_from_outside(pod.new.name)
        w.kubelet(pod.new.name)
    barred = Suspect(first.new.node, w.now, "Unschedulable")
    w.repairs = (
        Repair(first.new.slot, 2, w.now, (barred,), w.now + 10, first.uid, "Unschedulable"),
        Repair(second.new.slot, 3, w.now, (), w.now + 100, second.uid, "PodFailed"),
    )
    w.operator()
    assert w.tables[0].peer(second.new.name) is None, "until then its place is its slot's alone"
    w.advance(11)
    w.operator()
    w.operator()
    new = next(p for p in w.pods.values() if p.new.slot == first.new.slot)
    assert new.new.node == second.new.node
    left = [(c.slot, c.node) for c in w.claims if c.pod not in w.pods]
    assert left == [(second.new.slot, first.new.node)]
    w.restart_operator()
    w.settle()
    assert len(w.pods) == 3


def test_a_newcomer_that_vanishes_unseen_leaves_its_devices_to_its_group() -> None:
    """It was created in the place of a lost one, and gone before a table named it."""
    w = World("p1 a  n1:4", wanted("1P1D", devices=2))
    w.settle()
    lost = next(p.new for p in w.pods.values() if p.new.role == "decode")
    w.fail(lost.name)
    w.operator()
    new = next(p.new.name for p in w.pods.values() if p.new.replaces is not None)
    w.delete_from_outside(new)
    w.kubelet(new)
    w.restart_operator()
    assert new not in w.pods
    assert [(c.slot, c.node) for c in w.all_claims() if c.pod not in w.pods] == [
        (lost.slot, lost.node)
    ]
    w.settle()
    assert len(w.pods) == 2
    assert w.claims == ()


def test_a_newcomer_is_recorded_though_the_operator_died_before_it_wrote_the_claim() -> None:
    w = World("p1 a  n1:4", wanted("1P1D", devices=2))
    w.settle()
    w.fail(next(p.new.name for p in w.pods.values() if p.new.role == "decode"))
    before = w.claims
    w.operator()
    new = next(p.new.name for p in w.pods.values() if p.new.replaces is not None)
    w.claims = before
    w.restart_operator()
    w.operator()
    assert new in {c.pod for c in w.claims}


def test_a_substitute_that_is_refused_keeps_the_place_for_the_next_try() -> None:
    w = World("p1 a  n1:4", wanted("1P1D", devices=2))
    w.settle()
    lost = next(p.new for p in w.pods.values() if p.new.role == "decode")
    w.fail(lost.name)
    w.operator(refused_after=0)
    refused = w.claims
    assert [(c.slot, c.node) for c in refused] == [(lost.slot, lost.node)]
    for _ in range(3):
        w.operator(refused_after=0)
        assert w.claims == refused, "a refusal that is repeated changes nothing"
    w.restart_operator()
    w.settle()
    assert len(w.pods) == 2


def test_growth_that_is_refused_holds_no_devices() -> None:
    w = World("p1 a  n1:8", wanted("1P1D", devices=2))
    w.operator()
    assert w.claims == ()
    w.want(lambda x: replace(x, replicas=2))
    w.each(w.kubelet)
    for _ in range(3):
        w.operator(refused_after=0)
    assert w.claims
    assert all(c.pod in w.pods for c in w.claims)


def test_two_that_failed_in_one_slot_leave_the_devices_of_both() -> None:
    """A failing one still holds its devices: its successor was given another lost one's."""
    w = World("p1 a  n1:4", wanted("1P1D", devices=2))
    w.settle()
    prefill, decode = sorted(w.pods, key=lambda name: w.pods[name].new.role == "decode")
    slot, uid = w.pods[decode].new.slot, w.pods[decode].uid
    w.delete_from_outside(decode)
    w.kubelet(decode)
    w.repairs = (Repair(slot, 3, w.now, (), w.now + 100, uid, "PodFailed"),)
    w.operator()
    w.crash_loop(prefill)
    w.operator()
    assert prefill in w.pods
    successor = next(p.new.name for p in w.pods.values() if p.new.replaces is not None)
    w.crash_loop(successor)
    w.operator()
    assert [c.pod for c in w.claims] == [prefill, successor]
    for name in (prefill, successor):
        w.delete_from_outside(name)
        w.kubelet(name)
    w.settle()
    assert len(w.pods) == 2


def test_a_group_rolled_twice_gets_the_devices_of_the_fuller_one_back() -> None:
    """Taken back in mid-roll, it leaves some of the old group and all of the new one."""
    world = World("p1 a  n1:8", wanted("1P2D", devices=2))
    draft = PlanDraft(world.fabric(), claims=[_claim(0, "p0"), *map(partial(_claim, 1), SLOTS)])
    assert [c.pod for c in of_fullest(of_gone_groups((), draft))] == ["g1-p0", "g1-d0", "g1-d1"]
    run(700597)


def test_all_groups_that_miss_their_start_at_once_keep_their_devices() -> None:
    run(902040)


def test_of_two_claims_of_one_slot_the_newer_is_kept_whatever_the_names_of_their_pods() -> None:
    """The successor of a failed one was given another's devices; by name it comes first."""
    w = World("p1 a  n1:2 n2:4 n3:2", wanted("1P1D", devices=2))
    w.settle()
    for name in list(w.pods):
        w.delete_from_outside(name)
    w.each(w.kubelet)
    w.operator()
    older = next(c for c in w.claims if c.role == "prefill")
    node = next(n for n in w.machines if n not in {c.node for c in w.claims})
    later = replace(older, pod=f"{older.pod[:-6]}000000", uid="later", node=node)
    w.claims = (*w.claims, later)
    w.repairs = (Repair(older.slot, 3, w.now, (), w.now + 100, "", "PodFailed", ""),)
    for _ in range(2):
        w.operator()
        assert [c.pod for c in w.claims if c.role == "prefill"] == [later.pod]


def test_two_that_fail_to_start_over_and_over_keep_their_devices() -> None:
    run(913462)


def test_of_equal_ones_that_come_first_each_takes_what_it_would_take_alone() -> None:
    """Those that do not fit are looked for once: a tenant may have thousands of them."""
    world = World("p1 a  n1:8 n2:8", wanted("1P1D", devices=2))
    small, large = (wanted("1P1D", devices=n).group_request() for n in (2, 16))
    ahead = (large, small, large, small, large, small)
    left = after_those_ahead(world.fabric(), replace(world.observation(), ahead=ahead))
    tree = world.fabric()
    for request in ahead:
        found = place(tree, request)
        tree = tree if isinstance(found, NoFit) else tree.reserve(found.reservations)
    free = [left.free(n, RESOURCE) for n in ("n1", "n2")]
    assert free == [tree.free(n, RESOURCE) for n in ("n1", "n2")]
    assert sum(free) == 16 - 3 * 4


SLOTS = ("p0", "d0", "d1")
TAKES = (("example.com/npu", 2),)


def _claim(group: int, slot: str) -> DeviceClaim:
    role: Role = "prefill" if slot.startswith("p") else "decode"
    return DeviceClaim(f"g{group}-{slot}", slot, slot, role, group, "n1", TAKES)
