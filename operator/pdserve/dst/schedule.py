"""One schedule: steps drawn from a seed, run in a settled scene, checked, and brought to rest.

Every schedule runs in a process forked from the settled scene, so that the cluster is built once
for hundreds of schedules. After the last step every lasting fault is undone, and within
`REST_SECONDS` the cluster must be as its specs want it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import resource
import select
import signal
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import NoReturn

from pdserve.controllers.shared.caches import SCENARIO_GROUPS
from pdserve.dst.asked import counts_in_force, scenario_name, spares_in_force
from pdserve.dst.lookups import instances_of
from pdserve.dst.scene import VARIANTS, Scene, reseed
from pdserve.dst.steps import STEPS
from pdserve.dst.violation import Violation
from pdserve.kube.resource import Object
from pdserve.terms.json import JsonObject
from pdserve.wire import names

REST_SECONDS = 1500.0
"""Virtual seconds after which the cluster must be at rest: twice the longest back-off."""
QUIET_SECONDS = 30.0
"""Virtual seconds for which it must stay so."""
CPU_SECONDS = 60
"""Seconds of computing that one schedule may take, however busy the machine is."""
REAL_SECONDS = 600.0
"""Real seconds after which one that does not compute is taken to hang."""
END = 0
"""Number of the rule that the cluster ends as wanted."""
HARNESS = 99
"""Number of a failure of the simulation itself."""


@dataclass(frozen=True, slots=True)
class Move:
    """One step of a schedule: its kind, what it draws from, and the pause after it."""

    kind: str
    seed: int
    pause: float


@dataclass(slots=True)
class Outcome:
    """How one schedule went."""

    seed: int
    violation: str = ""
    """Empty: every invariant held."""
    number: int = -1
    """Of the broken invariant; 0: the cluster did not end as wanted; -1: none."""
    trace: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    """The operator's writes; only where asked for."""


def variant_of(seed: int) -> str:
    """The scene a seed runs in; the same for equal seeds."""
    return VARIANTS[seed % len(VARIANTS)]


def draw(seed: int) -> tuple[Move, ...]:
    """The steps of a seed, with their virtual times; the same for equal seeds."""
    rng = random.Random(seed)
    kinds, weights = list(STEPS), [weight for weight, _ in STEPS.values()]
    return tuple(
        Move(rng.choices(kinds, weights)[0], rng.getrandbits(48), round(rng.choice(
            (0.05, rng.uniform(0, 3), rng.uniform(0, 30))
        ), 2))
        for _ in range(rng.randint(2, 8))
    )  # fmt: skip


async def run_forked(
    scene: Scene, seed: int, moves: Sequence[Move], *, writes: bool = False
) -> Outcome:
    """Run a schedule in a child of this process; this process' scene stays as it is.

    The parent's event loop stands still meanwhile, so the scene does not age.
    """
    loop = asyncio.get_running_loop()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # A loop belongs to the process that started it, until the child claims it.
        asyncio.events._set_running_loop(loop)
        await _in_child(scene, seed, moves, write, writes=writes)
    os.close(write)
    try:
        text = _all_of(read)
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - the scene must stand still
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return Outcome(seed, f"not done after {CPU_SECONDS} s of computing", 10)
    if text is None:
        return Outcome(seed, f"not done after {REAL_SECONDS:.0f} s of real time", 10)
    return Outcome(**json.loads(text)) if text else Outcome(seed, "the process died", 10)


async def _in_child(
    scene: Scene, seed: int, moves: Sequence[Move], write: int, *, writes: bool
) -> NoReturn:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, 2 * CPU_SECONDS))
    gc.disable()  # a short life: collecting would copy the parent's memory
    try:
        outcome = await play(scene, seed, moves)
        if not writes:
            outcome.writes = []
        _write_all(write, json.dumps(asdict(outcome)).encode())
    finally:
        os._exit(0)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _all_of(fd: int) -> bytes | None:
    """Everything until the other side closes; None when that takes too long."""
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([fd], [], [], REAL_SECONDS)
        if not ready:
            return None
        part = os.read(fd, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


async def play(scene: Scene, seed: int, moves: Sequence[Move]) -> Outcome:
    """Run a schedule in this very scene; it is of no use afterwards."""
    reseed(scene, seed)
    outcome = Outcome(seed)
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        for move in moves:
            did = await STEPS[move.kind][1](scene, random.Random(move.seed))
            if did is not None:
                outcome.trace.append(f"{loop.time() - start:7.2f} s  {move.kind}: {did}")
            await _watch(scene, move.pause)
        scene.end_all()
        outcome.trace.append(f"{loop.time() - start:7.2f} s  everything is undone")
        await _rest(scene)
    except Violation as violation:
        outcome.violation, outcome.number = str(violation), violation.number
        outcome.trace.append(f"{loop.time() - start:7.2f} s  {violation}")
    except Exception as error:  # a fault of a step itself must not look like a pass
        where = traceback.format_exc(limit=-6)
        outcome.violation = f"{type(error).__name__} in the schedule: {where}"
        outcome.number = HARNESS
    outcome.writes = scene.watcher.writes
    return outcome


async def _watch(scene: Scene, seconds: float) -> None:
    """Let time pass; raises the first violation."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        await asyncio.sleep(min(1.0, max(0.0, end - loop.time())))
        _check(scene)
        if loop.time() >= end:
            return


async def _rest(scene: Scene) -> None:
    """Until the cluster is as wanted, and has been so for `QUIET_SECONDS`.

    A roll that waits, for the watch of pods to come back for one, looks like rest until it goes
    on.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + REST_SECONDS
    scene.watcher.trouble(0)
    quiet_since = None
    while True:
        await asyncio.sleep(2.0)
        _check(scene)
        missing = _not_at_rest(scene)
        if missing:
            quiet_since = None
            if loop.time() > deadline:
                raise Violation(END, f"not as wanted {REST_SECONDS:.0f} s later: {missing}")
        elif quiet_since is None:
            quiet_since = loop.time()
        elif loop.time() - quiet_since >= QUIET_SECONDS:
            return


def _check(scene: Scene) -> None:
    failure = scene.operator_failure()
    if failure:
        raise Violation(10, failure)
    if scene.watcher.found is None:
        try:
            scene.watcher.tick()
        except Violation as violation:
            scene.watcher.found = violation
    if scene.watcher.found is not None:
        raise scene.watcher.found


def _not_at_rest(scene: Scene) -> str:
    """What is not as wanted, "" if nothing. Scenarios that always waited for devices may wait."""
    world = scene.world
    for group in world.seen(SCENARIO_GROUPS):
        name = scenario_name(group)
        if name not in scene.watcher.complete_at_start or not _ours(group):
            continue
        counts = counts_in_force(world, group)
        before = scene.watcher.complete_at_start[name]
        if counts is None:
            return f"{'/'.join(name)}: no counts"
        if (
            scene.crowded
            and counts != before
            and counts.groups * (counts.prefill + counts.decode)
            > before.groups * (before.prefill + before.decode)
        ):
            continue
        pods = instances_of(world, group)
        wanted = counts.groups * (counts.prefill + counts.decode)
        spares = counts.groups * spares_in_force(world, group)
        if not wanted <= len(pods) <= wanted + spares:
            if scene.planned and (len(pods) < wanted or _roll_waits(group)):
                continue
            return f"{'/'.join(name)}: {len(pods)} pods, {wanted} wanted"
        routed = world.routed(name[1], name[0])
        away = [p["metadata"]["name"] for p in pods if p["metadata"]["name"] not in routed]
        if len(away) > len(pods) - wanted:
            return f"{'/'.join(name)}: not routed: {', '.join(away)}"
    return ""


def _roll_waits(group: Object) -> bool:
    """Told in the status: devices are short, so that what runs is what ran before."""
    conditions = group.get("status", {}).get("conditions", ())
    return any(c["type"] == "Progressing" and c["reason"] == "NeedsDevices" for c in conditions)


def _ours(group: Object) -> bool:
    labels = group["metadata"].get("labels") or {}
    return bool(labels.get(names.LABEL_MANAGED_BY) == names.FIELD_MANAGER)


def describe(outcome: Outcome) -> JsonObject:
    """An outcome for `-o json`."""
    return {"seed": outcome.seed, "number": outcome.number, "violation": outcome.violation,
            "trace": outcome.trace}  # fmt: skip
