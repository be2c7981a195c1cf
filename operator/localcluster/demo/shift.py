"""Step 3 of the demo: the mix of requests shifts, and the ratio follows.

Each chat request is sent twice in the same moment: to the demo, and to a service of the same
instances with fixed counts (`fixed`). So one run measures both, with the ratio loop and without,
under the same load of the machine. `judge` evaluates the result.
"""

from __future__ import annotations

import asyncio
import random

from localcluster.demo import figures, fixed, judge
from localcluster.demo.judge import BEFORE, END, Measured
from localcluster.demo.report import Report
from localcluster.demo.stage import CHAT, Periods, Stage, pacing_validity
from localcluster.demo.text import chat, search
from localcluster.demo.watch import Watch, instances, watching
from localcluster.errors import Progress
from pdserve.cli.load import merge, poisson, run_load


async def ratio_follows(stage: Stage, periods: Periods, report: Report, progress: Progress) -> None:
    """3. The mix shifts from long answers to long prompts, and the ratio follows."""
    rng = random.Random(11)  # noqa: S311 - a reproducible schedule
    chats = merge(
        poisson(2.2, BEFORE, lambda i: chat(i, words=25, tokens=45), rng),
        poisson(3.3, END - BEFORE, lambda i: chat(i, words=190, tokens=6), rng, start=BEFORE),
    )
    schedule = merge(chats, poisson(0.4, END, search, rng))
    beside_url = await fixed.address(stage)
    held = await instances(stage, "chat", fixed.FIXED_NAMESPACE)
    progress(
        f"{len(schedule)} requests in {END:.0f} s; at {BEFORE:.0f} s chat shifts from "
        "short prompts and long answers to long prompts and short answers"
    )
    async with watching(stage, CHAT) as watch:
        teller = asyncio.create_task(_tell(watch, progress))
        samples, beside = await asyncio.gather(
            run_load(stage.gateway_url, schedule), run_load(beside_url, chats)
        )
        teller.cancel()
    measured = Measured(
        watch,
        own=[s for s in samples if s.label == "chat"],
        beside=beside,
        search=[s for s in samples if s.label == "search"],
        beside_instances=len(held.pods),
        beside_stayed=await instances(stage, "chat", fixed.FIXED_NAMESPACE) == held,
        control_period=periods.control,
        pacing=await pacing_validity(stage),
    )
    claims, report.comparison = judge.claims(measured), judge.comparison(measured)
    report.claims += claims
    report.shift += figures.of_shift(measured)
    progress(f"{claims[-1].claim}: {claims[-1].measured}")
    await fixed.remove(stage)


async def _tell(watch: Watch, progress: Progress) -> None:
    """Say each change of the counts as it happens."""
    told: tuple[int, int] | None = None
    while True:
        if watch.sights:
            s = watch.sights[-1]
            if told not in (None, (s.prefill, s.decode)):
                why = watch.decisions[-1]["message"] if watch.decisions else ""
                progress(f"{s.at:4.0f} s: chat is to be {s.prefill}P{s.decode}D  {why[:150]}")
            told = (s.prefill, s.decode)
        await asyncio.sleep(0.5)
