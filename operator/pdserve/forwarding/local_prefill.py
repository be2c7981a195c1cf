"""Whether a decode computes a prompt itself, and which: conditional disaggregation.

A prompt that goes through a prefill costs its request a wait for that prefill and a handoff of its
KV. Computed at the decode, in the steps of the answers that run there, it costs these answers the
time of its tokens. The fixed part of a prefill, one pass over the weights, costs them nothing: a
step makes that pass anyway. So in mode Auto a decode gets a prompt of `n` tokens to compute where

    b n / (1 - u)  <=  wait + late + handoff - b (tokens that a prefill has in its cache)

`b` is the time of a token by the profile, `wait` that until a prefill is free, `late` how much
longer than predicted prefills took of late, `handoff` the time from a prefill's answer to that of
its decode, and `u` the part of the decode's places that are in use: the fuller it is, the more
streams it delays and the sooner it is what is short. The largest such `n` is the crossover. A
request that no prefill could take in time goes to a decode whatever its length.

The decode has the last word. It gets the TPOT target and refuses what would make an answer that
runs there miss it; then it is left alone for a while, and the request goes to a prefill. In mode
Fixed a length decides alone, without a regard to TPOT.

No I/O, no clock. Neighbours: `gateway.local_phase` asks and sends, `dispatch` has the prefills.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pdserve.forwarding.deadline import PrefillTimes, predict_prefill
from pdserve.forwarding.dispatch import Dispatcher
from pdserve.forwarding.ejection import doubled
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.scenario_view import Group, View

PAUSE_FIRST = 0.02
PAUSE_MOST = 0.64
"""Seconds for which a decode that refused is left alone, doubled with each refusal in a row."""
NO_BOUND = float("inf")
_LEARN = 0.1


@dataclass(slots=True)
class _Pause:
    """A decode that refused prompts."""

    until: float
    refusals: int


class LocalPrefills:
    """What one scenario learned about computing prompts at decodes."""

    def __init__(
        self, view: View, times: PrefillTimes, dispatcher: Dispatcher, random: Callable[[], float]
    ) -> None:
        """`times`: of the scenario's prefills; `random` draws from [0, 1)."""
        self._view, self._times, self._dispatcher = view, times, dispatcher
        self._random = random
        self.handoff = 0.0
        """Seconds from a prefill's answer to that of its decode; 0 until one was seen."""
        self.late = 0.0
        """Seconds by which prefills took longer than predicted, of late."""
        self._paused: dict[Instance, _Pause] = {}
        self._unable: set[Instance] = set()

    def follow(self) -> None:
        """Forget decodes that have left the view."""
        there = {d for group in self._view.groups for d in group.decodes}
        self._unable &= there
        self._paused = {d: pause for d, pause in self._paused.items() if d in there}

    @property
    def bounded(self) -> bool:
        """Whether decodes get the TPOT target of the answers that run there."""
        return self._view.scenario.local_prefill == "Auto"

    @property
    def _second(self) -> float:
        """Seconds that a token takes; 0 while that is not known."""
        predicted = self._view.scenario.prefill_seconds
        return predicted[1] if predicted else self._times.per_token

    def choose(self, tokens: float, cached: float, left: float, now: float) -> Instance | None:
        """The decode that should compute a prompt, counted as sent there; None: a prefill should.

        Args:
            tokens: of the prompt.
            cached: how many of them a prefill has in its cache, as far as is known.
            left: seconds within which a prefill must have accepted the request.
            now: monotonic seconds.
        """
        scenario = self._view.scenario
        gain = 0.0
        if scenario.local_prefill == "Fixed":
            if tokens - cached > scenario.local_prefill_tokens:
                return None
        else:
            wait = self.wait(now)
            if wait is None or not self._second:
                return None
            gain = NO_BOUND if wait > left else wait + self.late + self.handoff
            gain -= cached * self._second
            if tokens * self._second > gain:
                return None
        for group in self._groups():
            decode = self._decode(group, now)
            if decode is None:
                continue
            if self.bounded and tokens * self._second > gain * (1.0 - _occupied(decode)):
                continue
            decode.sent(now)
            return decode
        return None

    def wait(self, now: float) -> float | None:
        """Seconds until a prefill takes one more request; None: what is short are the decodes."""
        index = self._view.index
        if index.open(now):
            return 0.0
        if index.blocked(now):
            return None
        return self._dispatcher.wait(now)

    def crossover(self, now: float) -> float:
        """Tokens up to which a prompt would be computed by a decode now, without any in a cache."""
        scenario = self._view.scenario
        if scenario.local_prefill != "Auto":
            return float(scenario.local_prefill_tokens)
        wait, second = self.wait(now), self._second
        decodes = (self._decode(group, now) for group in self._view.groups)
        room = max((1.0 - _occupied(d) for d in decodes if d is not None), default=0.0)
        if wait is None or not second:
            return 0.0
        return (wait + self.late + self.handoff) * room / second

    def handed_over(self, seconds: float) -> None:
        """Learn from a request whose decode answered so long after its prefill."""
        share = _LEARN if self.handoff else 1.0
        self.handoff += share * (seconds - self.handoff)

    def prefilled(self, computed: float, seconds: float) -> None:
        """Learn from a prefill that computed so many tokens."""
        predicted = predict_prefill(self._view.scenario.prefill_seconds, computed)
        excess = seconds - (predicted or computed * self._times.per_token)
        self.late = max(0.0, self.late + _LEARN * (excess - self.late))

    def accepted(self, decode: Instance) -> None:
        """Note that a decode computes a prompt."""
        self._paused.pop(decode, None)

    def refused(self, decode: Instance, now: float) -> None:
        """Note that a decode did not take a prompt: it gets none for a while."""
        before = self._paused.get(decode)
        times = before.refusals if before else 0
        pause = doubled(PAUSE_FIRST, times, PAUSE_MOST)
        self._paused[decode] = _Pause(now + pause, times + 1)

    def unable(self, decode: Instance) -> None:
        """Note that a decode computes no prompts: it is of a version that cannot."""
        self._unable.add(decode)

    def _groups(self) -> tuple[Group, ...]:
        """All groups, beginning with any of them."""
        groups = self._view.groups
        first = int(self._random() * len(groups))
        return groups[first:] + groups[:first]

    def _decode(self, group: Group, now: float) -> Instance | None:
        """The decode of a group that has most room, if a prompt could begin there at once."""
        index = self._view.index
        best = index.decode(group.index, _no_distance, now, self._random)
        if best is None or not index.open_to(best, now):
            return None
        if self._takes(best, now):
            return best
        # Refusals are few: then all decodes are looked at.
        able = [d for d in group.decodes if self._takes(d, now)] if self._paused else []
        return min(able, key=lambda d: (_occupied(d), self._random()), default=None)

    def _takes(self, decode: Instance, now: float) -> bool:
        pause = self._paused.get(decode)
        rests = decode in self._unable or (pause is not None and now < pause.until)
        return not rests and decode.next_try(now) <= now and _occupied(decode) < 1.0


def _occupied(decode: Instance) -> float:
    """Part of a decode's running places that are in use, 0 to 1; fetching ahead counts as such."""
    return min(1.0, max(0.0, (decode.total - decode.free) / decode.route.slots))


def _no_distance(_: Instance) -> int:
    return 0
