"""What a window by clock changes in a round: the least counts, within what can be had.

The counts of a window are lower bounds for as long as it holds, as if the spec said so, but only as
far as the device budget and placement allow: what cannot be had keeps nothing else from being
decided. No instance is destroyed to reach them: each of the three counts only rises. Its rate is
taken into account in `ratio.round`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pdserve.ratio.choose import CountLimits
from pdserve.ratio.round import Proposal, limits_of
from pdserve.ratio.types import Bounds, Counts, DecisionInput, Range, Reason, WindowFloor


@dataclass(frozen=True, slots=True)
class Windowed:
    """An input in a window."""

    inp: DecisionInput
    """With the lower bounds of the window, as far as they can be had."""
    grow: Proposal | None
    """To reach them; None where that is so."""
    short: Proposal | None
    """Which limit keeps the scenario below what the window states; None where none does."""


def windowed(inp: DecisionInput) -> Windowed:
    """The input with what its window asks for; unchanged where there is none."""
    window, current = inp.window, inp.current
    if window is None:
        return Windowed(inp, None, None)
    limits, wanted = limits_of(inp), _wanted(inp.bounds, window, current)
    found = _towards(current, wanted, limits)
    raised = replace(inp, bounds=_raised(inp.bounds, window, found))
    lead = f"{named(window, inp.now)}, at least {_spelled(window)}"
    if found != current:
        devices = limits.devices(found) - limits.devices(current)
        message = f"{lead}: {current} -> {found}, {devices:+d} devices"
        return Windowed(raised, Proposal(found, Reason.TIDAL_WINDOW, message), None)
    if found == wanted:
        return Windowed(raised, None, None)
    short = _binding(current, wanted, limits)
    message = f"{lead}: {wanted} is wanted, {current} is all that {_limit(short, limits)} allows"
    return Windowed(raised, None, Proposal(current, short, message, blocked=True))


def named(window: WindowFloor, now: float) -> str:
    """Which windows, and since or until when."""
    names = ", ".join(window.names)
    head = f"window {names}" if len(window.names) == 1 else f"windows {names}"
    if window.opens > now:
        return f"{head} (opens in {window.opens - now:.0f} s)"
    return f"{head} (open for another {window.closes - now:.0f} s)"


def _wanted(bounds: Bounds, window: WindowFloor, current: Counts) -> Counts:
    """The smallest counts of the window that destroy no instance."""
    return bounds.clamp(
        Counts(
            max(current.groups, window.groups),
            max(current.prefill, window.prefill),
            max(current.decode, window.decode),
        )
    )


def _raised(bounds: Bounds, window: WindowFloor, found: Counts) -> Bounds:
    """Bounds whose minima are the window's, but not above `found`."""

    def raised(allowed: Range, least: int, have: int) -> Range:
        return Range(max(allowed.min, min(least, have, allowed.max)), allowed.max)

    return Bounds(
        raised(bounds.groups, window.groups, found.groups),
        raised(bounds.prefill, window.prefill, found.prefill),
        raised(bounds.decode, window.decode, found.decode),
    )


def _towards(current: Counts, wanted: Counts, limits: CountLimits) -> Counts:
    """`wanted`, or counts on the way to it by steps of one in turn, that the limits allow."""
    if _allowed(wanted, limits):
        return wanted
    found, moved = current, True
    while moved:
        moved = False
        for step in _steps(found, wanted):
            if step != found and _allowed(step, limits):
                found, moved = step, True
                break
    return found


def _steps(found: Counts, wanted: Counts) -> tuple[Counts, ...]:
    """One more of what is furthest from its goal first."""
    parts = ("groups", "prefill", "decode")
    gaps = {part: getattr(wanted, part) - getattr(found, part) for part in parts}
    order = sorted((p for p in parts if gaps[p] > 0), key=lambda p: (-gaps[p], p))
    return tuple(replace(found, **{part: getattr(found, part) + 1}) for part in order)


def _allowed(counts: Counts, limits: CountLimits) -> bool:
    return limits.within_budget(counts) and limits.placeable(counts)


def _binding(current: Counts, wanted: Counts, limits: CountLimits) -> Reason:
    affordable = any(limits.within_budget(step) for step in _steps(current, wanted))
    return Reason.PLACEMENT_INFEASIBLE if affordable else Reason.BUDGET_EXHAUSTED


def _limit(short: Reason, limits: CountLimits) -> str:
    if short is Reason.PLACEMENT_INFEASIBLE:
        return "placement"
    parts = ", ".join(f"{b.devices} {b.resource}" for b in limits.budget)
    return f"the device budget ({parts})"


def _spelled(window: WindowFloor) -> str:
    parts = (
        (window.groups, "P/D groups"),
        (window.prefill, "prefill each"),
        (window.decode, "decode each"),
    )
    return ", ".join(f"{count} {what}" for count, what in parts if count) or "what it has"
