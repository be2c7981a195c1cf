"""One leg: a request at one instance, with its accounting that always balances.

A leg is sent, then answered (accepted, refused, failed) or abandoned; an accepted one occupies a
slot until it is closed. Whatever happens to the request, `close` leaves the instance's record
right, and the scheduler runs again. Neighbours: `forwarding.instance` keeps the
record, `pipeline` owns the legs of a request, `http1.client` brings the reply.
"""

from __future__ import annotations

import time
from typing import Literal

from pdserve.engines.flow import EngineFlow
from pdserve.forwarding.instance import Instance
from pdserve.gateway.scenario_scheduler import ScenarioScheduler
from pdserve.http1.client import Exchange
from pdserve.terms.failures import Failure
from pdserve.terms.json import JsonObject
from pdserve.wire.calls import REJECT_DEADLINE, REJECT_DRAINING, REJECT_NOT_READY

_NOT_SERVING = (REJECT_DRAINING, REJECT_NOT_READY)


class Leg:
    """A request at `instance`, which the decision to send already counted as sent."""

    __slots__ = (
        "_accepted_at",
        "_ended_at",
        "_flow",
        "_result",
        "_scheduler",
        "_state",
        "instance",
        "sent_at",
    )  # fmt: skip

    def __init__(self, scheduler: ScenarioScheduler, flow: EngineFlow, instance: Instance) -> None:
        self.instance = instance
        self.sent_at = time.perf_counter()
        self._accepted_at = 0.0
        self._ended_at = 0.0
        self._result = "cancelled"
        self._scheduler = scheduler
        self._flow = flow
        self._state: Literal["sent", "taken", "held", "closed"] = "sent"
        scheduler.metrics.attempted(instance.route.role)

    def taken(self) -> None:
        """Note that the instance has it, as far as we know before its answer."""
        if self._state == "sent":
            self._state = "taken"
            self._accepted_at = time.perf_counter()
            self.instance.taken()
            self._scheduler.reschedule()

    def accepted(self, exchange: Exchange) -> None:
        """Note that the instance took it: a slot is ours until `close`."""
        self.untake()
        self._state, self._result = "held", "accepted"
        now = self._accepted_at = self._ended_at = time.perf_counter()
        self.instance.accepted(self._flow.read_hint(exchange.headers), now, self.sent_at)
        self._scheduler.reschedule()

    def refused(self, exchange: Exchange, reason: str, *, local: bool = False) -> None:
        """Note that the instance did not take it, for `reason` (of its header, bounded).

        `local`: a decode was to compute a prompt; it may have room for others.
        """
        self.untake()
        self._tell(f"refused: {reason}")
        self._state = "closed"
        now, hint = time.perf_counter(), self._flow.read_hint(exchange.headers)
        if reason == REJECT_DEADLINE or (local and reason not in _NOT_SERVING):
            # It had room, only not for this request: others may go there at once.
            self.instance.answered()
            self.instance.hinted(hint, now)
        else:
            self.instance.rejected(hint, now, serving=reason not in _NOT_SERVING)
        self._scheduler.metrics.rejected(self.instance.route.role, reason)
        self._scheduler.reschedule()

    def answered(self) -> None:
        """Note an answer with an error that is not about its slots."""
        self.untake()
        self._tell("error")
        self._state = "closed"
        self.instance.answered()
        self._scheduler.reschedule()

    def failed(self, kind: Failure) -> None:
        """Note that the leg broke: no connection, lost, silent, or 5xx."""
        self._tell(f"failed: {kind}")
        now = time.perf_counter()
        if self._state == "sent":
            self.instance.failed(kind, now)
            reason = "status" if kind == "status" else "connect"
            self._scheduler.metrics.rejected(self.instance.route.role, reason)
        elif self._state in ("taken", "held"):
            self.instance.lost(now)
        self._state = "closed"
        self._scheduler.reschedule()

    def close(self) -> None:
        """The slot is free again, or the leg is given up; harmless when already closed."""
        if self._state == "closed":
            return
        if self._state in ("taken", "held"):
            self.instance.released(time.perf_counter(), self._accepted_at)
        else:
            self.instance.abandoned()
        self._state = "closed"
        self._scheduler.reschedule()

    @property
    def result(self) -> str:
        """What became of it: accepted, error, cancelled, `refused: REASON` or `failed: KIND`."""
        return self._result

    @property
    def ended_at(self) -> float:
        """Monotonic seconds of its answer; 0 while there is none."""
        return self._ended_at

    def told(self, arrived: float, now: float) -> JsonObject:
        """This leg for the access log; milliseconds from the request's arrival.

        `arrived` and `now`: monotonic seconds.
        """
        end = self._ended_at or now
        return {
            "leg": self.instance.route.role,
            "instance": self.instance.id,
            "atMs": round((self.sent_at - arrived) * 1000, 1),
            "ms": round((end - self.sent_at) * 1000, 1),
            "result": self._result,
        }

    def _tell(self, result: str) -> None:
        self._result, self._ended_at = result, time.perf_counter()

    def untake(self) -> None:
        """Undo `taken`: it is not sure any more that the instance has it."""
        if self._state == "taken":
            self._state = "sent"
            self.instance.revoked()
