"""How long the operator's event loop is held while nodes leave and come back in numbers.

Run by `make bench-storm`, two to four minutes; progress on standard error. The operator's own code
runs against the in-memory cluster in virtual time: what is measured is processor time per step of
the event loop, which a busy neighbour does not change. The simulation's own steps are left out. A
Lease is held meanwhile as in a real process, from a thread of its own and in real time.

Phases: 1 set-up, until every P/D group is ready; 2 one node event; 3 the storm.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import Progress, Row, report
from benchmarks.parts.holds import Holds, Leadership, is_ready, measured, set_ready

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import run_virtual
from pdserve.dst.world import World
from pdserve.dst.world_service import service
from pdserve.kube.resource import NAMESPACES

BOUND_MS = 50.0
"""Longest hold of the event loop; architecture invariant 14 allows 250 ms."""
PER_LEAF = 20
NAMESPACE_COUNT = 10
STORM_NODES = 32
PATIENCE = 900.0
"""Virtual seconds for the set-up."""


async def _storm(groups: int, nodes: int, holds: Holds, progress: Progress) -> list[Row]:
    rows: list[Row] = []
    world = World()
    world.nodes([f"leaf{number:03d}" for number in range(nodes // PER_LEAF)], PER_LEAF)
    world.domain()
    for number in range(NAMESPACE_COUNT):
        meta = {"name": f"team-{number}"}
        world.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
    for number in range(groups):
        made = service(f"shop-{number}")
        made["metadata"]["namespace"] = f"team-{number % NAMESPACE_COUNT}"
        world.create(PDSERVICES, made)

    def all_ready() -> bool:
        found = world.seen(SCENARIO_GROUPS)
        return len(found) == groups and all(map(is_ready, found))

    def phase(name: str) -> None:
        milliseconds, what = holds.worst()
        progress(
            f"{name}: longest hold {milliseconds:.0f} ms ({what}), "
            f"{holds.steps} steps, {holds.total:.1f} s"
        )
        rows.append(Row(f"{name}: longest hold", milliseconds, "ms", "bound", BOUND_MS, 1, "lower"))
        holds.clear()

    async with world.running(), world.operator() as operator:
        await world.until(all_ready, PATIENCE, "every P/D group is ready")
        progress(f"{groups} ScenarioGroups on {nodes} nodes are ready")
        await asyncio.sleep(30)
        holds.clear()
        leaves = [f"leaf{number:03d}-{n}" for n in range(PER_LEAF) for number in range(4)]
        set_ready(world, leaves[0], "Unknown")
        await asyncio.sleep(10)
        set_ready(world, leaves[0], "True")
        await asyncio.sleep(10)
        phase("one node")
        for node in leaves[:STORM_NODES]:
            set_ready(world, node, "Unknown")
        await asyncio.sleep(60)
        for node in leaves[:STORM_NODES]:
            set_ready(world, node, "True")
        await world.until(all_ready, PATIENCE, "every P/D group is ready again")
        await asyncio.sleep(30)
        phase(f"{STORM_NODES} nodes")
        if operator.done():
            await operator
    return rows


async def _leading(groups: int, nodes: int, progress: Progress) -> list[Row]:
    holds, leadership = Holds(_storm, _leading), Leadership()
    found: list[Row] = []

    async def work() -> None:
        with measured(holds):
            found.extend(await _storm(groups, nodes, holds, progress))

    await leadership.run(work)
    # One more than the losses, so that none is 1.
    lost = float(leadership.losses)
    return [*found, Row("Lease losses", lost + 1, "+ 1", "none", 1, 1, "lower")]


def main() -> int:
    """Run the bench; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=300)
    parser.add_argument("--nodes", type=int, default=1000)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    return report("storm", run_virtual(_leading(args.groups, args.nodes, Progress())))


if __name__ == "__main__":
    sys.exit(main())
