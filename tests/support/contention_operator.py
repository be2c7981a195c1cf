"""The competition of `contention` with the real operator, against the in-memory API server.

A full cluster: `shop/chat` and `mart/chat` serve, `shop/late` (which ranks first) and `last/chat`
wait. Episodes of deletions, failures, rolls, restarts and a bad network follow one another in one
world: never may a waiting one get a pod, and after each episode those that serve are whole.

    python -m tests.support.contention_operator FIRST COUNT EPISODES      prints failures
"""

from __future__ import annotations

import asyncio
import random
import sys
from contextlib import suppress
from typing import Any

from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.dst.api_fields import copy
from pdserve.dst.api_net import Faults
from pdserve.dst.runner import quiet_logs
from pdserve.dst.virtual_time import run_virtual
from pdserve.dst.world import World
from pdserve.dst.world_service import NPU, NS, service
from pdserve.kube.resource import Object

IMAGES = ("pdserve/engine:test", "pdserve/engine:next")
SERVING = {"shop-chat": 4, "mart-chat": 4}
"""Pods wanted, by the beginning of their names."""
WAITING = ("shop-late", "last-chat")
REST_SECONDS = 60.0
WHOLE_SECONDS = 1500.0
"""Virtual seconds after which those that serve must be whole: twice the longest back-off."""


class Competition:
    """One world and its operator."""

    def __init__(self, seed: int, scarce: str = NPU, plenty: str = "") -> None:
        """`scarce`: the resource that all pods together take all of; `plenty`: one that they take
        too, and of which there is enough.
        """
        self.scarce = scarce
        self.takes = {r: n for r, n in ((scarce, "2"), (plenty, "1")) if r not in ("", NPU)}
        self.rng = random.Random(seed)
        self.world = World(seed=seed, step=0.25)
        self.faults = Faults(seed=seed)
        self.log: list[str] = []
        self._operator: asyncio.Task[None] | None = None
        self._whole_since = 0.0

    async def run(self, episodes: int) -> None:
        """Set up, then run so many episodes.

        Raises:
            AssertionError: a waiting ScenarioGroup got a pod, or one that serves is not whole.
        """
        async with self.world.running():
            self._start()
            try:
                await self._set_up()
                for number in range(episodes):
                    self.log = [f"episode {number}"]
                    await self._episode()
            finally:
                await self._stop()

    def whole(self) -> bool:
        """Those that serve have all pods, of one revision each, and all are routed."""
        names = [p["metadata"]["name"] for p in self.world.instances()]
        routed = self.world.routed("shop") | self.world.routed("mart")
        of = {s: [n for n in names if n.startswith(s)] for s in SERVING}
        revisions = {s: {n.rpartition("-")[2][:6] for n in of[s]} for s in SERVING}
        return (
            all(len(of[s]) == count for s, count in SERVING.items())
            and set(names) == routed
            and all(revisions.values())
            and self.world.service_ready("mart")
        )

    def check(self) -> None:
        """No waiting one ever got a pod."""
        got = sorted(n for n in self.world.ever if n.startswith(WAITING))
        assert not got, f"invariant 13: {got} were made\n" + "\n".join(self.log)

    async def _set_up(self) -> None:
        world = self.world
        for name in ("a-0", "a-1", "b-0", "b-1"):
            more = {r: "4" if r == self.scarce else "100" for r in self.takes}
            world.node(name[0], name, 4 if self.scarce == NPU else 16, **more)
        world.domain()
        shop = self._service("shop", (2, 1, 1))
        world.create(PDSERVICES, shop)
        world.create(PDSERVICES, self._service("mart", (1, 2, 2)))
        await world.until(self.whole, 300, "all serve")
        scenarios = copy(shop["spec"]["scenarios"])
        late = copy(scenarios[0])
        late["name"], late["match"] = "late", {"headers": {"x-scenario": "late"}}
        late["ratio"]["fixed"]["groups"] = 1
        world.patch(PDSERVICES, NS, "shop", {"spec": {"scenarios": [late, *scenarios]}})
        world.create(PDSERVICES, self._service("last", (1, 1, 1)))
        await asyncio.sleep(60)
        self.check()

    async def _episode(self) -> None:
        for _ in range(self.rng.randint(1, 5)):
            await self._step()
            await asyncio.sleep(
                self.rng.choice((0.0, self.rng.uniform(0, 3), self.rng.uniform(0, 30)))
            )
            self.check()
        self._heal()
        if self._operator is None:
            self._start()
        self._whole_since = asyncio.get_running_loop().time()
        try:
            await self.world.until(self._rests, WHOLE_SECONDS, "whole again")
        except AssertionError as error:
            raise AssertionError("\n".join([*self.log, str(error)])) from error
        self.check()

    def _rests(self) -> bool:
        """Whole for so long that no fault is still to be noticed."""
        now = asyncio.get_running_loop().time()
        if not self.whole():
            self._whole_since = now
        return now - self._whole_since > REST_SECONDS

    async def _step(self) -> None:
        kinds = ("delete", "kill", "roll", "stop", "start", "restart", "network", "heal")
        kind = self.rng.choices(kinds, (4, 2, 2, 2, 2, 2, 1, 1))[0]
        pods = [p for p in self.world.instances() if "deletionTimestamp" not in p["metadata"]]
        pod = self.rng.choice(pods)["metadata"]["name"] if pods else ""
        note = f"{asyncio.get_running_loop().time():.2f} {kind}"
        if kind == "delete" and pod:
            note += f" {pod}"
            self.world.delete_pod(pod)
        elif kind == "kill" and pod:
            note += f" {pod}"
            self.world.kill(pod)
        elif kind == "roll":
            body = {"spec": {"engine": {"image": self.rng.choice(IMAGES)}}}
            self.world.patch(PDSERVICES, NS, self.rng.choice(("shop", "mart")), body)
        elif kind in ("stop", "restart"):
            await self._stop()
        elif kind == "network":
            self.faults.latency, self.faults.watch_delay = (0.0, 0.5), (0.0, 2.0)
            self.faults.refuse = self.faults.lose_answer = 0.2
        elif kind == "heal":
            self._heal()
        if kind in ("start", "restart") and self._operator is None:
            self._start()
        self.log.append(note)

    def _heal(self) -> None:
        self.faults.latency = self.faults.watch_delay = (0.0, 0.0)
        self.faults.refuse = self.faults.lose_answer = 0.0

    def _service(self, name: str, counts: tuple[int, int, int]) -> Object:
        groups, prefill, decode = counts
        fixed = {"groups": groups, "prefill": prefill, "decode": decode}
        ratio: dict[str, Any] = {"mode": "Fixed", "fixed": fixed}
        made = service(name, devices=2, ratio=ratio)
        engine = {"name": "engine", "resources": {"limits": self.takes}}
        for role in ("prefill", "decode") if self.takes else ():
            made["spec"][role]["template"] = {"spec": {"containers": [engine]}}
        return made

    def _start(self) -> None:
        self._operator = asyncio.create_task(self.world.operate(self.faults))

    async def _stop(self) -> None:
        if self._operator is not None:
            self._operator.cancel()
            with suppress(BaseException):
                await self._operator
        self._operator = None


def main(first: int, count: int, episodes: int) -> int:
    """Run worlds of so many episodes each. Returns how many failed."""
    failed = 0
    for seed in range(first, first + count):
        try:
            with quiet_logs():
                run_virtual(Competition(seed).run(episodes))
        except AssertionError as error:
            failed += 1
            print(f"seed {seed}: {error}", flush=True)
    print(f"{count} times {episodes} episodes from seed {first}: {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main(*map(int, sys.argv[1:4]))))
