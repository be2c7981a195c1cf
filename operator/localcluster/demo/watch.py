"""Records what the cluster shows while a step runs: counts, ready instances, pods by uid."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from localcluster.demo.stage import NAMESPACE, Stage
from pdserve.cli.snapshot import GROUPS
from pdserve.kube.resource import PODS
from pdserve.terms.json import JsonObject
from pdserve.wire import names

_EVERY = 0.5


@dataclass(frozen=True)
class Sight:
    """One ScenarioGroup at one moment (`at`: seconds since the watch began)."""

    at: float
    prefill: int
    decode: int
    prefill_ready: int
    decode_ready: int


@dataclass
class Watch:
    """Sights of one ScenarioGroup in time order, and its newest decisions."""

    began: float = field(default_factory=time.monotonic)
    sights: list[Sight] = field(default_factory=list)
    decisions: list[JsonObject] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the watch began."""
        return time.monotonic() - self.began

    def counts_at(self, at: float) -> tuple[int, int]:
        """Wanted (prefill, decode) instances per group at `at` seconds since the watch began."""
        seen = [s for s in self.sights if s.at <= at] or self.sights[:1]
        return (seen[-1].prefill, seen[-1].decode) if seen else (0, 0)


@asynccontextmanager
async def watching(stage: Stage, group: str, namespace: str = NAMESPACE) -> AsyncIterator[Watch]:
    """Watch a ScenarioGroup for the length of a `with` block."""
    watch = Watch()

    async def look() -> None:
        while True:
            _note(watch, await stage.client.get(GROUPS, group, namespace))
            await asyncio.sleep(_EVERY)

    task = asyncio.create_task(look())
    try:
        yield watch
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _note(watch: Watch, obj: JsonObject) -> None:
    spec, status = obj["spec"], obj.get("status", {})
    groups = status.get("groups", ())
    watch.sights.append(
        Sight(
            watch.now(),
            int(spec["prefill"].get("replicas") or 0),
            int(spec["decode"].get("replicas") or 0),
            sum(int(g.get("prefill", {}).get("ready", 0)) for g in groups),
            sum(int(g.get("decode", {}).get("ready", 0)) for g in groups),
        )
    )
    watch.decisions = list(status.get("decisions", ()))


@dataclass(frozen=True)
class Instances:
    """Pods of one scenario: name -> (uid, restarts of its engine container)."""

    pods: dict[str, tuple[str, int]]

    def replaced_by(self, later: Instances) -> tuple[set[str], set[str], set[str]]:
        """Names gone, names new, and names that restarted in place, comparing with `later`."""
        gone = {n for n, (uid, _) in self.pods.items() if later.pods.get(n, ("",))[0] != uid}
        new = {n for n, (uid, _) in later.pods.items() if self.pods.get(n, ("",))[0] != uid}
        restarted = {
            n
            for n, (uid, restarts) in later.pods.items()
            if n in self.pods and self.pods[n][0] == uid and restarts > self.pods[n][1]
        }
        return gone, new, restarted


async def instances(stage: Stage, scenario: str, namespace: str = NAMESPACE) -> Instances:
    """The pods of one scenario now."""
    selector = f"{names.LABEL_SCENARIO}={scenario},{names.LABEL_INSTANCE}"
    found = await stage.client.list(PODS, namespace, label_selector=selector)
    return Instances(
        {
            p["metadata"]["name"]: (
                p["metadata"]["uid"],
                sum(int(c["restartCount"]) for c in p["status"].get("containerStatuses", ())),
            )
            for p in found.items
        }
    )
