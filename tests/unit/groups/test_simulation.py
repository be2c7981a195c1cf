"""The planner against a small world with faults, crashes and random orders of events.

Each step checks the architecture's invariants 1-5, 7 and 8 (`tests.support.group_world`); when the
faults end, everything must come to rest, Ready, with exactly the wanted pods.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.support import group_checks as checks
from tests.support.group_world import World, counts, wanted

from pdserve.groups.rollout_types import Order, RolloutWanted

DRAWING = """p1 a  n1:8 n2:8 n3:8
             p1 b  m1:8 m2:8 m3:8
             p2 c  k1:8 k2:8 k3:8 k4:8"""


def check_rest(world: World) -> None:
    """At rest: Ready, exactly the wanted pods, all routed, and nothing left to do."""
    target = world.target
    ready = world.condition("Ready")
    reason = "AllReady" if target.replicas else "ScaledToZero"
    assert (ready.status == "True", ready.reason) == (target.replicas > 0, reason), world.last
    assert world.condition("Placed").status == "True", world.last
    assert world.condition("Progressing").reason == "Complete", world.last
    pods = sum(role.count * role.members for role in (target.prefill, target.decode))
    assert len(world.pods) == target.replicas * pods
    assert world.routed == frozenset(p.new.instance for p in world.pods.values())
    assert {p.new.revision for p in world.pods.values()} <= {target.revision}
    assert set(world.tables) == {p.new.group_index for p in world.pods.values()}
    assert sum(p.scale_unit for p in world.pods.values()) == target.replicas
    assert world.operator().actions == ()


class GroupLife(RuleBasedStateMachine):
    """Single steps of the operator, the cluster and its users, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(DRAWING, wanted("1P1D", 1, devices=4))
        self.world.settle()

    def _name(self, pick: int) -> str:
        names = sorted(self.world.pods)
        return names[pick % len(names)] if names else ""

    picks = st.integers(0, 31)

    @rule(stop_after=st.one_of(st.none(), st.integers(0, 4)))
    def operator(self, stop_after: int | None) -> None:
        self.world.operator(stop_after)

    @rule(pick=picks)
    def kubelet(self, pick: int) -> None:
        self.world.kubelet(self._name(pick))

    @rule()
    def every_kubelet(self) -> None:
        self.world.each(self.world.kubelet)

    @rule(rounds=st.integers(1, 5))
    def fair_rounds(self, rounds: int) -> None:
        for _ in range(rounds):
            self.world.round()

    @rule()
    def push(self) -> None:
        self.world.push_tables()

    @rule()
    def every_link(self) -> None:
        self.world.each(self.world.link)

    @rule(pick=picks)
    def link(self, pick: int) -> None:
        self.world.link(self._name(pick))

    @rule()
    def routes(self) -> None:
        self.world.write_routes()

    @rule()
    def request(self) -> None:
        self.world.request()

    @rule(pick=picks)
    def finish(self, pick: int) -> None:
        self.world.finish(self._name(pick))

    @rule(seconds=st.sampled_from([0.1, 5.0, 40.0, 400.0]))
    def advance(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(replicas=st.integers(0, 3))
    def scale(self, replicas: int) -> None:
        self.world.want(lambda w: replace(w, replicas=replicas))

    @rule(prefill=st.integers(1, 3), decode=st.integers(1, 3))
    def ratio(self, prefill: int, decode: int) -> None:
        self.world.want(lambda w: counts(w, prefill, decode))

    @rule(revision=st.sampled_from(["r1", "r2"]))
    def revise(self, revision: str) -> None:
        self.world.want(lambda w: replace(w, revision=revision))

    @rule(
        paused=st.booleans(), canary=st.sampled_from([None, 1]),
        order=st.sampled_from(["Auto", "CreateFirst", "DeleteFirst"]), at_once=st.integers(1, 2),
    )  # fmt: skip
    def steer(self, paused: bool, canary: int | None, order: Order, at_once: int) -> None:
        rule_ = RolloutWanted(order, at_once, canary, 300.0, paused=paused)
        self.world.want(lambda w: replace(w, rollout=rule_))

    @rule(
        pick=picks, kind=st.sampled_from(["restart", "crash_loop", "fail", "delete_from_outside"])
    )
    def pod_fault(self, pick: int, kind: str) -> None:
        getattr(self.world, kind)(self._name(pick))

    @rule(node=st.sampled_from(["n1", "m1", "k1"]))
    def silence(self, node: str) -> None:
        self.world.silence(node)

    @rule(node=st.sampled_from(["n1", "m1", "k1"]))
    def hear_again(self, node: str) -> None:
        self.world.hear_again(node)

    @precondition(lambda self: "n2" in self.world.machines)
    @rule()
    def destroy(self) -> None:
        self.world.destroy("n2")

    @invariant()
    def holds(self) -> None:
        checks.at_every_moment(self.world)

    def teardown(self) -> None:
        for node in sorted(self.world.machines):
            self.world.hear_again(node)
        self.world.want(lambda w: replace(w, rollout=RolloutWanted()))
        self.world.settle()
        check_rest(self.world)


GroupLife.TestCase.settings = settings(
    max_examples=60,
    derandomize=True,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
for _number in (1, 2, 3, 4, 5, 7, 8):
    pytest.mark.invariant(_number)(GroupLife.TestCase)
TestGroupLife = GroupLife.TestCase


@pytest.mark.parametrize("seed", range(50))
def test_a_crash_anywhere_in_the_set_up_still_ends_ready(seed: int) -> None:
    """The operator dies after a random action, again and again; no orphan, no duplicate."""
    rng = random.Random(seed)
    world = World(DRAWING, wanted("2P1D", 2, devices=4))
    for _ in range(rng.randint(1, 12)):
        world.operator(stop_after=rng.randint(0, 4))
        step = rng.choice(["kubelet", "push", "link", "routes"])
        for name in sorted(world.pods):
            if step == "kubelet" and rng.random() < 0.7:
                world.kubelet(name)
            elif step == "link" and rng.random() < 0.7:
                world.link(name)
        if step == "push":
            world.push_tables()
        if step == "routes":
            world.write_routes()
        checks.at_every_moment(world)
    world.settle()
    check_rest(world)
