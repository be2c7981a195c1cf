"""One request in `request_world`, played by words: `accepted prefilled accepted delivered`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.support.dispatch_world import scenario
from tests.support.request_world import PULLING, Client, World

from pdserve.forwarding.request.effects import FlowTraits
from pdserve.wire.calls import REJECT_DEADLINE, REJECT_FULL

CONTINUING = PULLING._replace(continues=True)
TOGETHER = PULLING._replace(together=True)
LOCAL = CONTINUING._replace(computes_prompts=True)


def allow_local(world: World) -> None:
    """Let decodes compute prompts of up to 100 tokens."""
    local = replace(world.scheduler.scenario, local_prefill="Fixed", local_prefill_tokens=100)
    world.scheduler.update(local, {}, world.now)


def _unroute(client: Client) -> None:
    """All instances have left the route table; the scenario is in it."""
    scheduler = client.world.scheduler
    scheduler.update(replace(scheduler.scenario, groups=()), {}, client.world.now)


def _retire(client: Client) -> None:
    """The scenario has left the route table, or nothing in it serves its model any more."""
    client.world.replace(None)


def _replace(client: Client) -> None:
    """All instances have left the route table, and those of another engine type are in it."""
    groups = scenario(([], []), ([1], [1])).groups[1:]
    client.world.replace(replace(client.world.scheduler.scenario, groups=groups))


def _decode(client: Client) -> None:
    """The decode of a pair begins its reply."""
    client.head(leg=next(leg for leg in client.live if leg.kind == "decode"))


def _prefill(client: Client) -> None:
    """The prefill of a pair answers."""
    leg = next(leg for leg in client.live if leg.kind == "prefill")
    client.head(leg=leg)
    client.prefilled(leg)


def _token(client: Client) -> None:
    client.sent_tokens += 1
    client.request.on_begun()


STEPS: dict[str, Callable[[Client], None]] = {
    "accepted": lambda c: c.head(),
    "prefilled": lambda c: c.prefilled(),
    "finished": lambda c: c.prefilled(finished=True),
    "unreadable": lambda c: c.request.on_unreadable(c.leg, "nonsense", c.world.now),
    "full": lambda c: c.head("refused", REJECT_FULL, 503),
    "late": lambda c: c.head("refused", REJECT_DEADLINE, 503),
    "500": lambda c: c.head("failed", "", 500),
    "400": lambda c: c.head("client_error", "", 400),
    "kv-failed": lambda c: c.head("kv_failed", "kv_failed", 502),
    "read": lambda c: c.request.on_read(c.leg, c.world.now),
    "lacks": lambda c: c.request.on_read(c.leg, c.world.now, lacks_local=True),
    "lost": lambda c: c.lose(),
    "connect": lambda c: c.lose("connect"),
    "silent": lambda c: c.lose("timeout"),
    "interim": lambda c: c.request.on_interim(c.leg, c.world.now),
    "overdue": lambda c: c.request.on_overdue(c.leg, c.world.now),
    "token": _token,
    "delivered": lambda c: c.delivered(),
    "odd-end": lambda c: c.delivered(whole=False),
    "gone": lambda c: c.request.on_client_gone(c.world.now),
    "decode": _decode,
    "prefill": _prefill,
    "unrouted": _unroute,
    "retired": _retire,
    "replaced": _replace,
    "soon": lambda c: c.world.clock.wait(0.02),
    "later": lambda c: c.world.clock.wait(0.2),
    "much-later": lambda c: c.world.clock.wait(40.0),
}


def play(
    script: str, traits: FlowTraits = PULLING, *, stream: bool = True, prefills: int = 1,
    decodes: int = 1,
) -> Client:  # fmt: skip
    """The client after these steps, in a scenario of one group with a slot of each."""
    world = World(scenario(([1] * prefills, [1] * decodes)), traits=traits)
    if traits.computes_prompts:
        allow_local(world)
    client = world.arrive(stream=stream)
    for step in script.split():
        STEPS[step](client)
    return client
