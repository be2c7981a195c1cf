"""`contention` with groups of other shapes, of which many pods vanish at once.

Three groups or three scenarios beside each other, roles of different numbers and sizes, instances
of several members, a revision with other devices; all pods of a scenario or of one group are
deleted, some unseen, and time jumps beyond every deadline.

    python -m tests.support.contention_of_shapes SHAPE FIRST COUNT
"""

from __future__ import annotations

import copy
import functools
import random
import sys
from dataclasses import replace
from typing import NamedTuple

from tests.support.contention import WAITING, play, settle
from tests.support.contention import step as step_of_all
from tests.support.group_checks import BrokenError
from tests.support.group_world import World, counts, wanted

from pdserve.groups.types import Wanted


class Asked(NamedTuple):
    """One scenario: its counts, groups, and the devices and members of its instances."""

    name: str
    counts: str
    groups: int
    devices: tuple[int, int] = (2, 2)
    """Of a prefill and of a decode."""
    members: int = 1
    then: tuple[int, int] | None = None
    """The devices at revision r2, where they are others."""


TIGHT = "p1 a  n1:4 n2:4\np1 b  m1:4 m2:4"
EVEN = "p1 a  n1:6 n2:6\np1 b  m1:6 m2:6"
LATE, LAST = Asked("late", "1P1D", 1), Asked("last", "1P2D", 1)
SMALL, LARGE = "p1 a  n1:8 n2:8\np1 b  m1:8", "p1 a  n1:8 n2:8\np1 b  m1:8 m2:8"
SHAPES: dict[str, tuple[str, tuple[Asked, ...]]] = {
    "three groups": (SMALL, (Asked("chat", "1P1D", 3), Asked("code", "1P1D", 3))),
    "other numbers": (SMALL, (Asked("chat", "3P1D", 1), Asked("code", "1P3D", 2))),
    "two members": (
        LARGE, (Asked("chat", "1P1D", 2, members=2), Asked("code", "1P1D", 2, members=2))
    ),
    "three members": (
        EVEN,
        (Asked("chat", "1P1D", 2, (1, 1), members=3), Asked("code", "1P1D", 2, (1, 1), members=3)),
    ),
    "three scenarios": (
        SMALL, (Asked("chat", "1P1D", 2), Asked("code", "2P1D", 1), Asked("tell", "2P3D", 1))
    ),
    "other sizes": (SMALL, (Asked("chat", "1P1D", 3, (3, 1)), Asked("code", "1P1D", 3, (1, 3)))),
    "other sizes by revision": (
        TIGHT,
        (Asked("chat", "1P1D", 2, (3, 1), then=(1, 3)), Asked("code", "1P1D", 2, (2, 2))),
    ),
    "other ratios": (
        SMALL,
        (Asked("chat", "2P2D", 1), Asked("code", "2P2D", 2)),
    ),
    "refused pods": (SMALL, (Asked("chat", "2P1D", 2), Asked("code", "1P1D", 3))),
    "silent nodes": (SMALL, (Asked("chat", "2P1D", 2), Asked("code", "1P1D", 3))),
}  # fmt: skip
"""A drawing of the cluster, and the scenarios that have all of its devices."""


def world_of(drawing: str, asked: Asked) -> World:
    """A ScenarioGroup on nodes of its own."""
    target = replace(wanted(asked.counts, asked.groups), name=asked.name)
    world = World(drawing, _sized(target, asked, asked.devices))
    if asked.then is not None:
        world.templates["r2"] = _sized(target, asked, asked.then)
    return world


def _sized(target: Wanted, asked: Asked, devices: tuple[int, int]) -> Wanted:
    prefill, decode = devices
    return replace(
        target,
        prefill=replace(target.prefill, devices=prefill, members=asked.members),
        decode=replace(target.decode, devices=decode, members=asked.members),
    )


@functools.cache
def _settled(shape: str) -> list[World]:
    drawing, serving = SHAPES[shape]
    worlds = [world_of(drawing, asked) for asked in (LATE, *serving, LAST)]
    for world in worlds:
        world.machines, world.peers = worlds[0].machines, worlds
    settle([w for w in worlds if w.target.name not in WAITING])
    for world in worlds:
        world.made = None  # not worth a copy
    return worlds


def step(rng: random.Random, worlds: list[World], serving: list[World]) -> None:
    """One thing that happens: many pods go at once, time jumps, or what happens in `contention`."""
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
        step_of_all(rng, worlds, serving)


def _other_ratio(rng: random.Random, world: World) -> None:
    prefill = rng.choice([1, 2, 3])
    world.want(lambda w: counts(w, prefill, 4 - prefill))


def refuse(rng: random.Random, world: World) -> None:
    """The API server refuses pods of one plan."""
    world.operator(refused_after=rng.randint(0, 3))


def silence_or_not(rng: random.Random, world: World) -> None:
    """A node falls silent, or is heard again."""
    node = rng.choice(sorted(world.machines))
    rng.choice([world.silence, world.hear_again])(node)


def _happen(shape: str, rng: random.Random, worlds: list[World], serving: list[World]) -> None:
    if shape in _MORE and rng.random() < 0.1:
        _MORE[shape](rng, rng.choice(serving))
    else:
        step(rng, worlds, serving)


_MORE = {"other ratios": _other_ratio, "refused pods": refuse, "silent nodes": silence_or_not}
"""What else happens, by shape."""


def whole(world: World) -> None:
    """It has all pods that it wants, and claims nothing beside them.

    Raises:
        BrokenError: it is not so.
    """
    t = world.target
    want = sum(r.count * r.members for r in (t.prefill, t.decode)) * t.replicas
    if len(world.pods) != want:
        raise BrokenError(f"{t.name} is not whole: {sorted(world.pods)}")
    if world.claims or world.lost:
        raise BrokenError(f"{t.name} keeps claims: {world.claims} {world.lost}")


def run(seed: int, shape: str) -> None:
    """One schedule.

    Raises:
        BrokenError: a serving group lost devices to a waiting one, or another invariant broke.
    """
    happens = functools.partial(_happen, shape)
    for world in play(random.Random(seed), copy.deepcopy(_settled(shape)), happens):
        whole(world)


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
