"""The prefill's side of a handoff: keeps KV and its slot until a decode has pulled it.

Implements the transport's `Exporter`. A request can be released by the id the client sent
(`x-request-id`), which the gateway has, or by the id in `kv_transfer_params`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from pdserve.refengine.kv.leases import Ending, HeldKv, Leases
from pdserve.refengine.kv.payload import Payload
from pdserve.refengine.metrics import EngineMetrics
from pdserve.refengine.runtime.pacing import Pacer
from pdserve.refengine.runtime.predict import Average


class Handoff:
    """Leases of one prefill, their timer and their figures."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        leases: tuple[float, float],
        metrics: EngineMetrics,
        pacer: Pacer | None,
        freed: Callable[[], None],
    ) -> None:
        """`leases` are seconds of lease and of grace; `freed` is called for each slot freed."""
        self._loop, self._metrics, self._pacer, self._freed = loop, metrics, pacer, freed
        self._lease_seconds = leases[0]
        self._leases = Leases(*leases, self._ended)
        self._timer: asyncio.TimerHandle | None = None
        self.hold_seconds = Average()
        self.admits_peer: Callable[[str], str | None] = lambda peer: f"{peer} is no peer"

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._leases

    def hold(self, request_id: str, payload: Payload) -> float:
        """Keep KV from now on; returns the seconds of the lease."""
        self._leases.hold(request_id, payload, time.monotonic())
        self._arm()
        return self._lease_seconds

    def generation(self, request_id: str) -> int:
        """The generation of a request's held KV (`kv.integrity`); 0 when none is held."""
        held = self._leases.get(request_id)
        return 0 if held is None else held.payload.generation

    def release(self, request_id: str) -> bool:
        """Release held KV; False when nothing was held."""
        return self._leases.end(request_id, "released")

    def oldest_hold(self) -> float:
        """Seconds since the longest-held KV was ready; 0 when none is held."""
        since = self._leases.oldest()
        return 0.0 if since is None else time.monotonic() - since

    def admits(self, peer: str) -> str | None:
        """Exporter: may this peer link and pull?"""
        return self.admits_peer(peer)

    def export(self, request_id: str, peer: str) -> Payload | None:
        """Exporter: a pull begins."""
        return self._leases.begin_pull(request_id, time.monotonic())

    def pulled(self, request_id: str, peer: str) -> None:
        """Exporter: the decode has it. In paced mode the slot stays for the paced transfer time."""
        held = self._leases.get(request_id)
        if held is None:
            return
        if self._pacer is None:
            self._leases.end(request_id, "pulled")
            return
        due = self._pacer.transfer_end(time.monotonic(), held.payload.tokens)
        self._loop.call_later(due - time.monotonic(), self._end_pulled, request_id, held)

    def _end_pulled(self, request_id: str, held: HeldKv) -> None:
        # Released meanwhile, the id may stand for another request by now.
        if self._leases.get(request_id) is held:
            self._leases.end(request_id, "pulled")

    def pull_failed(self, request_id: str, peer: str) -> None:
        """Exporter: the transfer broke; another decode may try until the lease ends."""
        self._leases.pull_failed(request_id)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _ended(self, request_id: str, held: HeldKv, ending: Ending) -> None:
        self._freed()
        now = time.monotonic()
        self.hold_seconds.add(now - held.since)
        pull = held.first_pull
        self._metrics.kv_wait.inc((now if pull is None else pull) - held.since)
        if ending == "pulled" and pull is not None:
            self._metrics.transfer_seconds.inc(now - pull)
            self._metrics.transfers.inc()
            self._metrics.transfer_bytes.inc(len(held.payload.data))

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self._leases.next_expiry()
        self._timer = None
        if due is not None:
            # A little late rather than early: `_expire` then always finds it over.
            self._timer = self._loop.call_later(due - time.monotonic() + 0.001, self._expire)

    def _expire(self) -> None:
        self._leases.expire(time.monotonic())
        self._arm()
