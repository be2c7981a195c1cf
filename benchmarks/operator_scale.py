"""The operator at 1,000 P/D groups of 2P4D on 10,000 nodes: what it costs, and how soon it acts.

Run by `make bench-operator`, about 15 minutes; progress on standard error. The operator's own code
runs against the in-memory cluster: what it costs is its processor time, step by step of the event
loop, and the cluster's virtual clock says how soon it acts: waits, back-offs and latencies move
that clock, computing does not. Where both count, they are added. A Lease is held meanwhile from a
thread of its own and in real time.

Phases: 1 apply everything, until every P/D group is ready; 2 a minute of rest; 3 events of single
nodes; 4 instances that fail, one after the other; 5 a storm of nodes that leave and come back;
6 a leaf that is lost for good.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import Progress, Row, report
from benchmarks.parts.holds import Holds, Leadership, is_ready, measured, set_ready

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import run_virtual
from pdserve.dst.world import World
from pdserve.dst.world_service import service
from pdserve.kube.resource import NAMESPACES, NODES, PODS, Object
from pdserve.topology import pod_view

GROUPS, NODES_MADE = 1000, 10_000
PER_LEAF = 32
NAMESPACE_COUNT = 10
STORM_NODES = 32
NODE_EVENTS = 60
EVENT_SECONDS = 2.0
"""Virtual seconds in which what a node event causes is over."""
FAILURES = 20
START_SECONDS = (0.5, 0.5)
"""Of every engine, so that it can be subtracted."""
FINE_STEP = 0.01
"""Virtual seconds between looks of the simulated nodes where seconds count; at rest, twenty times
as many."""
FORGOTTEN = 1800.0
"""Virtual seconds after which a fault of an instance delays its next repair no more."""
RATIO = "RatioLoop.run"
PATIENCE = 1800.0
"""Virtual seconds for the set-up."""


class Bench:
    """The phases, and the rows that they give."""

    def __init__(self, groups: int, nodes: int, progress: Progress) -> None:
        self.groups, self.nodes, self.progress = groups, nodes, progress
        self.world = World(start_seconds=START_SECONDS)
        self.usual_step = self.world.step
        self.holds = Holds(self.run, _leading)
        self.rows: list[Row] = []
        self.quiet = 0.0
        """Seconds of the operator per second of rest, as `_for_events` counts."""

    async def run(self) -> None:
        """Phase after phase."""
        world = self.world
        with measured(self.holds):
            async with world.running(), world.operator() as operator:
                await self._apply()
                await asyncio.sleep(30)
                await self._rest()
                await self._node_events()
                await self._failures()
                await self._storm()
                await self._lost_leaf()
                if operator.done():
                    await operator

    def furnish(self) -> None:
        """Make the nodes, before anything runs."""
        world = self.world
        world.nodes([f"leaf{n:03d}" for n in range(self.nodes // PER_LEAF)], PER_LEAF)
        world.domain()
        for number in range(NAMESPACE_COUNT):
            meta = {"name": f"team-{number}"}
            world.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": meta})

    # --- phases ----------------------------------------------------------------------------

    async def _apply(self) -> None:
        """Phase 1: everything is applied at once."""
        world, began = self.world, _now()
        for number in range(self.groups):
            made = service(f"shop-{number}", prefill=(2, 2), decode=(4, 4), groups=(1, 1))
            made["metadata"]["namespace"] = f"team-{number % NAMESPACE_COUNT}"
            world.create(PDSERVICES, made)
            await asyncio.sleep(0)
        wrote = self._writes()
        await world.until(self._all_ready, PATIENCE, "every P/D group is ready")
        waited, computed = _now() - began - START_SECONDS[1], self.holds.total
        writes = (self._writes() - wrote) / self.groups
        self.rows += [
            _bound("apply to all ready, engine starts left out", waited + computed, "s", 60.0),
            Row("writes per P/D group", writes, "writes", "its pods", 6, 10, "lower"),
            _bound("memory of a pod in the cache", self._pod_kib(), "KiB", 5.0, floor=0.4),
        ]
        self._end(f"{self.groups} P/D groups on {self.nodes} nodes are ready")

    async def _rest(self) -> None:
        """Phase 2: nothing happens for a minute."""
        self.holds.clear()
        await asyncio.sleep(60)
        ratio = self.holds.by[RATIO]
        for what, seconds in (
            ("idle", self.holds.total),
            ("idle, the ratio loop left out", self.holds.total - ratio),
        ):
            self.rows.append(_bound(what, 100 * seconds / 60, "% of a core", 1.0))
        self.quiet = self._for_events() / 60
        self._end("rest")

    async def _node_events(self) -> None:
        """Phase 3: a node's Ready changes, and that is all; half of the nodes have instances."""
        used = sorted({p["spec"]["nodeName"] for p in self.world.instances()})
        names = sorted(n["metadata"]["name"] for n in self.world.seen(NODES))
        free = [n for n in names if n not in set(used)][: NODE_EVENTS // 2]
        costs = []
        for node in (*free, *used[: NODE_EVENTS - len(free)]):
            for status in ("Unknown", "True"):
                before = self._for_events()
                set_ready(self.world, node, status)
                await asyncio.sleep(EVENT_SECONDS)
                spent = self._for_events() - before - EVENT_SECONDS * self.quiet
                costs.append(1e3 * spent)
        self.rows.append(_of("a node event", costs, "ms", 5.0))
        self._end("node events")

    async def _failures(self) -> None:
        """Phase 4: an instance fails; until its successor is routed, its start left out."""
        self.world.step = FINE_STEP
        times = []
        for number in range(FAILURES):
            pods = self.world.instances()
            times.append(await self._recovery(pods[7 * number % len(pods)]))
        self.world.step = self.usual_step
        self.rows.append(_of("recovery of an instance, its start left out", times, "s", 1.0))
        self._end("failures")

    async def _recovery(self, pod: Object) -> float:
        meta = pod["metadata"]
        shop, space = meta["labels"]["pdserve.io/service"], meta["namespace"]

        def routed() -> set[str]:
            return self.world.routed(shop, space)

        def failed() -> bool:
            found = self.world.get(PODS, meta["name"], space)
            return found is None or found["status"]["phase"] == "Failed"

        wanted = len(routed())
        self.world.kill(meta["name"])
        await self.world.until(failed, 10, "its node says that it failed")
        computed, began = self.holds.total, _now()
        await self.world.until(lambda: meta["name"] not in routed(), 60, "it leaves the routes")
        await self.world.until(lambda: len(routed()) == wanted, 120, "it is replaced")
        seconds = _now() - began - START_SECONDS[1] + self.holds.total - computed
        await asyncio.sleep(5)
        return seconds

    async def _storm(self) -> None:
        """Phase 5: nodes of several leaves leave and come back."""
        names = [f"leaf{number:03d}-{n}" for n in range(PER_LEAF) for number in range(4)]
        for node in names[:STORM_NODES]:
            set_ready(self.world, node, "Unknown")
        await asyncio.sleep(60)
        for node in names[:STORM_NODES]:
            set_ready(self.world, node, "True")
        await self.world.until(self._all_ready, PATIENCE, "every P/D group is ready again")
        await asyncio.sleep(30)
        self._end(f"{STORM_NODES} nodes leave and come back")

    async def _lost_leaf(self) -> None:
        """Phase 6: all nodes of the leaf with most instances are cut off."""
        leaves: dict[str, int] = {}
        for pod in self.world.instances():
            leaf = pod["spec"]["nodeName"].partition("-")[0]
            leaves[leaf] = leaves.get(leaf, 0) + 1
        leaf = max(sorted(leaves), key=lambda name: leaves[name])
        await asyncio.sleep(FORGOTTEN)
        self.holds.clear()
        self.world.step = FINE_STEP
        for n in range(PER_LEAF):
            self.world.lose_node(f"{leaf}-{n}")
        await self.world.until(
            lambda: len(self._on(leaf)) < leaves[leaf], PATIENCE, "the first one counts as lost"
        )
        computed, began = self.holds.total, _now()
        await self.world.until(
            lambda: not any(self._on(leaf)) and self._all_ready(), PATIENCE, "all are replaced"
        )
        seconds = _now() - began - START_SECONDS[1] + self.holds.total - computed
        what = f"a leaf of {PER_LEAF} nodes with {leaves[leaf]} instances, from the verdict on"
        self.rows.append(_bound(what, seconds, "s", 10.0, floor=0.3))
        self._end("a leaf is lost")

    # --- what they share -------------------------------------------------------------------

    def _end(self, phase: str) -> None:
        """Say how it went, and begin anew."""
        milliseconds, what = self.holds.worst()
        self.progress(
            f"{phase}: {self.holds.total:.2f} s of the operator in {self.holds.steps} steps, "
            f"the longest {milliseconds:.1f} ms ({what})"
        )
        self.rows.append(_bound(f"{phase}: longest step", milliseconds, "ms", 50.0))
        self.holds.clear()

    def _all_ready(self) -> bool:
        found = self.world.seen(SCENARIO_GROUPS)
        return len(found) == self.groups and all(map(is_ready, found))

    def _for_events(self) -> float:
        """Seconds of the operator so far, without its loops that go by the clock."""
        loops = (RATIO, "Linker.run", "Linker._serve")
        return self.holds.total - sum(self.holds.by[loop] for loop in loops)

    def _on(self, leaf: str) -> list[Object]:
        """Instances there that are not given up."""
        return [
            pod
            for pod in self.world.instances()
            if pod["spec"].get("nodeName", "").startswith(f"{leaf}-")
            and "deletionTimestamp" not in pod["metadata"]
        ]

    def _writes(self) -> int:
        return sum(len(recorder.writes()) for recorder in self.world.recorders)

    def _pod_kib(self) -> float:
        pods = self.world.seen(PODS)[:1000]
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        views = [pod_view(pod) for pod in pods]
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return (after - before) / len(views) / 1024


def _bound(what: str, value: float, unit: str, bound: float, floor: float = 1.0) -> Row:
    """`floor`: of the bound that was asked for, where what is reached is far below it."""
    return Row(what, value, unit, "bound", bound, floor, "lower")


def _of(what: str, values: Sequence[float], unit: str, bound: float) -> Row:
    """The 99th percentile."""
    high = statistics.quantiles(values, n=100, method="inclusive")[98]
    spread = max(values) - min(values)
    return Row(f"{what}, p99", high, unit, "bound", bound, 1, "lower", len(values), spread)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _leading(bench: Bench) -> list[Row]:
    # A virtual second in which thousands of pods start takes minutes.
    leadership = Leadership(silence=600.0)
    bench.furnish()
    await leadership.run(bench.run)
    # One more than the losses, so that none is 1.
    lost = float(leadership.losses)
    return [*bench.rows, Row("Lease losses", lost + 1, "+ 1", "none", 1, 1, "lower")]


def main() -> int:
    """Run the bench; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=GROUPS)
    parser.add_argument("--nodes", type=int, default=NODES_MADE)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    bench = Bench(args.groups, args.nodes, Progress())
    full = (args.groups, args.nodes) == (GROUPS, NODES_MADE)
    return report("operator", run_virtual(_leading(bench)), ranges=full)


if __name__ == "__main__":
    sys.exit(main())
