"""Who decides how many: the counts of one ScenarioGroup per ratio mode. Pure.

The three counts (P/D groups, prefill and decode per group) have one owner per mode. In Auto,
Advise and Fixed it is the operator, which always applies all three together; in External it
applies none (an HPA on `/scale` or a person does). Counts are written only after a decision in
`ScenarioGroup.status.decisions` says so, hence the newest Applied decision *is* what the operator
wants, a restart reads it back, and a value that differs from it is a hand edit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pdserve.ratio.types import Bounds, Counts, Mode, Reason

REASON_INITIAL: Final = "InitialCounts"


@dataclass(frozen=True, slots=True)
class CountsRecord:
    """A decision that is not the ratio loop's: the first counts, or the owner's new counts."""

    before: Counts
    to: Counts
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class CountsPlan:
    """What to do about one ScenarioGroup's counts, in this order: record, apply, tell."""

    record: CountsRecord | None = None
    apply: Counts | None = None
    """Counts to write to the ScenarioGroup; None: leave them."""
    hand_edit: str | None = None
    """Text of the Event that answers an edit being undone."""


@dataclass(frozen=True, slots=True)
class CountsObserved:
    """What the plan looks at. `live` is None while any of the three is missing."""

    mode: Mode
    bounds: Bounds
    fixed: Counts | None
    initial: Counts
    live: Counts | None
    applied: Counts | None
    """`to` of the newest Applied decision."""
    applied_from: Counts | None


def plan_counts(seen: CountsObserved) -> CountsPlan:
    """The counts wanted now, and whether that needs a record, a write, an Event."""
    if seen.mode == "External":
        return _external(seen)
    wanted, reason, message = _wanted(seen)
    record = None
    if wanted != seen.applied:
        record = CountsRecord(seen.live or wanted, wanted, reason, message)
    return CountsPlan(
        record=record,
        apply=wanted if wanted != seen.live else None,
        hand_edit=_hand_edit(seen, wanted),
    )


def counts_in_force(seen: CountsObserved) -> Counts | None:
    """The counts that may be acted on; None before there are any.

    In Auto and Advise these are the newest Applied decision's, whatever the spec says: a value that
    another writer put there is no decision, and it makes or deletes no pod in the moment before
    it is put back. Until a decision is recorded (first look, lost status) they are the ones found.
    A decision outside the bounds, made before these were changed or by another writer, counts as
    `plan_counts` will record it: as the nearest inside. In Fixed the PDService alone says them.
    """
    if seen.mode == "External":
        return seen.live
    if seen.mode == "Fixed" and seen.fixed is not None:
        return seen.fixed
    found = seen.applied or seen.live
    return None if found is None else seen.bounds.clamp(found)


def _wanted(seen: CountsObserved) -> tuple[Counts, str, str]:
    if seen.mode == "Fixed" and seen.fixed is not None:
        return seen.fixed, Reason.FIXED_COUNTS, f"mode Fixed asks for {seen.fixed}"
    start = seen.applied or seen.live
    if start is None:
        wanted = seen.bounds.clamp(seen.initial)
        return wanted, REASON_INITIAL, f"first counts {wanted} from what the scenario expects"
    wanted = seen.bounds.clamp(start)
    if wanted == start:
        return wanted, REASON_INITIAL, f"keeps the counts found, {wanted}"
    return wanted, Reason.BOUNDS_CHANGED, f"{start} is outside the bounds; nearest is {wanted}"


def _hand_edit(seen: CountsObserved, wanted: Counts) -> str | None:
    undecided = seen.live in (None, wanted, seen.applied_from)
    if undecided or seen.applied != wanted:
        return None
    return (
        f"counts were set to {seen.live} by hand; ratio mode {seen.mode} decides them, "
        f"so they are put back to {wanted}. Use mode Fixed or External to set them yourself"
    )


def _external(seen: CountsObserved) -> CountsPlan:
    if seen.live is None:
        first = seen.bounds.clamp(seen.applied or seen.initial)
        record = CountsRecord(first, first, REASON_INITIAL, f"first counts {first}")
        return CountsPlan(record=None if first == seen.applied else record, apply=first)
    if seen.live == seen.applied:
        return CountsPlan()
    before = seen.applied or seen.live
    message = f"mode External: the counts were set to {seen.live}"
    return CountsPlan(record=CountsRecord(before, seen.live, Reason.EXTERNAL_OWNER, message))
