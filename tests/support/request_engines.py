"""Instances for `request_world` that know only what a real one knows: slots, KV, and their end.

They refuse before they queue, hold KV until it is pulled, released or its lease ends, and break
under what they cannot take. Several worlds (gateways) may stand before the same instances.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.dispatch_world import scenario
from tests.support.request_world import PULLING, TOKENS, Client, Clock, World

from pdserve.forwarding.instance import PREFETCH_CREDITS, Instance
from pdserve.forwarding.request.effects import FlowTraits
from pdserve.forwarding.request.leg import Leg
from pdserve.wire.calls import REJECT_FULL
from pdserve.wire.hints import Hint

DELAY = 0.0005
"""Seconds from a gateway to an instance, or back."""
LEASE = 30.0
POISON = "poison"


@dataclass(eq=False)
class Engine:
    """One instance."""

    clock: Clock
    role: str
    slots: int
    seconds: float
    """That a prefill takes, or a token."""
    breaks: bool = False
    """Poison ends it."""
    alive: bool = True
    running: dict[str, tuple[Driven, Leg]] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    most: int = 0
    broken_by: list[str] = field(default_factory=list)
    epoch: int = 0

    @property
    def capacity(self) -> int:
        return self.slots + (PREFETCH_CREDITS if self.role == "decode" else 0)

    @property
    def hint(self) -> Hint:
        self.epoch += 1
        free = max(0, self.capacity - len(self.running) - len(self.held))
        return Hint(free, self.capacity, 0.0 if free else self.seconds, self.epoch)

    def kill(self) -> None:
        """As kill -9 looks from outside; another process takes its place after two seconds."""
        self.alive = False
        self.held.clear()
        lost, self.running = list(self.running.values()), {}
        for client, leg in lost:
            client.later(leg, lambda c, x: c.lose("lost", x))
        self.clock.after(2.0, self._start)

    def _start(self) -> None:
        self.alive = True

    def take(self, client: Driven, leg: Leg, holder: Engine | None) -> None:
        """A leg has arrived."""
        if not self.alive:
            client.later(leg, lambda c, x: c.lose("connect", x))
        elif self.breaks and leg.name.startswith(POISON):
            self.broken_by.append(leg.name.rpartition("-")[0])
            self.running[leg.name] = client, leg
            self.kill()
        elif len(self.running) + len(self.held) >= self.capacity:
            self._answer(client, leg, "refused")
        elif holder is None:
            self._begin(client, leg)
            self.clock.after(self.seconds, lambda: self._prefilled(leg.name))
        elif leg.name not in holder.held:
            self._answer(client, leg, "kv_failed")
        else:
            holder.held.discard(leg.name)
            self._begin(client, leg)
            self._answer(client, leg, "accepted")

    def cut(self, leg: Leg) -> None:
        """The connection of a leg was closed: a decode ends, a prefill waits for its release."""
        if self.role == "decode":
            self.running.pop(leg.name, None)

    def release(self, name: str) -> None:
        self.running.pop(name, None)
        self.held.discard(name)

    def token(self, client: Driven, leg: Leg) -> None:
        """The next token of a stream, and its end."""
        if leg.name not in self.running:
            return
        client.later(leg, lambda c, x: c.tell())
        if client.made < TOKENS:
            client.made += 1
            self.clock.after(self.seconds, lambda: self.token(client, leg))
        else:
            del self.running[leg.name]
            client.later(leg, lambda c, x: c.delivered())

    def _begin(self, client: Driven, leg: Leg) -> None:
        self.running[leg.name] = client, leg
        self.most = max(self.most, len(self.running) + len(self.held))

    def _prefilled(self, name: str) -> None:
        if name not in self.running:
            return
        client, leg = self.running.pop(name)
        self.held.add(name)
        self.clock.after(LEASE, lambda: self.held.discard(name))
        self._answer(client, leg, "accepted")

    def _answer(self, client: Driven, leg: Leg, kind: str) -> None:
        hint = self.hint
        client.later(leg, lambda c, x: c.answer(x, kind, hint))


class Driven(Client):
    """A client whose legs go to engines."""

    made = 0

    @property
    def plant(self) -> Plant:
        world = self.world
        assert isinstance(world, Gateway)
        return world.plant

    def later(self, leg: Leg, event: Callable[[Driven, Leg], None]) -> None:
        """Something about a leg reaches the gateway, if it is still of interest then."""
        clock = self.world.clock
        clock.after(DELAY, lambda: event(self, leg) if leg in self.live else None)

    def sent(self, leg: Leg) -> None:
        engines, source = self.plant.engines, leg.source
        holder = None if source is None else engines[source.instance.id]
        engine = engines[leg.instance.id]
        self.world.clock.after(DELAY, lambda: engine.take(self, leg, holder))

    def delivers(self, leg: Leg) -> None:
        self.made = self.sent_tokens
        engine = self.plant.engines[leg.instance.id]
        self.world.clock.after(engine.seconds, lambda: engine.token(self, leg))

    def dropped(self, leg: Leg) -> None:
        engine = self.plant.engines[leg.instance.id]
        self.world.clock.after(DELAY, lambda: engine.cut(leg))

    def releases(self, prefill: Instance, name: str) -> None:
        engine = self.plant.engines[prefill.id]
        self.world.clock.after(DELAY, lambda: engine.release(name))

    def answer(self, leg: Leg, kind: str, hint: Hint) -> None:
        if kind == "accepted":
            self.head("accepted", hint=hint, leg=leg)
            if leg.kind == "prefill" and leg in self.live:
                self.prefilled(leg)
        elif kind == "refused":
            self.head("refused", REJECT_FULL, 503, hint, leg)
        else:
            self.head("kv_failed", "kv_failed", 502, hint, leg)

    def tell(self) -> None:
        """The client has one token more."""
        if self.sent_tokens < TOKENS:
            self.sent_tokens += 1
            self.request.on_begun()


class Gateway(World):
    """One gateway before a plant."""

    def __init__(self, plant: Plant, seed: int, traits: FlowTraits) -> None:
        self.plant = plant
        super().__init__(plant.scenario, seed, plant.clock, traits, room=1024)


class Plant:
    """Gateways and the instances behind them."""

    def __init__(
        self, prefills: int, decodes: int, gateways: int, seed: int,
        traits: FlowTraits = PULLING, prefill_seconds: float = 0.05, token_seconds: float = 0.02,
    ) -> None:  # fmt: skip
        self.clock = Clock()
        self.scenario = scenario(([1] * prefills, [4] * decodes))
        self.engines = {
            i.id: Engine(
                self.clock, i.role, i.slots,
                prefill_seconds if i.role == "prefill" else token_seconds,
            )
            for i in self.scenario.groups[0].instances
        }  # fmt: skip
        self.gateways = [Gateway(self, seed * 100 + n, traits) for n in range(gateways)]
        self.clients: list[Driven] = []
        self._names = itertools.count()

    def of_role(self, role: str) -> list[Engine]:
        return [e for e in self.engines.values() if e.role == role]

    def arrive(self, gateway: int, name: str = "r", *, stream: bool = True) -> Driven:
        """A client's request; its name is unique."""
        client = Driven(self.gateways[gateway], stream=stream, name=f"{name}{next(self._names)}")
        self.clients.append(client)
        self.gateways[gateway].clients.append(client)
        client.request.on_arrival(self.clock.now)
        return client

    def has(self, client: Driven) -> list[str]:
        """Instances that have something of this client's request."""
        name = client.request.name + "-"
        return [
            e.role
            for e in self.engines.values()
            if any(n.startswith(name) for n in (*e.running, *e.held))
        ]
