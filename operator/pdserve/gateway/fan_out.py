"""Serves a request of several choices: each as a request of its own, all or none.

So many choices are begun at once as the scenario's instances have slots for; the others follow as
these end, and count from then on, or they would miss their targets behind their own siblings. A
choice that fails ends the others, and the request has its error. Neighbours: `choices` takes the
request apart and joins the answer, `request_driver` serves one choice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from pdserve.forwarding.request.measure import Outcome
from pdserve.forwarding.request.request import Request
from pdserve.forwarding.scenario_view import View
from pdserve.gateway.choices import ChoiceReply, JoinedReply
from pdserve.gateway.request_driver import RequestDriver


async def serve_choices(
    joined: JoinedReply,
    view: View,
    driver_of: Callable[[ChoiceReply, float], RequestDriver],
    arrived: float,
) -> None:
    """Serve all choices of `joined`, and send the one answer.

    Args:
        joined: what the choices answer to.
        view: the scenario's instances.
        driver_of: makes the request of one choice, with the time from which it counts.
        arrived: when the client's request came, in seconds of `time.perf_counter`.

    Raises:
        ApiError: for the caller to send: that of the first choice that failed.
        CancelledError: the client left.
    """
    first = at_once(view)
    gate = asyncio.Semaphore(first)
    begun: list[Request] = []

    async def one(part: ChoiceReply) -> None:
        async with gate:
            at = arrived if part.choice.index < first else time.perf_counter()
            driver = driver_of(part, at)
            begun.append(driver.request)
            try:
                await driver.served()
                joined.check()
            except Exception:
                # One that is complete may be what cannot be joined.
                outcome = driver.request.outcome
                _end_alike(begun, "failed" if outcome == "completed" else outcome)
                raise

    async def break_off() -> None:
        await broken.wait()
        _end_alike(begun, "failed")
        joined.check()

    broken = asyncio.Event()
    joined.on_broken = broken.set
    try:
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(break_off())
            await asyncio.wait([tasks.create_task(one(part)) for part in joined.parts])
            watch.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group
    joined.finish()


def _end_alike(requests: list[Request], outcome: Outcome | None) -> None:
    """Count choices that end because of another one as that one; None: as invalid."""
    for request in requests:
        if request.outcome is None:
            request.outcome, request.invalid = outcome, outcome is None


def at_once(view: View) -> int:
    """How many choices of one request may be in progress: 1 or more."""
    prefills = sum(p.route.slots for g in view.groups for p in g.prefills)
    decodes = sum(d.route.slots for g in view.groups for d in g.decodes)
    return max(1, min(prefills, decodes))
