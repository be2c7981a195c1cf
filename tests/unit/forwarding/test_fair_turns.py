"""Under more load than prefills take, each client gets its equal share, and no other is harmed."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest
from tests.support.dispatch_world import SLO, World, scenario

from pdserve.forwarding.dispatch import Dispatcher, Send, Ticket
from pdserve.forwarding.fair_turns import FairTurns, Turn
from pdserve.forwarding.scenario_view import View

CAPACITY = 40.0
"""Prefills a second: one with 10 slots of 0.25 s."""
SECONDS = 30.0


class Shared(World):
    """Clients that send at rates of their own, with and without fair turns."""

    def __init__(self, rates: dict[str, float], fair: bool, seed: int, tokens: int = 100) -> None:
        super().__init__(View(scenario(([10], [400])), {}), seed)
        self.turns, self.fair, self.tokens = FairTurns(), fair, tokens
        self.of: dict[Ticket, Turn] = {}
        self.offered: Counter[str] = Counter()
        draw = random.Random(seed)
        for name, rate in rates.items():
            at = draw.expovariate(rate)
            while at < SECONDS:
                self.at(at, partial(self.come, name))
                at += draw.expovariate(rate)

    def come(self, name: str) -> None:
        turn = Turn(name.encode(), name.startswith("batch"))
        self.offered[name] += 1
        deadline = self.now + 0.7
        rank = self.turns.rank(turn, deadline, SLO.ttft, self.now) if self.fair else None
        shed = turn.sheddable and self.fair
        ticket = self.dispatcher.offer(deadline, rank=rank, sheddable=shed)
        if ticket is not None:
            self.of[ticket] = turn

    def _send(self, send: Send) -> None:
        before = len(self.devices["g0p0"].busy_until), self.refused.total()
        super()._send(send)
        if self.refused.total() == before[1]:
            self.turns.prefilled(self.of[send.ticket], self.tokens, self.now)

    def served(self) -> dict[str, float]:
        """Requests a second of each client that a prefill took in time."""
        self.run()
        taken = Counter(self.of[t].client.decode() for _, t in self.accepted)
        return {name: taken[name] / SECONDS for name in self.offered}


RATES = [
    {"flood": 200.0, "steady": 15.0, "rare": 2.0},
    {"flood": 100.0, "other flood": 40.0},
    {"flood": 300.0, **{f"user {n}": 3.0 for n in range(8)}},
]


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("seed", range(3))
def test_a_flood_leaves_each_other_client_its_equal_share(
    rates: dict[str, float], seed: int
) -> None:
    got = Shared(rates, fair=True, seed=seed).served()
    usual = Shared(rates, fair=False, seed=seed).served()
    share = CAPACITY / len(rates)
    for name, rate in rates.items():
        # Poisson arrivals: what comes may be a little less than the rate.
        assert got[name] >= 0.75 * min(share, rate), (name, got, usual)
    assert sum(got.values()) >= 0.97 * sum(usual.values()), "no work is lost by it"
    assert any(usual[name] < 0.8 * min(share, rate) for name, rate in rates.items())


def test_without_too_much_to_do_all_are_served() -> None:
    rates = {"large": 25.0, "small": 3.0, "batch": 3.0}
    world = Shared(rates, fair=True, seed=1)
    got = world.served()
    for name in rates:
        assert got[name] * SECONDS >= 0.99 * world.offered[name]


def test_sheddable_requests_get_what_others_leave() -> None:
    world = Shared({"people": 35.0, "batch": 100.0}, fair=True, seed=2)
    got = world.served()
    assert got["people"] * SECONDS >= 0.95 * world.offered["people"]
    assert got["batch"] >= 0.5 * (CAPACITY - 35.0)
    assert sum(got.values()) >= 0.9 * CAPACITY


def test_a_full_room_sheds_before_it_refuses() -> None:
    room = Dispatcher(View(scenario(([1], [4])), {}), random.Random(1).random, room_limit=3)
    batch = [room.offer(10.0 + n, sheddable=True) for n in range(3)]
    assert room.offer(1.0, sheddable=True) is None, "one of them makes no room for another"
    taken = room.offer(20.0, rank=9.0)
    assert taken is not None
    assert [(t, r) for t, r in room.step(0.0).gave_up] == [(batch[2], "shed")]
    assert set(room.room) <= {*batch[:2], taken}


def test_one_client_has_the_turns_of_its_deadlines() -> None:
    turns, turn = FairTurns(), Turn(b"a")
    ranks = [turns.rank(turn, at + 1.0, 1.0, at) for at in (0.0, 0.1, 0.2)]
    assert ranks == pytest.approx([0.0, 0.1, 0.2])
    turns.prefilled(turn, 1000, 0.2)
    assert turns.rank(turn, 1.3, 1.0, 0.3) == pytest.approx(0.3)


def test_a_client_that_stayed_away_has_saved_nothing_up() -> None:
    turns = FairTurns()
    turns.rank(Turn(b"early"), 1.0, 1.0, 0.0)
    for now in range(60):
        turns.rank(Turn(b"busy"), now + 1.0, 1.0, now)
        turns.prefilled(Turn(b"busy"), 100, now)
    assert turns.clients == 1
    turns.prefilled(Turn(b"early"), 100, 60.0)
    assert turns.rank(Turn(b"busy"), 61.0, 1.0, 60.0) == pytest.approx(60.0)


@pytest.mark.parametrize("pause", [1.0, 1e3, 1e5, 1e9])
def test_counts_survive_any_pause_and_any_number(pause: float) -> None:
    turns, one, two = FairTurns(), Turn(b"one"), Turn(b"two")
    now = 0.0
    for _ in range(50):
        for turn in (one, two):
            assert now <= turns.rank(turn, now + 2.0, 1.0, now) + 1.0 <= now + 2.0
        turns.prefilled(one, 1 << 31, now)
        turns.generated(two, -5, now)
        now += pause
    turns.rank(one, now, 1.0, now)
    assert turns.rank(two, now + 2.0, 1.0, now) == pytest.approx(now)


def test_what_is_kept_is_bounded_by_who_came_of_late() -> None:
    turns = FairTurns()
    for number in range(5000):
        turn = Turn(b"%d" % number)
        turns.rank(turn, number + 1.0, 1.0, float(number))
        turns.prefilled(turn, 10, float(number))
    assert turns.clients <= 12
