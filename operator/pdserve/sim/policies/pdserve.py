"""The project's own ratio loop, unchanged, as the controller runs it.

As in production the learner starts from nothing, or from what the API can name (a preset,
announced traffic); it never sees the plant's profile, and the cold start is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pdserve.ratio import learn
from pdserve.ratio.decide import decide_placed
from pdserve.ratio.learn import LearnState
from pdserve.ratio.model import admission_batch
from pdserve.ratio.types import (
    BudgetLimit,
    Counts,
    Decision,
    DecisionInput,
    LoopMemory,
    LoopSettings,
    PastChange,
    PlacementLimit,
    RoleDevices,
    ScenarioSample,
)
from pdserve.sim.policies.base import Moment, PolicyChoice, PolicyWorld
from pdserve.terms import ROLES, Slo

DEVICES = RoleDevices("nvidia.com/gpu", 8)
REMEMBERED = 10
"""Past decisions that status holds."""


@dataclass(slots=True)
class PdserveLoop:
    """See the module."""

    world: PolicyWorld
    settings: LoopSettings = field(default_factory=LoopSettings)
    period: float = 5.0
    decisions: list[Decision] = field(default_factory=list)
    inputs: list[DecisionInput] = field(default_factory=list)
    state: LearnState | None = None
    """What was learned; it may be set beforehand."""
    _memory: LoopMemory = field(default_factory=LoopMemory)
    _changes: tuple[PastChange, ...] = ()
    _seen: set[str] = field(default_factory=set)
    _created: list[float] = field(default_factory=list)

    def decide(self, moment: Moment) -> PolicyChoice:
        """One round: learn, decide, remember."""
        state = self.state
        if state is None:
            profile = self.world.profile
            state = learn.start("sim", profile.prefill_slots, profile.decode_slots)
        if isinstance(moment.sample, ScenarioSample):
            state = learn.observe(state, moment.sample)
        state = learn.observe_starts(state, self._starts(moment))
        self.state = state
        inp, decision = decide_placed(self._input(moment, state), _placed_anywhere)
        self._memory = decision.memory
        self.inputs.append(inp)
        self.decisions.append(decision)
        for role in ROLES:
            more = decision.to.total(role) - moment.counts.total(role)
            self._created += [moment.now] * (more if decision.changes else 0)
        if decision.changes:
            self._changes = (*self._changes, PastChange(moment.now))[-REMEMBERED:]
        to = decision.to if decision.changes else moment.counts
        return PolicyChoice(to, str(decision.reason), _batch_limit(state, inp.slo))

    def _starts(self, moment: Moment) -> list[learn.Start]:
        """Instances that became ready since the last round, the oldest growth first."""
        ready = {*moment.prefills, *moment.decodes}
        new = ready - self._seen if self._seen else set()
        self._seen |= ready
        found = [learn.Start(c, moment.now - c) for c in self._created[: len(new)]]
        del self._created[: len(new)]
        return found

    def _input(self, moment: Moment, state: LearnState) -> DecisionInput:
        shape = self.world.shape
        budget: tuple[BudgetLimit, ...] = ()
        if shape.budget is not None:
            budget = (BudgetLimit(DEVICES.resource, shape.budget * DEVICES.devices),)
        return DecisionInput(
            now=moment.now,
            service="shop",
            scenario="chat",
            mode="Auto",
            bounds=shape.bounds,
            slo=shape.slo,
            current=moment.counts,
            ready_prefill=moment.ready_prefill,
            ready_decode=moment.ready_decode,
            sample=moment.sample,
            prefill_devices=DEVICES,
            decode_devices=DEVICES,
            profile=state.profile(),
            budget=budget,
            changes=self._changes,
            settings=_with_cold_start(self.settings, state.cold_start()),
            memory=self._memory,
        )


def _batch_limit(state: LearnState, slo: Slo) -> int | None:
    """What the operator publishes to gateways (`controllers.shared.profiles.decode_batch`)."""
    profile = state.profile()
    if profile is None or state.context is None:
        return None
    return admission_batch(profile, state.context, slo)


def _with_cold_start(settings: LoopSettings, seconds: float | None) -> LoopSettings:
    return settings if seconds is None else replace(settings, cold_start=seconds)


def _placed_anywhere(_counts: Counts) -> PlacementLimit | None:
    """The simulated cluster has room for whatever the budget allows."""
    return None
