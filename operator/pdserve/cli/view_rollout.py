"""What `kubectl pdserve rollout` says. Wording only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pdserve.api import ScenarioGroup, revision_of
from pdserve.cli.columns import age, table
from pdserve.cli.revision_history import StoredRevision, changes
from pdserve.cli.snapshot import Snapshot
from pdserve.groups.rollout import HELD, STOPPED
from pdserve.terms.json import JsonObject
from pdserve.terms.times import epoch_of

COMPLETE = "Complete"
PENDING = "Pending"


@dataclass(frozen=True, slots=True)
class ScenarioRollout:
    """How far the rollout of one scenario is."""

    scenario: str
    revision: str
    """The wanted one."""
    updated: int
    """P/D groups that have it."""
    ready: int
    """Of these, with all their instances ready."""
    groups: int
    """P/D groups that are there and not on their way out."""
    phase: str
    """`Complete`, `Pending`, or the reason of condition Progressing."""
    message: str

    def as_json(self) -> JsonObject:
        """For scripts."""
        return {
            "scenario": self.scenario,
            "revision": self.revision,
            "updatedGroups": self.updated,
            "readyGroups": self.ready,
            "groups": self.groups,
            "phase": self.phase,
            "message": self.message,
        }


def rollouts_of(found: Snapshot, revision: str) -> tuple[ScenarioRollout, ...]:
    """The rollout of every scenario to `revision`, in the order of spec."""
    by_name = {g.spec.scenario: g for g in found.groups}
    return tuple(
        _rollout(scenario.name, by_name.get(scenario.name), revision)
        for scenario in found.service.spec.scenarios
    )


def _rollout(scenario: str, group: ScenarioGroup | None, revision: str) -> ScenarioRollout:
    if group is None:
        return ScenarioRollout(scenario, revision, 0, 0, 0, PENDING, "no ScenarioGroup yet")
    status = group.status
    live = [g for g in status.groups if g.prefill.desired or g.decode.desired]
    new = [g for g in live if g.revision == revision]
    ready = sum(
        g.prefill.ready >= g.prefill.desired and g.decode.ready >= g.decode.desired for g in new
    )
    told = next((c for c in status.conditions if c.type == "Progressing"), None)
    given = revision_of(group.spec) == revision
    seen = status.observed_generation >= group.metadata.generation
    if not given or not seen or told is None:
        phase, message = PENDING, "the operator has not taken it up yet"
    elif (
        told.reason not in HELD
        and len(live) >= (group.spec.replicas or 0)
        and ready == len(status.groups)
    ):
        phase, message = COMPLETE, ""
    else:
        phase, message = told.reason, told.message
    return ScenarioRollout(scenario, revision, len(new), ready, len(live), phase, message)


def complete(rollouts: Sequence[ScenarioRollout]) -> bool:
    """Whether all scenarios have all P/D groups at the wanted revision, ready."""
    return all(r.phase == COMPLETE for r in rollouts)


def stopped(rollouts: Sequence[ScenarioRollout]) -> bool:
    """Whether one of them stopped by itself."""
    return any(r.phase == STOPPED for r in rollouts)


def render_status(name: str, rollouts: Sequence[ScenarioRollout]) -> str:
    """One row per scenario, then why it is where it is."""
    rows = [
        (r.scenario, r.revision, f"{r.updated}/{r.groups}", f"{r.ready}/{r.updated}", r.phase)
        for r in rollouts
    ]
    text = table(("SCENARIO", "REVISION", "UPDATED", "READY", "PHASE"), rows)
    notes = [f"{r.scenario}: {r.message}" for r in rollouts if r.message]
    held = [r for r in rollouts if r.phase in HELD]
    if held and held[0].phase != STOPPED:
        notes.append(f"Go on with: kubectl pdserve rollout resume {name}")
    if held:
        notes.append(f"Go back with: kubectl pdserve rollout undo {name}")
    return "\n".join([text, *notes])


def render_history(history: Sequence[StoredRevision], now: float) -> str:
    """Revisions, the newest first, each with what it changed against the one below it."""
    lines: list[str] = []
    for place, entry in enumerate(history):
        when = f"{age(now - epoch_of(entry.time))} ago" if entry.time else "not stored yet"
        lines.append(f"{entry.revision}  {when}{'  (wanted now)' if not place else ''}")
        if place + 1 < len(history):
            found = changes(history[place + 1].template, entry.template)
            lines += [f"    {change}" for change in found]
        elif len(history) > 1:
            lines.append("    the oldest that is kept")
    return "\n".join(lines)


def history_json(history: Sequence[StoredRevision]) -> list[JsonObject]:
    """The same for scripts, with each template."""
    below = [*history[1:], None]
    return [
        {
            "revision": entry.revision,
            "time": entry.time,
            "changes": [
                {"field": ".".join(c.path), "before": c.before, "after": c.after}
                for c in changes(before.template, entry.template)
            ]
            if before is not None
            else [],
            "template": entry.template,
        }
        for entry, before in zip(history, below, strict=True)
    ]
