"""Steps at the API server, the operator's process and the clocks."""

from __future__ import annotations

import asyncio
import random

from pdserve.dst.api_net import Faults
from pdserve.dst.scene import Scene
from pdserve.dst.steps.picks import name_of
from pdserve.terms.json import JsonObject


async def api_away(scene: Scene, rng: random.Random) -> str | None:
    """The API server answers no request; kubelets cannot renew their leases either."""
    faults = scene.faults
    if faults.down:
        return None
    seconds = rng.choice((2.0, 15.0, 40.0, 120.0))
    scene.watcher.trouble(seconds)
    faults.down = True
    scene.world.api.wake_watches()
    loop = asyncio.get_running_loop()
    marked: list[str] = []
    if seconds >= 40:

        def mark() -> None:
            if faults.down:
                marked.extend(name_of(n) for n in scene.nodes())
                for name in marked:
                    scene.node_ready(name, "Unknown")

        loop.call_later(min(38.0, seconds - 1), mark)

    def back() -> None:
        faults.down = False
        scene.world.api.wake_watches()
        for n, name in enumerate(marked):
            if name not in scene.world.broken_nodes:
                loop.call_later(0.5 + n, scene.node_ready, name, "True")

    scene.later(seconds, back)
    return f"the API server is away for {seconds:.0f} s"


async def bad_network(scene: Scene, rng: random.Random) -> str | None:
    """Requests are slow, refused, or lose their answers; watches lag, break, repeat, expire."""
    faults, healthy = scene.faults, Faults()
    seconds = rng.uniform(5, 60)
    scene.watcher.trouble(seconds)
    drawn: JsonObject = {
        "latency": (0.0, rng.choice((0.05, 1.0))), "refuse": rng.choice((0.0, 0.3)),
        "lose_answer": rng.choice((0.0, 0.3)), "watch_delay": (0.0, rng.choice((0.3, 3.0))),
        "watch_break": rng.choice((0.0, 0.1)), "watch_repeat": rng.choice((0.0, 0.3)),
        "watch_swap": rng.choice((0.0, 0.3)), "expire": 0.3,
    }  # fmt: skip
    for field, value in drawn.items():
        setattr(faults, field, value)

    def better() -> None:
        for field in drawn:
            setattr(faults, field, getattr(healthy, field))

    scene.later(seconds, better)
    return f"the network is bad for {seconds:.0f} s"


async def restart_operator(scene: Scene, rng: random.Random) -> str | None:
    """The operator is killed and starts again."""
    if scene.operator_failure():
        return None
    pause = rng.uniform(0, 15)
    scene.watcher.trouble(pause + 5)
    await scene.stop_operator()
    await asyncio.sleep(pause)
    scene.start_operator()
    return f"the operator is killed and starts {pause:.0f} s later"


async def step_clock(scene: Scene, rng: random.Random) -> str | None:
    """The operator's wall clock jumps."""
    step = rng.choice((-3600.0, -60.0, 60.0, 3600.0))
    scene.world.clock_error += step
    return f"the operator's clock steps by {step:.0f} s"
