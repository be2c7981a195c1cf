"""The waiting room under virtual time, in the world of `tests.support.dispatch_world`."""

from __future__ import annotations

import random

import pytest
from tests.support.dispatch_world import SLO, World, most, poisson, scenario

from pdserve.forwarding.dispatch import Dispatcher
from pdserve.forwarding.scenario_view import View
from pdserve.wire.hints import Hint
from pdserve.wire.routes import RouteGroup, RouteScenario


@pytest.mark.parametrize("hints", [True, False])
@pytest.mark.parametrize("load", [0.5, 0.95, 1.2, 3.0])
def test_attempts_are_bounded_at_every_load(load: float, hints: bool) -> None:
    """Half of every prefill is taken by a client this gateway cannot see."""
    view = View(scenario(([2, 2, 2, 2], [64, 64])), {})
    world = World(view, hints=hints)
    for device in world.devices.values():
        device.others = 1
    for t in poisson(load * 4 / world.service, 20.0, seed=3):
        world.arrive(t)
    world.run()
    ended = [t for _, t in world.accepted] + [t for _, t, _ in world.gave_up]
    assert len(ended) == len(set(map(id, ended)))
    assert max(t.attempts for t in ended) <= most(4, 0.7)
    mean = sum(t.attempts for t in ended) / len(ended)
    assert mean <= (2.0 if hints else 3.0)
    assert len(world.accepted) >= 0.9 * min(load, 1.0) * 20.0 * 4 / world.service
    if load <= 0.5:
        assert not world.gave_up


def test_overload_keeps_devices_busy_and_serves_only_what_can_meet_its_deadline() -> None:
    world = World(View(scenario(([1, 1], [64])), {}))
    for t in poisson(1.5 * 2 / world.service, 40.0, seed=5):
        world.arrive(t)
    world.run()
    assert len(world.accepted) >= 0.97 * 40.0 * 2 / world.service
    assert all(sent <= ticket.deadline for sent, ticket in world.accepted)
    assert {reason for _, _, reason in world.gave_up} == {"deadline"}
    assert all(t >= ticket.deadline for t, ticket, _ in world.gave_up)


def test_the_room_is_served_in_deadline_order() -> None:
    world = World(View(scenario(([1], [8])), {}))
    world.arrive(0.0, deadline=9.0)
    for i, deadline in enumerate([5.0, 3.0, 4.0, 2.0]):
        world.arrive(0.01 + i * 0.001, deadline=deadline)
    world.run()
    assert [t.deadline for _, t in world.accepted] == [9.0, 2.0, 3.0, 4.0, 5.0]


def test_one_probe_per_hinted_free_time_while_the_others_sleep() -> None:
    view = View(scenario(([1], [64])), {})
    world = World(view)
    for i in range(50):
        world.arrive(i * 1e-4, deadline=2.0)
    world.run()
    served = len(world.accepted)
    assert served >= 7  # 2 s of 0.25 s each, all waiting requests share one prober
    assert sum(world.refused.values()) <= 2 * served


def test_a_candidate_is_not_asked_before_its_hint_says_free() -> None:
    view = View(scenario(([1, 1], [8])), {})
    first, second = view.groups[0].prefills
    first.hinted(Hint(0, 1, 0.5, 1), now=10.0)
    second.hinted(Hint(0, 1, 0.2, 1), now=10.0)
    dispatcher = Dispatcher(view, random.Random(1).random)
    dispatcher.offer(11.0)
    assert dispatcher.step(10.0).wake_at == pytest.approx(10.2)
    assert dispatcher.step(10.1).sends == []
    assert [s.prefill for s in dispatcher.step(10.2).sends] == [second]


def test_a_wrong_hint_does_not_starve_a_candidate() -> None:
    view = View(scenario(([1], [8])), {})
    prefill = view.groups[0].prefills[0]
    prefill.hinted(Hint(0, 1, 3600.0, 1), now=0.0)
    dispatcher = Dispatcher(view, random.Random(1).random)
    dispatcher.offer(60.0)
    step = dispatcher.step(0.0)
    assert step.sends == []
    assert step.wake_at <= 2.0
    assert len(dispatcher.step(step.wake_at).sends) == 1


@pytest.mark.invariant(1)
def test_hints_never_authorise() -> None:
    """A prefill that claims to be free but refuses is walked past; the deadline still holds."""
    view = View(scenario(([1, 1, 1], [8])), {})
    world = World(view)
    for device in world.devices.values():
        device.others = 1
        device.hint = lambda now, epoch: Hint(1, 1, 0.0, epoch)  # type: ignore[method-assign]
    world.arrive(0.0, deadline=0.5)
    world.run()
    assert world.accepted == []
    ((when, ticket, _),) = world.gave_up
    assert 2 * 3 + 4 < ticket.attempts <= most(3, 0.5)
    assert when == 0.5, "it goes on until its deadline"


@pytest.mark.parametrize("load", [0.95, 1.5])
def test_two_gateways_share_prefills_without_a_storm(load: float) -> None:
    """The other gateway's legs are invisible except through hints and refusals."""
    views = [View(scenario(([2, 2], [64])), {}) for _ in range(2)]
    worlds = [World(v, seed=i) for i, v in enumerate(views)]
    worlds[1].devices = worlds[0].devices
    for i, world in enumerate(worlds):
        for t in poisson(load * 2 / world.service, 20.0, seed=i):
            world.arrive(t)
    until = 0.0
    while not all(w.over for w in worlds):
        until += 0.0005
        for world in worlds:
            world.run(until)
    legs = sum(len(w.accepted) for w in worlds)
    assert legs >= 0.9 * min(load, 1.0) * 20 * 4 / worlds[0].service
    assert sum(sum(w.refused.values()) for w in worlds) <= 4 * legs


@pytest.mark.parametrize("gateways", [2, 8])
def test_a_burst_through_many_gateways_fails_no_request_that_has_time(gateways: int) -> None:
    """All learn of the same free slot and one of them gets it, time and again."""
    worlds = [World(View(scenario(([1, 1], [64])), {}), seed=i) for i in range(gateways)]
    for i, world in enumerate(worlds):
        world.devices, world.service = worlds[0].devices, 0.02
        for _ in range(40 // gateways):
            world.arrive(0.001 * i, deadline=30.0)
    until = 0.0
    while any(w.dispatcher.waiting for w in worlds) or until == 0.0:
        until += 0.0005
        for world in worlds:
            world.run(until)
    for world in worlds:
        world.run()
    assert [w.gave_up for w in worlds] == [[]] * gateways
    assert sum(len(w.accepted) for w in worlds) == 40
    assert until <= 3 * 40 * 0.02 / 2, "the pace costs little beside the wait itself"


def test_only_groups_with_decode_credit_are_offered_work() -> None:
    view = View(scenario(([4], [1]), ([4], [1])), {})
    dispatcher = Dispatcher(view, random.Random(1).random)
    full, open_ = view.groups
    full.decodes[0].hinted(Hint(0, 3, 0.4, 1), now=0.0)
    sends = []
    for _ in range(5):
        dispatcher.offer(1.0)
        sends += dispatcher.step(0.0).sends
    assert {s.prefill.group for s in sends} == {open_.index}
    assert len(sends) == 3, "one slot and two prefetch credits; no more is promised"
    assert dispatcher.waiting == 2
    assert dispatcher.step(0.0).wake_at == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("prefill_free", "decode_free", "want"),
    [(True, False, "no_decode"), (False, False, "deadline"), (False, True, "deadline")],
)
def test_the_reason_says_which_role_was_short(
    prefill_free: bool, decode_free: bool, want: str
) -> None:
    view = View(scenario(([1], [1])), {})
    prefill, decode = view.groups[0].prefills[0], view.groups[0].decodes[0]
    dispatcher = Dispatcher(view, random.Random(1).random)
    dispatcher.offer(1.0)
    prefill.hinted(Hint(int(prefill_free), 1, 1.5, 1), now=0.0)
    decode.hinted(Hint(3 * decode_free, 3, 1.5, 1), now=0.0)
    assert dispatcher.step(0.0).sends == []
    assert [reason for _, reason in dispatcher.step(1.0).gave_up] == [want]


def test_credit_counts_a_request_between_its_legs_once() -> None:
    view = View(scenario(([4], [1])), {})
    group = view.groups[0]
    prefill, decode = group.prefills[0], group.decodes[0]
    prefill.sent(0.0)
    assert group.decode_credit(0.0) == 2
    prefill.accepted(None, 0.1, 0.0)
    decode.sent(0.1)
    assert group.decode_credit(0.1) == 2
    decode.accepted(None, 0.2, 0.1)
    prefill.released()
    assert group.decode_credit(0.2) == 2
    decode.released()
    assert group.decode_credit(0.3) == 3


def test_the_room_is_bounded_and_a_withdrawn_request_leaves_it() -> None:
    view = View(scenario(([1], [8])), {})
    dispatcher = Dispatcher(view, random.Random(1).random, room_limit=2)
    tickets = [dispatcher.offer(1.0), dispatcher.offer(2.0)]
    assert dispatcher.offer(3.0) is None
    assert tickets[0] is not None
    dispatcher.withdraw(tickets[0])
    dispatcher.withdraw(tickets[0])
    assert dispatcher.waiting == 1
    assert dispatcher.offer(3.0) is not None


def test_the_expected_wait_is_the_room_at_the_pace_of_the_slots() -> None:
    view = View(scenario(([1], [8])), {})
    dispatcher = Dispatcher(view, random.Random(1).random)
    assert dispatcher.wait(0.0) == SLO.ttft, "nothing is known yet"
    prefill = view.groups[0].prefills[0]
    prefill.sent(0.0)
    prefill.accepted(None, 0.5, 0.0)
    prefill.released()
    assert dispatcher.wait(0.5) == 0.0
    prefill.sent(1.0)
    assert dispatcher.wait(1.1) == pytest.approx(0.4)
    for _ in range(9):
        dispatcher.offer(100.0)
    assert dispatcher.wait(1.1) == pytest.approx(0.4 + 9 * 0.5)


@pytest.mark.parametrize("backlog", [4, 10, 40])
def test_a_retry_is_served_when_the_wait_is_over_and_not_much_earlier(backlog: int) -> None:
    """What a refused client learns: within half of the time at which it would be served."""
    world = World(View(scenario(([1, 1], [64])), {}), hints=False, service=0.5)
    for t in (0.0, 0.0):
        world.arrive(t)
    world.run()
    start = world.now
    for _ in range(backlog):
        world.arrive(start, deadline=1e6)
    world.run(start)
    told = world.dispatcher.wait(start)
    world.arrive(start, deadline=1e6 + 1)
    world.run()
    served = max(sent for sent, _ in world.accepted) - start
    assert 0.5 * served <= told <= 1.5 * served


def test_an_instance_that_left_the_table_is_never_chosen() -> None:
    before = scenario(([1, 1], [8]))
    view = View(before, {})
    gone = view.groups[0].prefills[0]
    view.update(RouteScenario("s", SLO, (RouteGroup(0, "r", before.groups[0].instances[1:]),)), {})
    dispatcher = Dispatcher(view, random.Random(1).random)
    for _ in range(4):
        dispatcher.offer(9.0)
    assert all(s.prefill is not gone for s in dispatcher.step(0.0).sends)


def test_what_was_learned_stays_across_table_versions() -> None:
    view = View(scenario(([1], [8])), {})
    view.groups[0].prefills[0].sent(0.0)
    view.update(scenario(([1, 1], [8])), {})
    assert [p.used for p in view.groups[0].prefills] == [1, 0]
