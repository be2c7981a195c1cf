"""Choosing by index gives what looking at every instance gives."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from tests.support.choices_by_looking import (
    Happenings,
    best_decodes,
    best_prefills,
    blocked,
    later,
)
from tests.support.dispatch_world import SLO, scenario

from pdserve.forwarding.decode import DecodeWalk, Try
from pdserve.forwarding.dispatch import Dispatcher
from pdserve.forwarding.ranking import NEVER, Ranks, Timetable
from pdserve.forwarding.scenario_view import View
from pdserve.wire.routes import RouteScenario

COSTS = {"leaf": 1, "spine": 4}


def random_scenario(rng: random.Random) -> RouteScenario:
    """One to four groups whose instances stand in several leaves."""
    made = scenario(
        *(
            ([rng.randint(1, 3) for _ in range(rng.randint(0, 6))],
             [rng.randint(1, 4) for _ in range(rng.randint(0, 5))])
            for _ in range(rng.randint(1, 4))
        )
    )  # fmt: skip
    return replace(
        made,
        groups=tuple(
            replace(
                group,
                instances=tuple(
                    replace(i, domains={"leaf": rng.choice("abc"), "spine": rng.choice("xy")})
                    for i in group.instances
                ),
            )
            for group in made.groups
        ),
    )


@pytest.mark.parametrize("seed", range(16))
def test_the_choice_is_one_that_looking_at_all_would_make(seed: int) -> None:
    rng = random.Random(seed)
    costs = rng.choice([{}, COSTS])
    view = View(random_scenario(rng), costs)
    happenings, now, chosen = Happenings(rng), 0.0, 0
    for _ in range(1500):
        instances = list(view.instances())
        if instances:
            happenings.one(rng.choice(instances), now)
        if rng.random() < 0.005:
            view.update(random_scenario(rng), costs)
        now += rng.choice([0.0, 0.0, 0.001, 0.006, 0.1, 1.5])
        if rng.random() < 0.5:
            continue  # several changes between two choices
        want = best_prefills(view, now)
        got = view.index.prefill(now, rng.random)
        assert got in want if want else got is None
        chosen += got is not None
        if got is None:
            assert view.index.later(now) == later(view, now)
        assert view.index.blocked(now) == blocked(view, now)
        for prefill in (i for g in view.groups for i in g.prefills):
            at_decode = best_decodes(view, prefill, now)
            far = partial(view.distance, prefill)
            decode = view.index.decode(prefill.group, far, now, rng.random)
            assert decode in at_decode if at_decode else decode is None
    assert chosen or not any(g.prefills and g.decodes for g in view.groups)


@pytest.mark.parametrize("groups", [1, 3])
def test_equally_good_prefills_are_equally_likely(groups: int) -> None:
    view = View(scenario(*(([1] * (2 + g), [9]) for g in range(groups))), {})
    rng = random.Random(5)
    seen: Counter[str] = Counter()
    for _ in range(6000):
        prefill = view.index.prefill(0.0, rng.random)
        assert prefill is not None
        seen[prefill.id] += 1
        prefill.sent(0.0)
        prefill.abandoned()
    count = sum(len(g.prefills) for g in view.groups)
    assert len(seen) == count
    assert all(0.8 < n * count / 6000 < 1.2 for n in seen.values()), seen


def test_equally_good_decodes_are_equally_likely() -> None:
    view = View(scenario(([1], [4, 4, 4, 4])), {})
    rng, seen = random.Random(5), Counter[str]()
    for _ in range(4000):
        step = DecodeWalk(view, view.groups[0].prefills[0], 1.0, rng.random).next(0.0)
        assert isinstance(step, Try)
        seen[step.decode.id] += 1
        step.decode.abandoned()
    assert all(0.8 < n * 4 / 4000 < 1.2 for n in seen.values()), seen


def test_an_instance_that_left_the_routes_is_noted_no_more() -> None:
    view = View(scenario(([1], [4])), {})
    gone = view.groups[0].prefills[0]
    view.update(RouteScenario("s", SLO, ()), {})
    gone.sent(0.0)
    assert not gone.noted
    assert view.index.prefill(0.0, random.random) is None
    assert view.index.later(0.0) == NEVER


def _looks(view: View, count: int) -> int:
    """How many records so many requests look at, from their offer to their end."""
    dispatcher = Dispatcher(view, random.Random(1).random)
    looked = 0
    for i in view.instances():
        plain = i.health.next_try

        def counted(now: float, plain: Callable[[float], float] = plain) -> float:
            nonlocal looked
            looked += 1
            return plain(now)

        i.health = _Seen(counted)  # type: ignore[assignment]
    view.index.prefill(0.0, random.random)
    looked = 0
    for at in range(count):
        dispatcher.offer(at + 1.0)
        [send] = dispatcher.step(float(at)).sends
        send.prefill.accepted(None, float(at), float(at))
        step = DecodeWalk(view, send.prefill, at + 1.0, random.random).next(float(at))
        assert isinstance(step, Try)
        step.decode.accepted(None, float(at), float(at))
        send.prefill.released()
        step.decode.released()
    return looked


class _Seen:
    """A health that counts who looks at it."""

    ejected = False

    def __init__(self, next_try: Callable[[float], float]) -> None:
        self.next_try = next_try

    def attempt(self) -> None:
        pass

    def success(self) -> None:
        pass


@pytest.mark.interpreted
def test_a_request_looks_at_no_more_instances_where_there_are_more() -> None:
    few = _looks(View(scenario(([4], [64])), {}), 50)
    many = _looks(View(scenario(([4] * 64, [64] * 16)), {}), 50)
    assert 0 < many <= few + 50


@pytest.mark.parametrize("seed", range(5))
def test_the_collections_agree_with_sorting(seed: int) -> None:
    rng = random.Random(seed)
    times: Timetable[int] = Timetable()
    ranks: Ranks[int, tuple[int, int]] = Ranks()
    at: dict[int, float] = {}
    of: dict[int, tuple[int, int]] = {}
    now = 0.0
    for _ in range(5000):
        item = rng.randrange(30)
        at[item] = rng.choice([NEVER, now + rng.random()])
        times.put(item, at[item])
        if rng.random() < 0.3:
            ranks.remove(item)
            of.pop(item, None)
        else:
            of[item] = (rng.randrange(2), rng.randrange(4))
            ranks.put(item, of[item])
        assert times.first() == min(at.values())
        assert ranks.rank() == min(of.values(), default=None)
        assert sorted(ranks.lowest()) == sorted(i for i in of if of[i] == ranks.rank())
        if rng.random() < 0.1:
            now += rng.random() / 4
            due = {i for i, t in at.items() if t <= now}
            assert set(times.take_due(now)) == due
            at = {i: t for i, t in at.items() if i not in due} or {0: NEVER}


def test_a_timetable_keeps_little_beside_what_it_holds() -> None:
    """A time far away that is put off again and again leaves nothing behind."""
    times: Timetable[int] = Timetable()
    tracemalloc.start()
    for n in range(50_000):
        times.put(0, 1e6 + n)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert times.first() == 1e6 + 49_999
    assert kept < 100_000


def test_ranks_keep_little_beside_what_they_hold() -> None:
    """One item stays first while another one takes ever new ranks."""
    ranks: Ranks[int, tuple[float]] = Ranks()
    ranks.put(0, (0.0,))
    tracemalloc.start()
    for n in range(50_000):
        ranks.put(1, (1.0 + n,))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ranks.lowest() == [0]
    ranks.remove(0)
    assert (ranks.rank(), ranks.lowest()) == ((50_000.0,), [1])
    assert kept < 100_000
