"""`contention_of_shapes` with a shape that the seed draws, and all that happens in any of them.

Two to four scenarios of any counts, sizes and members on nodes of any number and size; foreign pods
hold what they leave. Pods are refused, nodes fall silent, operators die, in one schedule.

    python -m tests.support.contention_of_any FIRST COUNT
"""

from __future__ import annotations

import random
import sys
from collections import Counter

from tests.support.contention import WAITING, play, settle
from tests.support.contention_of_shapes import Asked, refuse, silence_or_not, step, whole, world_of
from tests.support.group_checks import BrokenError
from tests.support.group_world import World

NAMES = ("chat", "code", "sort", "tell")


def drawn(rng: random.Random) -> list[World]:
    """A full cluster at rest; empty where the scenarios drawn do not fit."""
    asked = [
        Asked(
            name,
            f"{rng.randint(1, 3)}P{rng.randint(1, 3)}D",
            rng.randint(1, 3),
            (rng.choice([1, 2, 2, 4]), rng.choice([1, 2, 2, 4])),
            members=rng.choice([1, 1, 1, 2, 3]),
        )
        for name in rng.sample(NAMES, rng.randint(2, 4))
    ]
    size = rng.choice([4, 8, 8, 16])
    drawing = "\n".join(
        f"p1 {leaf}  " + " ".join(f"{leaf}{k}:{size}" for k in range(rng.randint(9, 13)))
        for leaf in "abc"[: rng.randint(1, 3)]
    )
    late, last = Asked("late", "1P1D", 1, (1, 1)), Asked("last", "1P2D", 1, (1, 1))
    worlds = [world_of(drawing, a) for a in (late, *asked, last)]
    for world in worlds:
        world.machines, world.peers = worlds[0].machines, worlds
    serving = [w for w in worlds if w.target.name not in WAITING]
    settle(serving)
    try:
        for world in serving:
            whole(world)
    except BrokenError:
        return []
    held: Counter[str] = Counter()
    for pod in (p for w in serving for p in w.pods.values()):
        held[pod.new.node] += pod.devices
    for machine in worlds[0].machines.values():
        machine.foreign = machine.capacity - held[machine.name]
    return worlds


def happen(rng: random.Random, worlds: list[World], serving: list[World]) -> None:
    """One thing that happens."""
    kind = rng.random()
    if kind < 0.08:
        refuse(rng, rng.choice(serving))
    elif kind < 0.14:
        silence_or_not(rng, rng.choice(serving))
    elif kind < 0.24:
        rng.choice(serving).operator(stop_after=rng.randint(0, 3))
        for each in worlds:
            each.restart_operator()
    else:
        step(rng, worlds, serving)


def run(seed: int) -> bool:
    """One schedule; False where its shape does not fit.

    Raises:
        BrokenError: a serving group lost devices to a waiting one, or another invariant broke.
    """
    rng = random.Random(seed)
    worlds = drawn(rng)
    for world in play(rng, worlds, happen) if worlds else ():
        whole(world)
    return bool(worlds)


def main(first: int, count: int) -> int:
    """Run `count` schedules from seed `first`; 1 when one failed."""
    failed, ran = [], 0
    for seed in range(first, first + count):
        try:
            ran += run(seed)
        except BrokenError as error:
            failed.append(seed)
            print(f"seed {seed}: {str(error).splitlines()[0]}", flush=True)
    print(f"{ran} schedules of {count} from seed {first} had room, {len(failed)} failed {failed}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
