"""Rollouts that a person steers: pause, canary, order, deadline, and the turn of a scenario."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support.group_checks import BrokenError, at_every_moment
from tests.support.group_life import ROOMY, kinds, uids, world
from tests.support.group_world import World, wanted

from pdserve.groups import scale
from pdserve.groups.rollout_types import RolloutWanted

FULL = "p1 a  n1:8 n2:8\np1 b  m1:8 m2:8"
"""Two groups of 1P1D with 8 devices each fit, and no more."""
FULL_4 = "p1 a  n1:8 n2:8 n3:8 n4:8\np1 b  m1:8 m2:8 m3:8 m4:8"


def steer(w: World, **rule: Any) -> None:
    """Change `spec.rollout` alone."""
    w.want(lambda x: replace(x, rollout=replace(x.rollout, **rule)))


def roll(w: World, revision: str = "r2", **rule: Any) -> None:
    """Ask for another revision, rolled so."""
    w.want(lambda x: replace(x, revision=revision, rollout=RolloutWanted(**rule)))  # type: ignore[arg-type]


def step(w: World) -> None:
    """One round of everything."""
    w.each(w.kubelet)
    w.push_tables()
    w.each(w.link)
    w.write_routes()
    w.operator()


def revisions(w: World) -> dict[int, str]:
    return {p.new.group_index: p.new.revision for p in w.pods.values()}


def serving(w: World) -> list[str]:
    """The revision of each group that gateways know."""
    return sorted(g.revision for g in w.routes)


@pytest.mark.parametrize("drawing", [ROOMY, FULL])
@pytest.mark.parametrize("steps", range(0, 14, 2))
def test_a_paused_rollout_changes_no_group_until_it_is_resumed(drawing: str, steps: int) -> None:
    w = world(drawing, "1P1D", 2, devices=8)
    roll(w)
    for _ in range(steps):
        step(w)
    begun = {n for n, p in w.pods.items() if p.drain_started is not None}
    stays = {g: r for g, r in revisions(w).items() if not begun & _names(w, g)}
    steer(w, paused=True)
    w.settle()
    assert stays.items() <= revisions(w).items()
    assert len(serving(w)) >= 2
    if set(revisions(w).values()) == {"r1", "r2"} or not steps:
        assert w.condition("Progressing").reason == "RolloutPaused"
    steer(w, paused=False)
    w.settle()
    assert serving(w) == ["r2", "r2"]


def _names(w: World, index: int) -> set[str]:
    return {n for n, p in w.pods.items() if p.new.group_index == index}


@pytest.mark.parametrize("lost", ["one", "all"])
def test_groups_lost_while_paused_come_back_as_they_were(lost: str) -> None:
    w = world(ROOMY, "1P1D", 2)
    roll(w, paused=True)
    w.operator()
    for name in list(w.pods):
        if lost == "all" or w.pods[name].new.group_index == 0:
            w.pods.pop(name)
    for index in (0, 1) if lost == "all" else (0,):
        w.tables.pop(index)
    w.settle()
    assert serving(w) == ["r1", "r1"]


def test_a_paused_rollout_follows_counts_and_replaces_lost_instances() -> None:
    w = world(ROOMY, "1P1D", 2)
    roll(w, paused=True)
    w.fail(sorted(w.pods)[0])
    w.want(lambda x: replace(x, replicas=3))
    w.settle()
    assert serving(w) == ["r1"] * 3
    assert all(p.process is not None for p in w.pods.values())


@pytest.mark.parametrize(
    ("drawing", "order"), [(ROOMY, "Auto"), (FULL, "Auto"), (ROOMY, "DeleteFirst")]
)
def test_a_canary_waits_until_it_is_let_go_on(drawing: str, order: str) -> None:
    w = world(drawing, "1P1D", 2)
    roll(w, canary=1, order=order)
    w.settle()
    assert serving(w) == ["r1", "r2"]
    told = w.condition("Progressing")
    assert (told.status, told.reason) == ("False", "CanaryWaits")
    assert "1 of 2 P/D groups have revision r2" in told.message
    assert w.operator().actions == ()
    steer(w, canary=None)
    w.settle()
    assert serving(w) == ["r2", "r2"]
    assert w.rollout.stable == "r2"


@pytest.mark.invariant(7)
def test_the_way_back_from_a_canary_waits_for_no_canary_and_touches_no_old_group() -> None:
    w = world(ROOMY, "1P1D", 3)
    roll(w, canary=1)
    w.settle()
    old = {p.uid for p in w.pods.values() if p.new.revision == "r1"}
    roll(w, "r1", canary=1)
    w.settle()
    assert serving(w) == ["r1"] * 3
    assert old <= uids(w)


def test_a_rollout_whose_group_does_not_serve_in_time_stops_and_says_so() -> None:
    w = world(ROOMY, "1P1D", 2)
    old = uids(w)
    roll(w, "bad", deadline=100.0)
    w.operator()
    w.operator()
    began = w.now
    while w.condition("Progressing").reason == "RollingOut":
        assert w.now < began + 150
        assert w.last is not None and w.last.requeue_after is not None
        w.advance(min(w.last.requeue_after, 20.0) + 0.001)
        w.operator()
    assert w.now - began == pytest.approx(100, abs=21)
    told = w.condition("Progressing")
    assert (told.status, told.reason) == ("False", "ProgressDeadlineExceeded")
    assert "group 2 did not serve within 100 s" in told.message
    assert old <= uids(w) and len(revisions(w)) == 3
    # A pause and its end give it the time anew; what serves in the end rolls on.
    steer(w, paused=True)
    w.operator()
    steer(w, paused=False)
    w.operator()
    assert w.condition("Progressing").reason == "RollingOut"
    w.settle()
    assert serving(w) == ["bad", "bad"]


def test_create_first_waits_for_spare_devices() -> None:
    w = world(FULL, "1P1D", 2, devices=8)
    before = uids(w)
    roll(w, order="CreateFirst")
    w.settle()
    told = w.condition("Progressing")
    assert told.reason == "NeedsDevices" and "order is CreateFirst" in told.message
    assert uids(w) == before
    w.want(lambda x: replace(x, replicas=1))
    w.settle()
    assert serving(w) == ["r2"]


def test_delete_first_begins_with_an_old_group_though_devices_are_spare() -> None:
    w = world(ROOMY, "1P1D", 2)
    roll(w, order="DeleteFirst")
    assert kinds(w.operator()) == ["BeginDrain"] * 2
    for _ in range(60):
        w.round()
        assert 1 <= len(w.routes) <= 2
    w.settle()
    assert serving(w) == ["r2", "r2"]


@pytest.mark.invariant(3)
def test_an_old_group_stays_until_its_successor_is_whole() -> None:
    w = world(ROOMY, "1P2D", 2, devices=4)
    roll(w)
    w.operator()
    late = max(n for n, p in w.pods.items() if p.new.revision == "r2" and p.new.role == "decode")
    for _ in range(6):
        w.each(lambda name: name != late and w.kubelet(name))
        w.push_tables()
        w.each(w.link)
        w.write_routes()
        assert "BeginDrain" not in kinds(w.operator())
    assert "r2" in serving(w)
    w.settle()
    assert serving(w) == ["r2", "r2"]


@pytest.mark.parametrize("order", ["Auto", "DeleteFirst"])
def test_the_only_group_goes_first_only_where_an_outage_is_allowed(order: str) -> None:
    w = world("p1 a  n1:8 n2:8", "1P1D", devices=8)
    before = uids(w)
    roll(w, order=order)
    w.settle()
    assert w.condition("Progressing").reason == "NeedsDevices" and uids(w) == before
    steer(w, allow_outage=True)
    w.settle()
    assert serving(w) == ["r2"]


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_on_a_full_fabric_as_many_groups_as_allowed_go_at_once(at_once: int) -> None:
    w = world(FULL_4, "1P1D", 4, devices=8)
    roll(w, max_unavailable=at_once)
    fewest, before_first = 4, 4
    for _ in range(200):
        w.round()
        now = len(w.routes)
        if "r2" not in serving(w):
            before_first = min(before_first, now)
        fewest = min(fewest, now)
    w.settle()
    assert serving(w) == ["r2"] * 4
    assert before_first == 3, "one until the new revision serves"
    assert fewest == 4 - at_once


def test_a_scenario_waits_for_its_turn() -> None:
    w = world(ROOMY, "1P1D", 2)
    roll(w, waits_for="search")
    made = w.operator()
    assert made.actions == () and made.requeue_after is not None
    told = w.condition("Progressing")
    assert told.reason == "WaitsForScenario" and "scenario search comes first" in told.message
    steer(w, waits_for="")
    w.settle()
    assert serving(w) == ["r2", "r2"]


def schedule(seed: int, steps: int = 40) -> None:
    """Edits, pauses, reverts and faults in a random order; every action is checked."""
    rng = random.Random(seed)
    w = World(rng.choice([ROOMY, FULL_4]), wanted("1P1D", 3, devices=8))
    w.settle()
    for _ in range(steps):
        match rng.randrange(8):
            case 0:
                steer(w, paused=rng.random() < 0.5, canary=rng.choice([None, 1, 2]))
            case 1:
                w.want(lambda x: replace(x, revision=rng.choice(["r1", "r2"])))
            case 2:
                w.fail(rng.choice(sorted(w.pods) or [""])) if rng.random() < 0.3 else None
            case 3:
                w.advance(rng.choice([1.0, 30.0]))
            case _:
                for _ in range(rng.randrange(1, 4)):
                    w.round()
        at_every_moment(w)
    steer(w, paused=False, canary=None)
    w.settle()
    assert serving(w) == [w.target.revision] * 3


@pytest.mark.invariant(7)
@pytest.mark.parametrize("seed", range(12))
def test_random_rollouts_keep_what_a_person_was_promised(seed: int) -> None:
    schedule(seed)


def _unheld(*_: object) -> None:
    return None


def _serving_goes(live: list, *_: object) -> object:  # type: ignore[type-arg]
    observation = _[0]
    over = len(live) > observation.wanted.replicas  # type: ignore[attr-defined]
    return min(live, key=lambda g: (not g.serving, g.index)) if over else None


@pytest.mark.parametrize(
    ("name", "plant", "says"),
    [
        ("hold_of", _unheld, "a paused rollout|the canary"),
        ("_next_excess", _serving_goes, "invariant 7"),
    ],
)
def test_a_planted_fault_is_found(
    name: str, plant: Callable[..., object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, name, plant)
    with pytest.raises(BrokenError, match=says):
        for seed in range(12):
            schedule(seed)
