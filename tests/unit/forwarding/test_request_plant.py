"""Gateways before instances in virtual time: what one request may cost, and what it leaves."""

from __future__ import annotations

import random

import pytest
from tests.support.request_engines import POISON, Driven, Plant
from tests.support.request_script import CONTINUING
from tests.support.request_world import PULLING

from pdserve.forwarding.request.effects import FlowTraits


def spread(plant: Plant, count: int, seconds: float, rng: random.Random) -> None:
    """So many requests, at random times of the next seconds and at random gateways."""
    for _ in range(count):
        gateway, stream = rng.randrange(len(plant.gateways)), rng.random() < 0.7

        def arrive(gateway: int = gateway, stream: bool = stream) -> None:
            plant.arrive(gateway, stream=stream)

        plant.clock.after(rng.random() * seconds, arrive)


def settled(plant: Plant) -> None:
    """Nothing is left at an instance, and no gateway counts anything."""
    for engine in plant.engines.values():
        assert engine.most <= engine.capacity, "no request waits inside an instance"
        assert not engine.running
        assert not engine.held
    for gateway in plant.gateways:
        assert gateway.at_rest
        assert gateway.counts.ended == len(gateway.clients)


@pytest.mark.invariant(12)
@pytest.mark.parametrize("seed", range(4))
def test_what_a_vanished_client_held_is_free_within_a_second(seed: int) -> None:
    rng = random.Random(seed)
    plant = Plant(4, 3, gateways=3, seed=seed)
    checked = 0

    def leave(client: Driven) -> None:
        client.request.on_client_gone(plant.clock.now)
        plant.clock.after(1.0, lambda: check(client))

    def check(client: Driven) -> None:
        nonlocal checked
        checked += 1
        assert plant.has(client) == []

    def arrive() -> None:
        client = plant.arrive(rng.randrange(3), stream=rng.random() < 0.7)
        if rng.random() < 0.5:
            plant.clock.after(rng.random() * 0.3, lambda: leave(client))

    for _ in range(400):
        plant.clock.after(rng.random() * 8.0, arrive)
    plant.clock.run(plant.clock.now + 25.0)
    assert checked > 100
    settled(plant)


@pytest.mark.invariant(11)
@pytest.mark.parametrize("traits", [PULLING, CONTINUING], ids=["pull", "continue"])
@pytest.mark.parametrize("deadly", ["prefill", "decode", "both"])
def test_one_request_fails_at_most_two_instances_and_no_other_request(
    deadly: str, traits: FlowTraits
) -> None:
    """A stream that has begun is lost with its decode, where the engine cannot go on with it."""
    for seed in range(4):
        rng = random.Random(seed)
        plant = Plant(8, 8, gateways=2, seed=seed, traits=traits)
        for engine in plant.engines.values():
            engine.breaks = deadly in (engine.role, "both")
        spread(plant, 60, 4.0, rng)
        plant.clock.after(2.0, lambda p=plant: p.arrive(0, POISON))  # type: ignore[misc]
        plant.clock.run(plant.clock.now + 60.0)
        broken = [name for e in plant.engines.values() for name in e.broken_by]
        assert len(broken) == 2, (seed, broken)
        poison = next(c for c in plant.clients if c.request.name.startswith(POISON))
        assert poison.request.outcome == "failed"
        for client in plant.clients:
            begun = client.request.begun and traits is PULLING
            if client is not poison and not begun:
                assert client.request.outcome == "completed", (seed, client.log)
        settled(plant)


@pytest.mark.invariant(11)
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_killed_instance_costs_no_request(role: str) -> None:
    for seed in range(6):
        rng = random.Random(seed)
        plant = Plant(6, 4, gateways=3, seed=seed, traits=CONTINUING)
        spread(plant, 120, 3.0, rng)
        plant.clock.after(rng.uniform(0.5, 2.5), rng.choice(plant.of_role(role)).kill)
        plant.clock.run(plant.clock.now + 60.0)
        outcomes = {client.request.outcome for client in plant.clients}
        assert outcomes == {"completed"}, seed
        assert all(c.sent_tokens == 4 or not c.request.streamed for c in plant.clients)
        settled(plant)
