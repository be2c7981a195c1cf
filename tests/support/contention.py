"""ScenarioGroups that compete for the devices of a full cluster, driven by one seed.

Two serve and hold all devices between them, two wait. Pods are deleted, evicted and crash, new
revisions are rolled out, the operator restarts and dies between two actions, in any order. At
every step no waiting one may have got a pod; when the faults end, the serving ones are whole.

    python -m tests.support.contention FIRST COUNT      run so many schedules; prints failures
"""

from __future__ import annotations

import copy
import functools
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from tests.support.group_checks import BrokenError, at_every_moment, ledger
from tests.support.group_world import World, wanted

from pdserve.groups.types import Wanted

DRAWING = "p1 a  n1:8 n2:8\np1 b  m1:8"
WAITING = ("late", "last")


Scarce = Literal["devices", "memory"]
"""What all pods together take all of."""


@functools.cache
def _settled(scarce: Scarce) -> list[World]:
    worlds = cluster(scarce)
    for world in worlds:
        world.made = None  # not worth a copy
    return worlds


def cluster(scarce: Scarce = "devices") -> list[World]:
    """By rank: a waiting one comes before the serving ones, another after them."""
    worlds = [
        World(DRAWING, replace(wanted(counts, groups, devices=2), name=name))
        for name, counts, groups in [
            ("late", "1P1D", 1),
            ("chat", "2P2D", 1),
            ("code", "1P1D", 2),
            ("last", "1P2D", 1),
        ]
    ]
    machines = worlds[0].machines
    # 16 devices for the serving ones; a foreign pod holds the other 8.
    machines["m1"].foreign = 8
    for machine in machines.values() if scarce == "memory" else ():
        machine.memory = machine.capacity
    for world in worlds:
        if scarce == "memory":
            world.want(_with_memory)
        world.machines, world.peers = machines, worlds
    settle([w for w in worlds if w.target.name not in WAITING])
    return worlds


def _with_memory(target: Wanted) -> Wanted:
    requests = (("memory", 2),)
    return replace(
        target, prefill=replace(target.prefill, requests=requests),
        decode=replace(target.decode, requests=requests),
    )  # fmt: skip


def settle(worlds: list[World], limit: int = 400) -> None:
    """Run all fairly until nothing changes.

    Raises:
        BrokenError: they do not come to rest.
    """
    for _ in range(limit):
        rounds = [world.round() for world in worlds]
        if any(changed or made.actions for changed, made in rounds):
            continue
        waits = [made.requeue_after for _, made in rounds if made.requeue_after is not None]
        if not waits:
            return
        for world in worlds[0].peers:
            world.advance(min(waits) + 0.001)
    raise BrokenError("no rest:\n" + "\n".join(x for w in worlds for x in w.log[-12:]))


def play(
    rng: random.Random,
    worlds: list[World],
    do: Callable[[random.Random, list[World], list[World]], None],
) -> list[World]:
    """Let things happen by `do`, then let all come to rest; returns those that serve.

    Raises:
        BrokenError: a waiting one got a pod, or an invariant broke on the way.
    """
    serving = [w for w in worlds if w.target.name not in WAITING]
    for _ in range(rng.randint(5, 40)):
        do(rng, worlds, serving)
        for world in worlds:
            at_every_moment(world)
            if world.target.name not in WAITING:
                ledger(world)
            if world.target.name in WAITING and world.pods:
                raise BrokenError(f"invariant 13: {world.target.name} got {sorted(world.pods)}")
    for node in worlds[0].machines:
        worlds[0].hear_again(node)
    settle(worlds)
    return serving


def run(seed: int, scarce: Scarce = "devices") -> None:
    """One schedule.

    Raises:
        BrokenError: a serving group lost devices to a waiting one, or another invariant broke.
    """
    for world in play(random.Random(seed), copy.deepcopy(_settled(scarce)), step):
        want = world.target.replicas * (world.target.prefill.count + world.target.decode.count)
        if len(world.pods) != want or world.routed != frozenset(world.pods):
            raise BrokenError(f"{world.target.name} is not whole: {sorted(world.pods)}")
        if world.claims or world.lost:
            raise BrokenError(f"{world.target.name} keeps claims: {world.claims} {world.lost}")


def step(rng: random.Random, worlds: list[World], serving: list[World]) -> None:
    """One thing that happens: to a pod, the cluster, the operator, or time."""
    world = rng.choice(serving)
    name = rng.choice(sorted(world.pods)) if world.pods else ""
    kinds = ["operator", "crash", "cluster", "delete", "gone", "fail", "loop", "roll", "restart",
             "time"]  # fmt: skip
    kind = rng.choices(kinds, [10, 2, 6, 1, 1, 2, 1, 1, 1, 2])[0]
    if kind == "operator":
        for each in rng.sample(worlds, len(worlds)):
            each.operator()
    elif kind == "crash":
        world.operator(stop_after=rng.randint(0, 4))
    elif kind == "cluster":
        _cluster(serving)
    elif kind == "roll":
        other = "r2" if world.target.revision == "r1" else "r1"
        world.want(lambda w: replace(world.templates.get(other, w), revision=other))
    elif kind == "time":
        seconds = rng.choice([1.0, 20.0, 400.0])
        for each in worlds:
            each.advance(seconds)
    else:
        _fault(world, kind, name)
    if kind in ("crash", "restart"):
        for each in worlds:
            each.restart_operator()


def _cluster(serving: list[World]) -> None:
    for world in serving:
        world.each(world.kubelet)
        world.push_tables()
        world.each(world.link)
        world.write_routes()


def _fault(world: World, kind: str, name: str) -> None:
    if kind in ("delete", "gone"):
        world.delete_from_outside(name)
    if kind == "gone":
        world.kubelet(name)
    if kind == "fail":
        world.fail(name)
    if kind == "loop":
        world.crash_loop(name)


def main(first: int, count: int) -> int:
    """Run schedules; print each failing seed. Returns how many failed."""
    failed = 0
    for seed in range(first, first + count):
        try:
            run(seed)
        except BrokenError as error:
            failed += 1
            print(f"seed {seed}: {str(error).splitlines()[0]}", flush=True)
    print(f"{count} schedules from seed {first}: {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main(int(sys.argv[1]), int(sys.argv[2]))))
