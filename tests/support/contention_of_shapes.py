"""`contention` with groups of other shapes, of which many pods vanish at once.

Three groups beside each other, roles of different numbers, instances of several members; all pods
of a scenario or of one group are deleted, some unseen, and time jumps beyond every deadline.

    python -m tests.support.contention_of_shapes SHAPE FIRST COUNT
"""

from __future__ import annotations

import copy
import functools
import random
import sys
from dataclasses import replace
from typing import NamedTuple

from tests.support.contention import WAITING, play, settle, step
from tests.support.group_checks import BrokenError
from tests.support.group_world import World, wanted


class Asked(NamedTuple):
    """One scenario: its counts, groups, and the devices and members of its instances."""

    name: str
    counts: str
    groups: int
    devices: int = 2
    members: int = 1


LATE, LAST = Asked("late", "1P1D", 1), Asked("last", "1P2D", 1)
SMALL, LARGE = "p1 a  n1:8 n2:8\np1 b  m1:8", "p1 a  n1:8 n2:8\np1 b  m1:8 m2:8"
SHAPES: dict[str, tuple[str, tuple[Asked, Asked]]] = {
    "three groups": (SMALL, (Asked("chat", "1P1D", 3), Asked("code", "1P1D", 3))),
    "other numbers": (SMALL, (Asked("chat", "3P1D", 1), Asked("code", "1P3D", 2))),
    "two members": (
        LARGE, (Asked("chat", "1P1D", 2, members=2), Asked("code", "1P1D", 2, members=2))
    ),
}  # fmt: skip
"""A drawing of the cluster, and the two scenarios that have all of its devices."""


def _world(drawing: str, asked: Asked) -> World:
    target = replace(wanted(asked.counts, asked.groups, devices=asked.devices), name=asked.name)
    target = replace(
        target,
        prefill=replace(target.prefill, members=asked.members),
        decode=replace(target.decode, members=asked.members),
    )
    return World(drawing, target)


@functools.cache
def _settled(shape: str) -> list[World]:
    drawing, serving = SHAPES[shape]
    worlds = [_world(drawing, asked) for asked in (LATE, *serving, LAST)]
    for world in worlds:
        world.machines, world.peers = worlds[0].machines, worlds
    settle([w for w in worlds if w.target.name not in WAITING])
    for world in worlds:
        world.made = None  # not worth a copy
    return worlds


def _step(rng: random.Random, worlds: list[World], serving: list[World]) -> None:
    if rng.random() < 0.08:
        world = rng.choice(serving)
        every, group = rng.choice([True, False]), rng.randrange(3)
        for name in list(world.pods):
            if every or world.pods[name].new.group_index == group:
                world.delete_from_outside(name)
                if rng.random() < 0.7:
                    world.kubelet(name)
    elif rng.random() < 0.05:
        for world in worlds:
            world.advance(1000.0)
    else:
        step(rng, worlds, serving)


def run(seed: int, shape: str) -> None:
    """One schedule.

    Raises:
        BrokenError: a serving group lost devices to a waiting one, or another invariant broke.
    """
    for world in play(random.Random(seed), copy.deepcopy(_settled(shape)), _step):
        t = world.target
        want = sum(r.count * r.members for r in (t.prefill, t.decode)) * t.replicas
        if len(world.pods) != want:
            raise BrokenError(f"{t.name} is not whole: {sorted(world.pods)}")
        if world.claims or world.lost:
            raise BrokenError(f"{t.name} keeps claims: {world.claims} {world.lost}")


def main(shape: str, first: int, count: int) -> int:
    """Run `count` schedules from seed `first`; 1 when one failed."""
    failed = []
    for seed in range(first, first + count):
        try:
            run(seed, shape)
        except BrokenError as error:
            failed.append(seed)
            print(f"seed {seed}: {str(error).splitlines()[0]}", flush=True)
    print(f"{count} schedules of {shape!r} from seed {first}: {len(failed)} failed {failed}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
