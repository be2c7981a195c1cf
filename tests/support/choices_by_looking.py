"""Who is asked next, found by looking at every instance: what the index must agree with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from pdserve.forwarding.instance import Instance
from pdserve.forwarding.scenario_view import View
from pdserve.terms.failures import Failure
from pdserve.wire.hints import Hint

NEVER = float("inf")
KINDS: tuple[Failure, ...] = ("connect", "lost", "status", "timeout")


def best_prefills(view: View, now: float) -> list[Instance]:
    """All that are equally good to ask now."""
    able = [
        p
        for g in view.groups
        if g.decode_credit(now) > 0
        for p in g.prefills
        if p.next_try(now) <= now
    ]
    return lowest(able, lambda p: (p.free <= 0, p.used))


def later(view: View, now: float) -> float:
    """When another prefill may become worth asking."""
    times = [NEVER]
    for group in view.groups:
        if group.decode_credit(now) <= 0:
            times.append(group.next_credit(now))
        else:
            times += [t for p in group.prefills if (t := p.next_try(now)) > now]
    return min(times)


def blocked(view: View, now: float) -> bool:
    """Whether only decodes keep requests waiting."""
    idle = [g for g in view.groups if any(p.next_try(now) <= now for p in g.prefills)]
    return bool(idle) and all(g.decode_credit(now) <= 0 for g in idle)


def best_decodes(view: View, prefill: Instance, now: float) -> list[Instance]:
    """All decodes of the prefill's group that are equally good to ask first."""
    group = view.group(prefill.group)
    alive = [d for d in group.decodes if d.health.next_try(now) <= now] if group else []
    return lowest(
        alive,
        lambda d: (
            d.next_try(now) > now, (d.total - d.free) / d.total, view.distance(prefill, d),
        ),
    )  # fmt: skip


def lowest(items: list[Instance], key: Callable[[Instance], tuple[float, ...]]) -> list[Instance]:
    """All items with the smallest key."""
    first = min(map(key, items), default=None)
    return [i for i in items if key(i) == first]


class Happenings:
    """Random things that happen to instances, such as requests cause them."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._open: dict[Instance, list[str]] = {}
        self._epoch = 0

    def one(self, instance: Instance, now: float) -> None:
        """One event of a leg, or a new leg, at `now`."""
        legs = self._open.setdefault(instance, [])
        if not legs or self._rng.random() < 0.35:
            instance.sent(now)
            legs.append("sent")
            return
        at = self._rng.randrange(len(legs))
        for state in self._after(instance, legs.pop(at), now):
            legs.append(state)

    def _hint(self, now: float) -> Hint | None:
        self._epoch += self._rng.randint(0, 1)
        total = self._rng.randint(1, 5)
        wait = self._rng.choice([0.0, 0.004, 0.3, 5.0])
        made = Hint(self._rng.randint(0, total), total, wait, self._epoch)
        return self._rng.choice([None, made])

    def _after(self, instance: Instance, state: str, now: float) -> Iterator[str]:
        rng = self._rng
        if state == "held":
            match rng.randrange(3):
                case 0:
                    instance.lost(now)
                case 1:
                    instance.released()
                case _:
                    instance.released(now, now - rng.random())
            return
        match rng.randrange(8):
            case 0:
                instance.rejected(self._hint(now), now, serving=rng.random() < 0.8)
            case 1:
                instance.failed(rng.choice(KINDS), now)
            case 2:
                instance.abandoned()
            case 3:
                instance.answered()
                instance.hinted(self._hint(now), now)
            case 4:
                instance.taken()
                instance.revoked()
                yield "sent"
            case _:
                instance.accepted(self._hint(now), now, now - rng.random())
                yield "held"
