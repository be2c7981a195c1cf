"""The demo's rolling upgrade, which is taken back in the middle, under traffic.

A new variable in the environment of decodes makes a new revision. The scenario `search` goes over
to it first; as soon as it serves at the new revision, `kubectl pdserve rollout undo` takes the
upgrade back, before the scenario `chat` is through.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster.demo.report import Report, ResultLine
from localcluster.demo.stage import NAMESPACE, SEARCH, SERVICE, Stage, condition, run, until
from localcluster.demo.text import chat, search
from localcluster.demo.watch import Watch, watching
from localcluster.errors import Progress
from pdserve.cli.load import Planned, Sample, merge, poisson, run_load
from pdserve.cli.snapshot import SERVICES
from pdserve.kube.resource import Object
from pdserve.wire import names

SECONDS = 24.0
"""For which requests come."""
LIMIT = 60.0
"""Seconds for either half."""
_UNDO = Path(sys.executable).parent / "kubectl-pdserve"


@dataclass(frozen=True)
class Undone:
    """What was seen of the upgrade."""

    samples: Sequence[Sample]
    watch: Watch
    """Of the scenario that went over and back."""
    forth: float
    """Seconds from the change until that scenario served at the new revision."""
    back: float
    """Seconds from the undo until everything was as before."""
    over_at: float
    """When everything was as before: seconds since the first request."""


def upgrade_line(seen: Undone) -> ResultLine:
    """The claim that no client noticed."""
    failed = [s for s in seen.samples if not s.ok]
    start = seen.watch.sights[0]
    least = (
        min(s.prefill_ready for s in seen.watch.sights),
        min(s.decode_ready for s in seen.watch.sights),
    )
    kept = least[0] >= start.prefill_ready and least[1] >= start.decode_ready
    during = sum(s.at <= seen.over_at for s in seen.samples)
    return ResultLine(
        "upgrade-undone",
        "a rolling upgrade, taken back in the middle, fails no request and keeps the ratio",
        f"{seen.forth:.1f} s until the first scenario served at the new revision, "
        f"{seen.back:.1f} s back; {len(failed)} of {len(seen.samples)} requests failed "
        f"({during} came meanwhile); never fewer ready than {least[0]} prefill + {least[1]} decode"
        + (f"; e.g. {failed[0].status} {failed[0].error}" if failed else ""),
        kept and not failed and during > 0,
    )


def schedule() -> list[Planned]:
    """Requests of both scenarios."""
    rng = random.Random(14)  # noqa: S311  a reproducible schedule
    return merge(
        poisson(1.2, SECONDS, lambda i: chat(i, words=20, tokens=20), rng),
        poisson(0.6, SECONDS, search, rng),
    )


async def upgrade_undone(stage: Stage, report: Report, progress: Progress) -> None:
    """5. A rolling upgrade is taken back in the middle."""
    async with watching(stage, SEARCH) as watch:

        async def seen() -> bool:
            return bool(watch.sights)

        await until(seen, 10, f"ScenarioGroup {SEARCH}")
        load = asyncio.create_task(run_load(stage.gateway_url, schedule()))
        began = time.monotonic()
        await asyncio.sleep(2)
        old = _revisions(await _pods(stage))
        change = {"op": "add", "path": "/spec/decode/env", "value": [_variable()]}
        changed = time.monotonic()
        await stage.kubectl(
            "-n", NAMESPACE, "patch", "pds", SERVICE, "--type=json", "-p", json.dumps([change])
        )

        async def new_serves() -> bool:
            pods = [p for p in await _pods(stage) if _of_search(p)]
            new = [p for p in pods if _revisions([p]).isdisjoint(old)]
            return bool(new) and len(new) == len(pods) and all(map(_ready, new))

        await until(new_serves, LIMIT, "scenario search at the new revision")
        forth = time.monotonic() - changed
        progress(f"search serves at the new revision after {forth:.1f} s: undo")
        undone = time.monotonic()
        said = await run(
            _UNDO, "rollout", "undo", SERVICE, "-n", NAMESPACE, kubeconfig=stage.cluster.kubeconfig
        )
        progress(said.strip().splitlines()[0])

        async def as_before() -> bool:
            service = await stage.client.get(SERVICES, SERVICE, NAMESPACE)
            pods = await _pods(stage)
            same = _revisions(pods) == old and all(map(_ready, pods))
            return same and condition(service, "Ready") == "True"

        await until(as_before, LIMIT, "all instances of the old revision again")
        back, over_at = time.monotonic() - undone, time.monotonic() - began
        progress(f"everything as before after {back:.1f} s")
        samples = await load
    report.claims.append(upgrade_line(Undone(samples, watch, forth, back, over_at)))


def _variable() -> dict[str, str]:
    return {"name": "RELEASE", "value": "2"}


async def _pods(stage: Stage) -> list[Object]:
    """Instances of the service that stay."""
    pods = await stage.pods(f"{names.LABEL_SERVICE}={SERVICE},{names.LABEL_INSTANCE}")
    return [
        p for p in pods
        if "deletionTimestamp" not in p["metadata"]
        and names.ANNOTATION_DRAIN not in p["metadata"].get("annotations", {})
    ]  # fmt: skip


def _revisions(pods: Iterable[Object]) -> set[str]:
    return {str(p["metadata"]["labels"][names.LABEL_REVISION]) for p in pods}


def _of_search(pod: Object) -> bool:
    return bool(pod["metadata"]["labels"][names.LABEL_SCENARIO] == "search")


def _ready(pod: Object) -> bool:
    return condition(pod, "Ready") == "True"
