"""The operator's own time: a clock that never steps, and how long a state has lasted.

Waits and deadlines use the monotonic clock. A wall clock may be set by hours, and the timestamps in
objects come from other machines' clocks (API server, kubelets, scheduler). So `since` notes when
this process first saw each timestamp and counts from there.

The first look at an object's owner (after a start or a fail-over) has no such note. Then the
timestamp itself counts, but never from before this process started: a clock that was set before the
start could otherwise make an instance of five seconds an hour old, and have it deleted. The price:
a deadline begins anew with each operator. `written` reads the timestamps of operators (this one,
earlier ones, other hosts): they count as they are, but at most up to now. So a clock that is set
makes no wait longer than its bound.

`NodeSilence` measures how long a Node has been without Ready, and only while the API server
answers. Time in which the operator could not read (the server stood still, or this process did)
says nothing about a node, and after such a time kubelets need a moment to report again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.held import ChangeType, K, uid_of
from pdserve.kube.resource import NODES
from pdserve.topology import NodeView

log = logging.getLogger(__name__)

PROBE_PERIOD: Final = 5.0
"""Seconds between two questions to the API server while any Node is without Ready, or between two
looks at the clock while none is."""
PROBE_TIMEOUT: Final = 4.0
LONGEST_GAP: Final = 12.0
"""Seconds between two answers above which the time between them does not count."""
SETTLE_SECONDS: Final = 15.0
"""After such a gap nothing counts for so long: kubelets report every 10 s."""


class Clock:
    """Times of one process, in seconds since the epoch as the wall clock had it at the start."""

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float]) -> None:
        """`wall`: seconds since the epoch, may step; `steady`: monotonic seconds."""
        self._steady = steady
        self._started = wall()
        self._origin = self._started - steady()
        self._began: dict[str, dict[tuple[str, float], float]] = {}
        self._met: set[str] = set()

    def now(self) -> float:
        """Seconds since the epoch; steps of the wall clock after the start do not change them."""
        return self._origin + self._steady()

    def since(self, owner: str, uid: str, what: str, stamp: float) -> float:
        """When `what` of object `uid` began, in seconds of this clock.

        `stamp`: when the object says that it began (seconds since the epoch, of any host's clock).
        It counts up to now when `owner` was not looked at before; else it began when it was first
        seen.
        """
        known = self._began.setdefault(uid, {})
        key = (what, stamp)
        if key not in known:
            now = self.now()
            known[key] = now if owner in self._met else max(min(stamp, now), self._started)
        return known[key]

    def written(self, uid: str, stamp: float) -> float:
        """When an operator wrote `stamp` into object `uid`: `stamp`, at most when first seen.

        In seconds since the epoch; the stamp may be of another host's clock.
        """
        known = self._began.setdefault(uid, {})
        key = ("written", stamp)
        if key not in known and stamp > self.now():
            known[key] = self.now()
        return known.get(key, stamp)

    def met(self, owner: str) -> None:
        """All of `owner`'s objects have been looked at: what is seen from now on is new."""
        self._met.add(owner)

    def forget(self, event: ChangeType, old: K | None, _new: K | None) -> None:
        """Cache handler of Pods and their owners: drop what is known of one that is gone."""
        if event == "DELETED" and old is not None:
            uid = str(uid_of(old) or "")
            self._began.pop(uid, None)
            self._met.discard(uid)


class NodeSilence:
    """For how long each Node has been seen without Ready while the API server answered."""

    def __init__(self, steady: Callable[[], float]) -> None:
        """`steady`: monotonic seconds."""
        self._steady = steady
        self._heard = 0.0
        self._answered: float | None = None
        self._settled_at = 0.0
        self._since: dict[str, float] = {}

    def changed(self, _event: ChangeType, old: NodeView | None, new: NodeView | None) -> None:
        """Cache handler of Nodes."""
        if new is not None and not new.ready:
            self._since.setdefault(new.name, self._counted())
        elif (found := new or old) is not None:
            self._since.pop(found.name, None)

    def of(self, node: str) -> float | None:
        """Seconds; None for a Node that was not seen without Ready."""
        since = self._since.get(node)
        return None if since is None else max(0.0, self._counted() - since)

    async def listen(self, client: KubeClient) -> None:
        """Ask the API server every few seconds while a Node is without Ready, until cancelled."""
        while True:
            await self._ask(client)
            await asyncio.sleep(PROBE_PERIOD)

    async def _ask(self, client: KubeClient) -> None:
        silent = min(self._since, default=None)
        if silent is not None:
            try:
                async with asyncio.timeout(PROBE_TIMEOUT):
                    await client.get(NODES, silent)
            except KubeError as error:
                # A refusal is an answer too; a server that fails, or none, is not.
                if not 400 <= error.status < 500:
                    return
            except TimeoutError:
                return
        self._answer()

    def _answer(self) -> None:
        now = self._steady()
        before, self._answered = self._answered, now
        if before is None:
            return
        if now - before > LONGEST_GAP:
            log.info("No word from the API server for %.0f s: not counted as silence", now - before)
            self._settled_at = now + SETTLE_SECONDS
            return
        self._heard += max(0.0, now - max(before, self._settled_at))

    def _counted(self) -> float:
        """Seconds heard, those since the last answer included as far as they are likely heard."""
        if self._answered is None:
            return self._heard
        now = self._steady()
        began = max(self._answered, self._settled_at)
        return self._heard + min(max(0.0, now - began), PROBE_PERIOD)
