"""Prefers the prefill that holds the beginning of a prompt, where that saves time.

Of the best prefill by the usual order and a few that hold most of the prompt, the one is taken
whose prefill ends first: its expected time until a slot is free, plus what its own legs take, less
what the hit saves. Without a hit nothing else is looked at. A request waits for a busy prefill only
where it would still end sooner, and no longer than the hit saves.

What a hit saves is learned: the time of a token from the route table or from prefills seen here,
and from the engines' counts of cached tokens how much of an expected hit comes true. With engines
that have no prefix cache, or do not report what they found, the preference soon ends. For prefills
that report their blocks this is learned of each: one that reports what it does not have loses only
its own preference.

Neighbours: `dispatch` asks for each request that has blocks; `index` has who holds what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pdserve.forwarding.deadline import PrefillTimes, predict_prefill
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.prefix.index import PrefixIndex
from pdserve.forwarding.scenario_view import View
from pdserve.terms import Role
from pdserve.wire.prefixes import PromptBlocks

CANDIDATES = 4
"""Prefills with a hit that are compared with the best one."""
_LEAST = 1e-6
"""Seconds that a cached token saves where nothing is known of prefill times: a gateway that has
just started decides by hits between prefills that are as good otherwise."""
_LEARN = 0.1
_FOUND = 0.75
"""Part of an expected hit from which on it has come true: blocks of engines end elsewhere."""


class KnownPrompt(NamedTuple):
    """A prompt as the index sees it."""

    blocks: PromptBlocks
    tokens: float
    """Expected length."""


class Preference(NamedTuple):
    """Which prefill to ask; `until` above the time of the choice: when it is free, or then."""

    prefill: Instance
    until: float
    tokens: float
    """Expected in its prefix cache."""


class Affinity:
    """The prefix index of one scenario and what its hits are worth."""

    def __init__(
        self, view: View, times: PrefillTimes, random: Callable[[], float], capacity: int,
        role: Role = "prefill",
    ) -> None:  # fmt: skip
        """Make an index of what instances of a role hold.

        Args:
            view: has them.
            times: of the scenario's prefills.
            random: draws from [0, 1).
            capacity: blocks.
            role: decodes have prompts that they computed themselves.
        """
        self._view, self._times, self._random, self._role = view, times, random, role
        self.index: PrefixIndex[Instance] = PrefixIndex(capacity)
        self.trust = 1.0
        """Part of an expected hit that engines found of late, 0 to 1."""
        self._trusts: dict[Instance, float] = {}
        """The same of each prefill that reports its blocks."""
        self._reported = False
        self.follow()

    def follow(self, capacity: int | None = None) -> None:
        """Follow the view's instances; `capacity`: the new bound of the index, where it changes."""
        groups = self._view.groups
        held = (g.prefills if self._role == "prefill" else g.decodes for g in groups)
        present = {instance for every in held for instance in every}
        self.index.follow(present, capacity)
        self._trusts = {p: part for p, part in self._trusts.items() if p in present}

    def trust_in(self, prefill: Instance) -> float:
        """Part of an expected hit that comes true at a prefill, 0 to 1."""
        return self._trusts.get(prefill, 1.0) if self.index.reports(prefill) else self.trust

    def prefer(
        self, prompt: KnownPrompt, best: Instance, now: float, delay: Callable[[Instance], float]
    ) -> Preference:
        """The prefill for a prompt where `best` is the one without regard to hits.

        Args:
            prompt: what the request brings.
            best: the prefill to ask at `now` (monotonic seconds) by the usual order.
            now: the time of the choice.
            delay: seconds until a prefill takes the request: 0, now; inf, it is no candidate.
        """
        hits = self.index.find(prompt.blocks.digests)
        block = prompt.blocks.share * prompt.tokens
        here = self.index.blocks_at(hits, best) * block
        choice = Preference(best, now, here)
        if not hits.layers:
            return choice
        predicted = self._view.scenario.prefill_seconds
        second = max(_LEAST, predicted[1] if predicted else self._times.per_token)
        saved_here = here * second * self.trust_in(best)
        lowest = _load(best) - saved_here
        for prefill, blocks in self.index.best(hits, CANDIDATES, self._random):
            saved = blocks * block * second * self.trust_in(prefill)
            if prefill is best or saved <= saved_here:
                continue
            busy = delay(prefill)
            ends = busy + _load(prefill) - saved if busy == 0 else busy - saved
            if ends < lowest:
                until = now if busy == 0 else now + saved - saved_here
                lowest, choice = ends, Preference(prefill, until, blocks * block)
        return choice

    def seconds(self, tokens: float) -> float:
        """Expected T_p of so many tokens to compute, in seconds."""
        predicted = self._view.scenario.prefill_seconds
        return predict_prefill(predicted, tokens) or tokens * self._times.per_token

    def to_compute(self, prompt: KnownPrompt) -> float:
        """Tokens of a prompt that the prefill with the longest hit would have to compute."""
        hits = self.index.find(prompt.blocks.digests)
        found = self.index.best(hits, CANDIDATES, self._random)
        most = max((blocks * self.trust_in(prefill) for prefill, blocks in found), default=0.0)
        return prompt.tokens * (1.0 - min(1.0, most * prompt.blocks.share))

    def held(self, prompt: KnownPrompt) -> list[tuple[Instance, float]]:
        """Instances that hold most of a prompt, and how many tokens they probably find."""
        hits = self.index.find(prompt.blocks.digests)
        block = prompt.blocks.share * prompt.tokens
        best = self.index.best(hits, CANDIDATES, self._random) if hits.layers else ()
        return [(instance, blocks * block * self.trust_in(instance)) for instance, blocks in best]

    def prefilled(
        self, prompt: KnownPrompt, prefill: Instance, prompt_tokens: int, cached_tokens: int
    ) -> float:
        """Learn from a finished prefill; returns the tokens that the index expected to be cached.

        `prompt_tokens`, `cached_tokens`: what the engine reported, in this order.
        """
        digests, share = prompt.blocks
        expected = self.index.blocks_at(self.index.find(digests), prefill)
        self.index.stored(prefill, digests)
        if expected and prompt_tokens > 0:
            part = max(0.0, cached_tokens / prompt_tokens) / (expected * share)
            found = 1.0 if part >= _FOUND else part
            self._reported = self._reported or cached_tokens > 0
            trust = self.trust_in(prefill)
            trust += _LEARN * (found - trust)
            if self.index.reports(prefill):
                self._trusts[prefill] = trust
            else:
                self.trust = trust
                if self._reported:
                    self.index.proved(prefill, expected, int(found * expected))
        return expected * share * max(0, prompt_tokens)


def _load(prefill: Instance) -> float:
    """Seconds that this process' own legs at a prefill with several slots still take."""
    return prefill.legs * prefill.pace
