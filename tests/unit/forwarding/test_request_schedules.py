"""Random schedules of answers, losses, waits, rollouts and clients that leave: what always holds.

`request_world.Client` checks on the way that each leg ends once, that one decode has a request at a
time, that KV is released once, and that nothing is asked of a driver after the end.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tests.support.dispatch_world import scenario
from tests.support.request_script import CONTINUING, LOCAL, STEPS, TOGETHER, allow_local
from tests.support.request_world import PULLING, TOKENS, Client, World

from pdserve.forwarding.request.effects import FlowTraits
from pdserve.forwarding.request.leg import Leg
from pdserve.forwarding.request.state import MAX_FAULTS

SCHEDULES = 150
ACTIONS = 150
HEADS = {"accepted": 10, "full": 4, "late": 1, "500": 1, "400": 1, "kv-failed": 1}
GROUPS = ([2, 1], [2, 2]), ([1], [1])
LOSSES = {"lost": 1, "connect": 1, "silent": 1}


class Schedule:
    """A few clients at a time, each with what may happen to it next."""

    def __init__(self, traits: FlowTraits, seed: int) -> None:
        self.rng = random.Random(seed)
        self.traits, self.rollouts = traits, 0
        self.world = World(scenario(*GROUPS), seed, traits=traits, room=4)
        if traits.computes_prompts:
            allow_local(self.world)
        self.taken: set[str] = set()
        """Names whose KV a decode has, or may have."""

    def run(self) -> None:
        for _ in range(ACTIONS):
            active = [c for c in self.world.clients if c.ending == "none"]
            what = self.rng.random()
            if len(active) < 2 or (what < 0.15 and len(active) < 8):
                self.world.arrive(stream=self.rng.random() < 0.7)
            elif what < 0.17 and self.rollouts < 2:
                self.roll_out()
            elif what < 0.35:
                self.world.clock.wait(self.rng.choice((0.001, 0.02, 0.3)))
            else:
                self.act(self.rng.choice(active))
        for client in self.world.clients:
            client.request.on_client_gone(self.world.now)

    def roll_out(self) -> None:
        """Another engine type takes the scenario over."""
        self.rollouts += 1
        others: list[tuple[list[int], list[int]]] = [([], [])] * (self.rollouts * len(GROUPS))
        new = scenario(*others, *GROUPS)
        self.world.replace(
            replace(new, groups=new.groups[len(others) :]),
            self.rng.choice([self.traits, PULLING, TOGETHER]),
        )

    def act(self, client: Client) -> None:
        if not client.live or self.rng.random() < 0.03:
            if self.rng.random() < 0.2:
                STEPS["gone"](client)
            return
        leg = self.rng.choice(client.live)
        client.live.remove(leg)  # so that it is the last, which steps are about
        client.live.append(leg)
        step = self.step_of(client, leg)
        if step and step in ("interim", "accepted", "lost", "silent") and leg.source is not None:
            self.taken.add(leg.name)
        if step:
            STEPS[step](client)

    def step_of(self, client: Client, leg: Leg) -> str:
        """Something that may happen to a leg now; empty: nothing."""
        if not leg.answer:
            more = {"interim": 2, "overdue": 2} if leg.kind != "prefill" else {}
            return self.one_of({**HEADS, **LOSSES, **more})
        if leg.answer != "accepted":
            return self.one_of(
                {"read": 4, "lost": 1, **({"lacks": 2} if leg.kind == "local" else {})}
            )
        if leg.kind == "prefill":
            return self.one_of({"prefilled": 9, "finished": 1, "unreadable": 1, "lost": 1})
        if f"deliver {leg.instance.id}" not in client.log:
            return ""  # a pair's: the loss of its connection is an event once its reply is wanted
        if client.sent_tokens >= TOKENS:
            return self.one_of({"delivered": 6, "odd-end": 1, "lost": 1})
        return self.one_of({"token": 8, "lost": 1})

    def one_of(self, weights: dict[str, int]) -> str:
        return self.rng.choices(list(weights), list(weights.values()))[0]


@pytest.mark.parametrize(
    "traits", [PULLING, CONTINUING, LOCAL, TOGETHER], ids=["pull", "continue", "local", "together"]
)
def test_any_schedule(traits: FlowTraits) -> None:
    seen = set()
    for seed in range(SCHEDULES):
        schedule = Schedule(traits, seed)
        schedule.run()
        world, clients = schedule.world, schedule.world.clients
        assert world.at_rest, seed
        assert all(c.ending != "none" for c in clients), seed
        invalid = sum(c.request.invalid for c in clients)
        assert world.counts.ended + invalid == len(clients), "each is counted once"
        assert world.scheduler.budget.available >= 0
        for client in clients:
            request = client.request
            seen.add(request.outcome or ("invalid" if request.invalid else "left"))
            assert request.faults <= MAX_FAULTS, "a request costs two instances"
            assert request.repeated <= 1 + request.continued
            for leg in request.legs:
                if leg.kind == "prefill" and leg.result == "accepted":
                    done = client.released[leg.name] or leg.name in schedule.taken
                    assert done or leg.decode is not None, f"{seed}: {leg.name} is held in vain"
                elif leg.kind == "prefill" and leg.result in ("cancelled", "failed: lost"):
                    assert client.released[leg.name] or leg not in client.over, seed
    assert {"completed", "failed", "expired", "left", "invalid"} <= seen


def test_a_bug_in_one_request_costs_no_other() -> None:
    """A request that is chosen while another one's event is handled must not end that one."""
    world = World(scenario(([1], [4])))

    class Broken(Client):
        def sent(self, leg: Leg) -> None:
            raise RuntimeError("a bug")

    first = world.arrive()
    broken, last = world.arrive(Broken), world.arrive()
    STEPS["400"](first)
    STEPS["read"](first)
    world.clock.wait(0.1)
    assert [type(c.ending).__name__ for c in (first, broken)] == ["ClientMistake", "Bug"]
    assert broken.request.outcome == "failed"
    for step in ("accepted", "prefilled", "accepted", "delivered"):
        STEPS[step](last)
    assert last.request.outcome == "completed"
    assert world.at_rest
