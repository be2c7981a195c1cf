"""Step 5 of the demo: a window by clock opens, and what it asks for serves already.

No request announces it: scenario search has none meanwhile. Only its schedule, set half a minute
before, makes the operator start instances ahead, by as long as those before them took to start.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from localcluster.demo.report import Report, ResultLine
from localcluster.demo.stage import NAMESPACE, SEARCH, SERVICE, Stage, until
from localcluster.demo.text import in_words
from localcluster.demo.watch import Watch, watching
from localcluster.errors import Progress
from pdserve.terms.json import JsonObject

NOTICE = 32.0
"""Seconds from setting the window to its opening."""
LASTS = 600.0
PREFILL, DECODE = 3, 2
"""Instances that the window asks for; the scenario has one fewer of each."""


@dataclass(frozen=True)
class Opening:
    """What was seen around the opening of a window."""

    watch: Watch
    set_at: float
    """When the window was set, on the watch's clock; likewise the next."""
    opened_at: float


def opening_line(seen: Opening) -> ResultLine:
    """The claim that what the window asks for served when it opened, and for its sake."""
    before = seen.watch.counts_at(seen.set_at)
    ready = [
        s.at for s in seen.watch.sights if s.prefill_ready >= PREFILL and s.decode_ready >= DECODE
    ]
    started = [
        s.at for s in seen.watch.sights if s.prefill >= PREFILL and s.decode >= DECODE
    ]  # fmt: skip
    applied = [d for d in seen.watch.decisions if d["outcome"] == "Applied"]
    named = bool(applied) and applied[-1]["reason"] == "TidalWindow"
    counts = in_words(f"{before[0]}P{before[1]}D -> {PREFILL}P{DECODE}D")
    if not ready:
        measured = f"{counts}: never"
    else:
        ahead = seen.opened_at - started[0]
        measured = (
            f"{counts}: wanted {ahead:.1f} s ahead, ready {seen.opened_at - ready[0]:.1f} s ahead"
        )
    return ResultLine(
        "window-opens",
        "what a window by clock asks for serves before it opens, without a request",
        measured + ("" if named else "; the last decision does not name the window"),
        named and bool(ready) and seen.set_at < started[0] and ready[0] <= seen.opened_at,
    )


def schedule(opens: float) -> Sequence[JsonObject]:
    """The window, from `opens` on (seconds since the epoch, whole)."""

    def clock(moment: float) -> str:
        return time.strftime("%H:%M:%S", time.gmtime(moment))

    return [
        {
            "name": "demo",
            "timeZone": "UTC",
            "from": clock(opens),
            "to": clock(opens + LASTS),
            "least": {"prefill": PREFILL, "decode": DECODE},
        }
    ]


async def window_opens(stage: Stage, report: Report, progress: Progress) -> None:
    """5. Instances are there when a window by clock opens."""
    opens = math.ceil(time.time() + NOTICE)
    async with watching(stage, SEARCH) as watch:

        async def seen() -> bool:
            return bool(watch.sights)

        await until(seen, 10, f"ScenarioGroup {SEARCH}")
        set_at = watch.now()
        windows = {"op": "add", "path": "/spec/scenarios/0/schedule", "value": schedule(opens)}
        await stage.kubectl(
            "-n", NAMESPACE, "patch", "pds", SERVICE, "--type=json", "-p", json.dumps([windows])
        )
        progress(f"a window opens {time.strftime('%H:%M:%S', time.gmtime(opens))} UTC")
        await asyncio.sleep(max(opens - time.time(), 0.0))
        opened_at = watch.now()
        await asyncio.sleep(1)
    line = opening_line(Opening(watch, set_at, opened_at))
    progress(line.measured)
    report.claims.append(line)
