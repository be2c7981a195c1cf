"""Which decode of the group takes a request whose KV waits in a prefill.

The prefill keeps its slot until a decode has pulled, so the walk is short and bounded:

1. The walk asks every live decode of the group once: those expected to be free first, then the
   least loaded by share of its places, then the nearest to the prefill by tier cost, then random.
2. Then it asks each decode that becomes free by its hint or by the end of one of our own streams,
   until the deadline: the earlier of the handoff deadline and the end of the KV lease less two
   seconds. `attempt_pacing` bounds what the walk costs: room that comes soon is found soon.

A group that left the routes takes no new request, but its decodes drain after its prefills: what a
prefill of it holds still goes to them.

Two decodes that could not pull the KV mean that the prefill lost it: `GiveUp("kv_lost")`. A group
whose decodes are all ejected, while another group has a live one: `GiveUp("no_decode")`. In both
cases a new prefill helps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from pdserve.forwarding.attempt_pacing import next_attempt
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.scenario_view import Group, View

LEASE_MARGIN = 2.0
KV_FAILURES = 2


class Try(NamedTuple):
    """Send the decode leg to `decode`, already counted as sent there."""

    decode: Instance


class Wait(NamedTuple):
    """Ask again at `until`, or when a stream of this gateway ends before."""

    until: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No decode took it; the KV must be released."""

    reason: Literal["deadline", "kv_lost", "no_decode"]


def handoff_deadline(arrived: float, ttft: float, handoff: float, first_token: float) -> float:
    """When token 2 is due if token 1 reaches the client as late as it may: the walk's end.

    All in seconds: `arrived`, `first_token` (when the prefill ended) and the result on one clock,
    `ttft` and `handoff` the targets.
    """
    return max(arrived + ttft, first_token) + handoff


class DecodeWalk:
    """One request looking for a decode of group `prefill.group`."""

    def __init__(
        self, view: View, prefill: Instance, deadline: float, random: Callable[[], float],
        failed: Collection[str] = (), group: Group | None = None,
    ) -> None:  # fmt: skip
        """Ask nothing yet.

        Args:
            view: the scenario's instances.
            prefill: has the KV.
            deadline: monotonic seconds at which the walk gives up.
            random: draws from [0, 1) and breaks ties.
            failed: decodes that failed this request before; all others are asked first.
            group: the prefill's, as it was when it was asked; None: as it is now.
        """
        self._view = view
        self._prefill = prefill
        self._group = group or view.group(prefill.group)
        self._random = random
        self._tried = set(failed)
        self.attempts = 0
        """Decodes asked so far."""
        self._first = 0.0
        self._kv_failures = 0
        self._not_before = 0.0
        self.deadline = deadline

    def next(self, now: float) -> Try | Wait | GiveUp:
        """The next thing to do at `now` (monotonic seconds); a `Try` is counted as sent already."""
        group = self._present_group()
        decodes = group.decodes if group else ()
        if self._kv_failures >= min(KV_FAILURES, max(1, len(decodes))):
            return GiveUp("kv_lost")
        if now >= self.deadline:
            return GiveUp("deadline")
        chosen = self._choose(decodes, now)
        if (chosen is None or chosen.health.ejected) and not _alive(decodes) and self._elsewhere():
            return GiveUp("no_decode")
        if chosen is not None:
            self._tried.add(chosen.id)
            self._first = self._first if self.attempts else now
            self.attempts += 1
            self._not_before = next_attempt(self._first, self.attempts, len(decodes), now)
            chosen.sent(now)
            return Try(chosen)
        later = min((t for d in decodes if (t := self._next_try(d, now)) > now), default=NEVER)
        return Wait(min(later, self.deadline))

    def kv_failed(self) -> None:
        """Count that a decode could not pull the KV.

        After two, or one in a group of one decode, the walk gives up with `kv_lost`.
        """
        self._kv_failures += 1

    def _present_group(self) -> Group | None:
        """The prefill's group: as the newest route table has it, or as the last one had it."""
        known, newest = self._group, self._view.group(self._prefill.group)
        if newest is not None and (known is None or _continues(newest, known, self._prefill)):
            self._group = newest
        return self._group

    def _elsewhere(self) -> bool:
        return any(
            _alive(g.decodes) and _alive(g.prefills)
            for g in self._view.groups
            if g.index != self._prefill.group
        )

    def _choose(self, decodes: Sequence[Instance], now: float) -> Instance | None:
        """The decode to ask at `now`, if one is worth it."""
        view, prefill = self._view, self._prefill
        if not self._tried and self._group is view.group(prefill.group):
            return view.index.decode(
                prefill.group, partial(view.distance, prefill), now, self._random
            )
        # Refusals are few: the next attempts look at all decodes.
        due = [d for d in decodes if self._worth(d, now)]
        return min(due, key=lambda d: self._order(d, now), default=None)

    def _worth(self, decode: Instance, now: float) -> bool:
        if decode.id not in self._tried:
            return decode.health.next_try(now) <= now
        return self._next_try(decode, now) <= now

    def _next_try(self, decode: Instance, now: float) -> float:
        return max(decode.next_try(now), self._not_before)

    def _order(self, decode: Instance, now: float) -> tuple[bool, bool, float, int, float]:
        return (
            decode.id in self._tried,
            decode.next_try(now) > now,
            (decode.total - decode.free) / decode.total,
            self._view.distance(self._prefill, decode),
            self._random(),
        )


def _continues(newest: Group, known: Group, prefill: Instance) -> bool:
    """Whether it is the same group; a new one may have the index of one that left."""
    return prefill in newest.prefills or not set(newest.decodes).isdisjoint(known.decodes)


def _alive(instances: tuple[Instance, ...]) -> bool:
    return any(not i.health.ejected for i in instances)
