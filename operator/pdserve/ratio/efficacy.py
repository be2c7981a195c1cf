"""Whether growth for want of attainment helped; two that did not are undone, and not repeated.

A growth by evidence is a trial. Evidence from after it is complete is compared with that from
before: a significant gain, or the target met, proves it; a load that rose proves nothing. After
two trials of one role without gain the misses have another cause than a shortage of that role
(requests or targets that no instance count meets, a slow instance, a network): the counts go back,
and the role does not grow for want of attainment until the misses or the load are others.
"""

from __future__ import annotations

import math
from dataclasses import replace

from pdserve.ratio.evidence import Evidence
from pdserve.ratio.types import Counts, LoopMemory, NoEffect, Trial
from pdserve.terms import ROLES, Role

SIGNIFICANT = 1.64
"""Standard errors by which attainment must differ."""
SAME_LOAD = 1.25
"""Factor between two rates up to which they count as the same load."""
TRIALS = 2
"""Growths without gain after which a role's growth is taken to be useless."""


def judge(memory: LoopMemory, evidence: Evidence, target: float) -> LoopMemory:
    """Memory after evidence that covers only counts which are complete."""
    if evidence.attainment >= target:
        return replace(memory, trials=(), no_effect=())
    kept: list[Trial] = []
    for role in ROLES:
        mine = [trial for trial in memory.trials if trial.role == role]
        if any(_gained(trial, evidence) for trial in mine if not trial.useless):
            continue
        kept += (
            replace(trial, useless=True)
            for trial in mine
            if trial.useless or evidence.rate <= trial.rate * SAME_LOAD
        )
    marks = tuple(mark for mark in memory.no_effect if _still(mark, evidence))
    return replace(memory, trials=tuple(kept), no_effect=marks)


def tried(memory: LoopMemory, trial: Trial) -> LoopMemory:
    """Memory after a growth by evidence was applied."""
    return replace(memory, trials=(*memory.trials, trial))


def useless_role(memory: LoopMemory) -> Role | None:
    """A role whose last trials all proved useless."""
    for role in ROLES:
        if sum(trial.useless for trial in memory.trials if trial.role == role) >= TRIALS:
            return role
    return None


def give_up(memory: LoopMemory, role: Role, evidence: Evidence) -> LoopMemory:
    """Memory that does not try this role again, with its pressure of before the trials."""
    first = next(trial for trial in memory.trials if trial.role == role)
    mark = NoEffect(role, evidence.attainment, evidence.rate)
    return replace(
        memory,
        trials=tuple(trial for trial in memory.trials if trial.role != role),
        no_effect=(*(m for m in memory.no_effect if m.role != role), mark),
        pressure_prefill=first.pressure if role == "prefill" else memory.pressure_prefill,
        pressure_decode=first.pressure if role == "decode" else memory.pressure_decode,
    )


def undone(memory: LoopMemory, role: Role, current: Counts) -> Counts:
    """Today's counts with the role as it was before its trials."""
    before = next(trial.before for trial in memory.trials if trial.role == role)
    if before.groups != current.groups:
        return current
    if role == "prefill":
        return replace(current, prefill=min(before.prefill, current.prefill))
    return replace(current, decode=min(before.decode, current.decode))


def is_useless(memory: LoopMemory, role: Role) -> bool:
    """Whether growth of this role for want of attainment is known not to help."""
    return any(mark.role == role for mark in memory.no_effect)


def _gained(trial: Trial, evidence: Evidence) -> bool:
    share = (trial.met + evidence.met) / (trial.offered + evidence.offered)
    error = math.sqrt(share * (1.0 - share) * (1.0 / trial.offered + 1.0 / evidence.offered))
    return evidence.attainment - trial.met / trial.offered > SIGNIFICANT * error


def _still(mark: NoEffect, evidence: Evidence) -> bool:
    """Whether load and misses are those of a useless growth."""
    same = mark.rate / SAME_LOAD <= evidence.rate <= mark.rate * SAME_LOAD
    error = math.sqrt(max(mark.attainment * (1.0 - mark.attainment), 1e-4) / evidence.offered)
    return same and evidence.attainment > mark.attainment - 2.0 * SIGNIFICANT * error - 0.01
