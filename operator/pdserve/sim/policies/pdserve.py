"""The project's own ratio loop, unchanged, as the controller runs it.

As in production the learner starts from nothing, or from what the API can name (a preset,
announced traffic); it never sees the plant's profile, and the cold start is the default setting.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pdserve.ratio import learn
from pdserve.ratio.decide import decide_placed
from pdserve.ratio.learn import LearnState
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

DEVICES = RoleDevices("nvidia.com/gpu", 8)
REMEMBERED = 10
"""Past decisions that status holds."""


@dataclass(slots=True)
class PdserveLoop:
    """See the module."""

    world: PolicyWorld
    settings: LoopSettings = field(default_factory=LoopSettings)
    period: float = 15.0
    decisions: list[Decision] = field(default_factory=list)
    inputs: list[DecisionInput] = field(default_factory=list)
    _state: LearnState | None = None
    _memory: LoopMemory = field(default_factory=LoopMemory)
    _changes: tuple[PastChange, ...] = ()

    def decide(self, moment: Moment) -> PolicyChoice:
        """One round: learn, decide, remember."""
        state = self._state
        if state is None:
            profile = self.world.profile
            state = learn.start("sim", profile.prefill_slots, profile.decode_slots)
        if isinstance(moment.sample, ScenarioSample):
            state = learn.observe(state, moment.sample)
        self._state = state
        inp, decision = decide_placed(self._input(moment, state), _placed_anywhere)
        self._memory = decision.memory
        self.inputs.append(inp)
        self.decisions.append(decision)
        if decision.changes:
            self._changes = (*self._changes, PastChange(moment.now))[-REMEMBERED:]
        return PolicyChoice(
            decision.to if decision.changes else moment.counts, str(decision.reason)
        )

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
            settings=self.settings,
            memory=self._memory,
        )


def _placed_anywhere(_counts: Counts) -> PlacementLimit | None:
    """The simulated cluster has room for whatever the budget allows."""
    return None
