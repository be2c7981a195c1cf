"""Rollouts, reverts and revisions that do not come up, in `tests.support.group_world`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.group_life import ROOMY, kinds, pods, uids, world
from tests.support.group_world import World, counts

from pdserve.groups import types as t
from pdserve.groups.plan import plan


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
    without = replace(seen, routed=frozenset(), has_routes=False)
    assert "BeginDrain" in kinds(plan(without, w.fabric()))
    assert "BeginDrain" not in kinds(plan(replace(without, has_routes=True), w.fabric()))


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
    drained = [a.name for a in given_up.actions if isinstance(a, t.BeginDrain)]
    assert len(drained) == len(given_up.actions)
    assert {w.pods[name].new.group_index for name in drained} == {silent_group}


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
            w.pods.pop(pod.new.name)  # before any observation shows it
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
