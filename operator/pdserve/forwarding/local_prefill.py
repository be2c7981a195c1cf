"""Whether a decode computes a prompt itself, and which: conditional disaggregation.

A prompt that goes through a prefill costs its request a wait for that prefill and a handoff of its
KV. Computed at the decode, in the steps of the answers that run there, it costs these answers the
time of its tokens. The fixed part of a prefill, one pass over the weights, costs them nothing: a
step makes that pass anyway. So in mode Auto a decode gets a prompt with `n` tokens to compute where

    b n / (1 - u)  <=  wait + late + handoff + b (what it has in its cache - what a prefill has)

`n` are the tokens that are not in its own prefix cache, `b` is the time of a token by the profile,
`wait` that until a prefill begins, `late` how much longer than predicted prefills took of late,
`handoff` the time from a prefill's answer to that of its decode, and `u` the part of the decode's
places that are in use: the fuller it is, the more streams it delays and the sooner it is what is
short. The largest such `n` is the crossover. A request that no prefill could take in time goes to a
decode whatever its length. What was learned by way of prefills fades, so that one is tried now and
then.

The decode has the last word. It gets the TPOT target and refuses what would make an answer that
runs there miss it; then it is left alone for a while, and the request goes to a prefill. In mode
Fixed a length decides alone, without a regard to TPOT.

No I/O, no clock. Neighbours: `request.local_leg` asks and sends, `dispatch` has the prefills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pdserve.forwarding.deadline import HandoffTime, PrefillTimes, predict_prefill
from pdserve.forwarding.dispatch import Dispatcher
from pdserve.forwarding.ejection import doubled
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.prefix.affinity import Affinity, KnownPrompt
from pdserve.forwarding.scenario_view import View

PAUSE_FIRST = 0.02
PAUSE_MOST = 0.64
"""Seconds for which a decode that refused is left alone, doubled with each refusal in a row."""
LATE_HALF_LIFE = 5.0
"""Seconds after which what prefills were late counts half."""
NO_BOUND = float("inf")
_LEARN = 0.1


class LocalPrompt(NamedTuple):
    """A prompt that a decode may compute."""

    tokens: float
    """Expected length."""
    cached: float
    """How many of them a prefill has in its cache, as far as is known."""
    known: KnownPrompt | None = None
    """Its blocks, where they are known."""


@dataclass(slots=True)
class _Pause:
    """A decode that refused prompts."""

    until: float
    refusals: int


class LocalPrefills:
    """What one scenario learned about computing prompts at decodes."""

    def __init__(
        self, view: View, times: PrefillTimes, handoff: HandoffTime, dispatcher: Dispatcher,
        random: Callable[[], float], capacity: int,
    ) -> None:  # fmt: skip
        """Learn nothing yet.

        Args:
            view: the scenario's instances.
            times: how long its prefills took.
            handoff: how long its handoffs took.
            dispatcher: its waiting room.
            random: draws from [0, 1).
            capacity: blocks of prompts that are kept in mind.
        """
        self._view, self._times, self._handoff = view, times, handoff
        self._dispatcher, self._random = dispatcher, random
        self.prefixes = Affinity(view, times, random, capacity, "decode")
        """Prompts that decodes computed, and have in their prefix caches."""
        self._late = 0.0
        """Seconds by which prefills took longer than predicted, at `_late_at`."""
        self._late_at = 0.0
        self._length = 0.0
        """Tokens that a prefill computes for a request, of late."""
        self._paused: dict[Instance, _Pause] = {}
        self._unable: set[Instance] = set()

    def follow(self, capacity: int) -> None:
        """Forget decodes that have left the view; `capacity` as at first."""
        there = {d for group in self._view.groups for d in group.decodes}
        self._unable &= there
        self._paused = {d: pause for d, pause in self._paused.items() if d in there}
        self.prefixes.follow(capacity)

    @property
    def bounded(self) -> bool:
        """Whether decodes get the TPOT target of the answers that run there."""
        return self._view.scenario.local_prefill == "Auto"

    @property
    def _second(self) -> float:
        """Seconds that a token takes; 0 while that is not known."""
        predicted = self._view.scenario.prefill_seconds
        return predicted[1] if predicted else self._times.per_token

    def choose(self, prompt: LocalPrompt, left: float, now: float) -> Instance | None:
        """The decode that should compute a prompt, counted as sent there; None: a prefill should.

        `left`: seconds within which a prefill must have accepted the request; `now`: monotonic
        seconds.
        """
        gain = self._gain(prompt, left, now) if self.bounded else NO_BOUND
        held = self.prefixes.held(prompt.known) if prompt.known is not None else []
        most = prompt.tokens - max((tokens for _, tokens in held), default=0.0)
        if not self._worth(most, prompt.tokens - most, gain, 0.0):
            return None
        for decode, cached in (*held, *self._roomy(now)):
            computed = max(0.0, prompt.tokens - cached)
            if self._worth(computed, cached, gain, _occupied(decode)) and self._takes(decode, now):
                decode.sent(now)
                return decode
        return None

    def _gain(self, prompt: LocalPrompt, left: float, now: float) -> float:
        """Seconds by which the way through a prefill takes longer, without any cache here."""
        wait = self.wait(now)
        if wait is None or not self._second:
            return -NO_BOUND
        # `left` is less the handoff already.
        if wait + self._lateness(now) > left:
            return NO_BOUND
        saved = prompt.cached * self._second
        return wait + self._lateness(now) + self._handoff.fading(now) - saved

    def _worth(self, computed: float, cached: float, gain: float, occupied: float) -> bool:
        """Whether a decode should compute so many tokens, with so many more in its cache."""
        if not self.bounded:
            return computed <= self._view.scenario.local_prefill_tokens
        second = self._second
        return computed * second <= (gain + cached * second) * (1.0 - occupied)

    def _lateness(self, now: float) -> float:
        return float(self._late * 0.5 ** ((now - self._late_at) / LATE_HALF_LIFE))

    def wait(self, now: float) -> float | None:
        """Seconds until a prefill begins with one more request; None: decodes are what is short."""
        index = self._view.index
        prefill = index.first(now)
        if prefill is not None:
            # What it has in work comes before, or slows the new one down as much.
            return max(0.0, prefill.legs - 0.5) * self._length * self._second
        if index.blocked(now):
            return None
        return self._dispatcher.wait(now)

    def crossover(self, now: float) -> float:
        """Tokens up to which a prompt would be computed by a decode now, without any in a cache."""
        if not self.bounded:
            return float(self._view.scenario.local_prefill_tokens)
        wait, second = self.wait(now), self._second
        room = max((1.0 - _occupied(d) for d, _ in self._roomy(now)), default=0.0)
        if wait is None or not second:
            return 0.0
        return (wait + self._lateness(now) + self._handoff.fading(now)) * room / second

    def prefilled(self, computed: float, seconds: float, now: float) -> None:
        """Learn from a prefill that computed so many tokens."""
        self._length += (_LEARN if self._length else 1.0) * (computed - self._length)
        predicted = predict_prefill(self._view.scenario.prefill_seconds, computed)
        excess = seconds - (predicted or computed * self._times.per_token)
        late = self._lateness(now)
        self._late, self._late_at = max(0.0, late + _LEARN * (excess - late)), now

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

    def _roomy(self, now: float) -> Iterator[tuple[Instance, float]]:
        """Of each group the decode with most room, with no token in its cache as far as is known.

        Groups in order from any of them on.
        """
        groups = self._view.groups
        first = int(self._random() * len(groups))
        for group in groups[first:] + groups[:first]:
            best = self._view.index.decode(group.index, _no_distance, now, self._random)
            if best is not None and not self._takes(best, now):
                # Refusals are few: then all decodes are looked at.
                able = [d for d in group.decodes if self._takes(d, now)] if self._paused else []
                best = min(able, key=lambda d: (_occupied(d), self._random()), default=None)
            if best is not None:
                yield best, 0.0

    def _takes(self, decode: Instance, now: float) -> bool:
        """Whether a prompt could begin at a decode at once, as far as is known."""
        pause = self._paused.get(decode)
        if decode in self._unable or (pause is not None and now < pause.until):
            return False
        free = decode.next_try(now) <= now and _occupied(decode) < 1.0
        return free and self._view.index.open_to(decode, now)


def _occupied(decode: Instance) -> float:
    """Part of a decode's running places that are in use, 0 to 1; fetching ahead counts as such."""
    places = decode.route.slots
    return min(1.0, max(0.0, (decode.total - decode.free) / places)) if places else 1.0


def _no_distance(_: Instance) -> int:
    return 0
