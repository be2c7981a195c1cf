"""One leg: a request at one instance, with its accounting that always balances.

A leg is sent, then answered (accepted, refused, failed) or abandoned; an accepted one occupies a
slot until it is closed. Whatever happens to the request, `close` leaves the instance's record
right, and the scheduler decides again. Neighbours: `forwarding.instance` keeps the record, `state`
opens legs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pdserve.forwarding.instance import Instance
from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.request.effects import ScenarioReport
from pdserve.forwarding.scenario_view import Group
from pdserve.terms.failures import Failure
from pdserve.terms.json import JsonObject
from pdserve.wire.calls import REJECT_DEADLINE, REJECT_DRAINING, REJECT_NOT_READY
from pdserve.wire.hints import Hint
from pdserve.wire.routes import RouteInstance

LegKind = Literal["prefill", "decode", "local"]
"""`local`: a decode that computes the prompt itself."""
_NOT_SERVING = (REJECT_DRAINING, REJECT_NOT_READY)


class Leg:
    """A request at `instance`, which the decision to send already counted as sent."""

    __slots__ = (
        "_accepted_at",
        "_changed",
        "_ended_at",
        "_report",
        "_result",
        "_state",
        "answer",
        "deadline_ms",
        "decode",
        "early_head",
        "group",
        "hint",
        "instance",
        "kind",
        "name",
        "number",
        "overdue_at",
        "patience",
        "sent_at",
        "source",
        "status",
        "token_ids",
    )

    def __init__(
        self, kind: LegKind, instance: Instance, report: ScenarioReport,
        changed: Callable[[], None], now: float,
    ) -> None:  # fmt: skip
        """`changed` is called when what is known of the instance has changed."""
        self.kind: LegKind = kind
        self.instance = instance
        self.sent_at = now
        self.name = ""
        """The id that engines see."""
        self.number = 1
        """Counts the request's legs of this kind from 1."""
        self.deadline_ms: int | None = None
        """Milliseconds that the engine has; None: however long it takes."""
        self.patience = 0.0
        """Seconds until its reply's head must have come."""
        self.overdue_at = NEVER
        """When it is taken to have pulled the KV, without an answer (`Request.on_overdue`)."""
        self.early_head = False
        """The engine may say `102 Processing` once it has the KV."""
        self.token_ids = False
        """Events of its stream are to name their tokens."""
        self.group: Group | None = None
        """Prefill: its P/D group, as the routes had it when the leg was sent."""
        self.source: Leg | None = None
        """The prefill leg whose KV this one gets."""
        self.decode: RouteInstance | None = None
        """Prefill: the decode that gets the request at the same time."""
        self.answer = ""
        """What its head said (`Head.kind`); empty before it."""
        self.status = 0
        self.hint: Hint | None = None
        self._accepted_at = 0.0
        self._ended_at = 0.0
        self._result = "cancelled"
        self._report, self._changed = report, changed
        self._state: Literal["sent", "taken", "held", "closed"] = "sent"
        report.attempted(instance.route.role)

    def taken(self, now: float) -> None:
        """Note that the instance has it, as far as we know before its answer.

        Times are monotonic seconds, here and below.
        """
        if self._state == "sent":
            self._state = "taken"
            self._accepted_at = now
            self.instance.taken()
            self._changed()

    def accepted(self, hint: Hint | None, now: float) -> None:
        """Note that the instance took it: a slot is ours until `close`."""
        self.untake()
        self._state, self._result = "held", "accepted"
        self._accepted_at = self._ended_at = now
        self.instance.accepted(hint, now, self.sent_at)
        self._changed()

    def refused(self, hint: Hint | None, reason: str, now: float, *, local: bool = False) -> None:
        """Note that the instance did not take it, for `reason` (of its header, bounded).

        `local`: a decode was to compute a prompt; it may have room for others.
        """
        self.untake()
        self._end(f"refused: {reason}", now)
        if reason == REJECT_DEADLINE or (local and reason not in _NOT_SERVING):
            # It had room, only not for this request: others may go there at once.
            self.instance.answered()
            self.instance.hinted(hint, now)
        else:
            self.instance.rejected(hint, now, serving=reason not in _NOT_SERVING)
        self._report.rejected(self.instance.route.role, reason)
        self._changed()

    def answered(self, now: float) -> None:
        """Note an answer with an error that is not about its slots."""
        self.untake()
        self._end("error", now)
        self.instance.answered()
        self._changed()

    def failed(self, kind: Failure, now: float) -> None:
        """Note that the leg broke: no connection, lost, silent, or 5xx."""
        state = self._state
        self._end(f"failed: {kind}", now)
        if state == "sent":
            self.instance.failed(kind, now)
            reason = "status" if kind == "status" else "connect"
            self._report.rejected(self.instance.route.role, reason)
        elif state in ("taken", "held"):
            self.instance.lost(now)
        self._changed()

    def close(self, now: float) -> None:
        """The slot is free again, or the leg is given up; harmless when already closed."""
        if self._state == "closed":
            return
        if self._state in ("taken", "held"):
            self.instance.released(now, self._accepted_at)
        else:
            self.instance.abandoned()
        self._state = "closed"
        self._changed()

    def untake(self) -> None:
        """Undo `taken`: it is not sure any more that the instance has it."""
        if self._state == "taken":
            self._state = "sent"
            self.instance.revoked()

    @property
    def closed(self) -> bool:
        """Whether it occupies nothing any more."""
        return self._state == "closed"

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

    def _end(self, result: str, now: float) -> None:
        self._state, self._result, self._ended_at = "closed", result, now
