"""Access log: one JSON line per generating request, by its request id.

A line says what came, what became of it, when, and why: every leg with its instance and answer.
`kubectl pdserve explain --request ID` finds it. Lines are written in pieces by a thread, so that a
slow reader of standard output holds no request; more than `MAX_BUFFER` bytes unwritten are dropped,
and the next line says how many were. Neighbours: `app` fills a `Record`, `forwarding.request`
knows the legs.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import IO

import orjson

from pdserve.forwarding.request.request import Request
from pdserve.gateway.limits import LimitedRequest
from pdserve.gateway.request_trace import RequestTrace
from pdserve.http1.errors import ApiError
from pdserve.terms.json import JsonObject

FLUSH_SECONDS = 0.2
MAX_BUFFER = 4 << 20
MAX_MESSAGE = 300
CLIENT_GONE = 499
"""Status of a request whose client left before there was an answer."""


@dataclass(slots=True)
class Record:
    """What is known of one request; it has no requests while it was not admitted."""

    request_id: str
    path: str
    arrived: float
    requests: list[Request] = field(default_factory=list)
    """One for each choice that was begun."""
    admission: LimitedRequest | None = None
    """Where it is limited, and was admitted."""
    trace: RequestTrace | None = None
    """Where requests are traced."""
    _refusal: JsonObject = field(default_factory=dict)

    def failed(self, error: ApiError) -> None:
        """Note why it is answered with an error; the exception itself refers to its frames."""
        self._refusal = {"code": error.code, "why": error.message[:MAX_MESSAGE], **error.details}

    @property
    def refusal_code(self) -> str:
        """Why it was answered with an error, for programs; empty where it was not."""
        return str(self._refusal.get("code") or "")

    def line(self, status: int, now: float) -> JsonObject:
        """The log line of an answer with HTTP status `status`; milliseconds count from the arrival.

        `now`: when the answer ended, on the clock of `arrived` (monotonic seconds).
        """
        line: JsonObject = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime())}Z",
            "request": self.request_id,
            "path": self.path,
            "status": status or CLIENT_GONE,
            "ms": _ms(now - self.arrived),
        }
        line |= self._refusal
        return line | self._served(now) if self.requests else line

    def _served(self, now: float) -> JsonObject:
        """What became of the choices: the first outcome that is not `completed`, the sums of
        tokens, the times of the first choice that has them.
        """
        every, first = self.requests, self.requests[0]
        outcomes = [c.outcome or ("invalid" if c.invalid else "cancelled") for c in every]
        line: JsonObject = {
            "scenario": first.scheduler.scenario.name,
            "streamed": first.streamed,
            "outcome": next((o for o in outcomes if o != "completed"), "completed"),
            "legs": [leg.told(self.arrived, now) for c in every for leg in c.legs],
            "promptTokens": sum(c.timeline.prompt_tokens for c in every),
            "outputTokens": sum(c.timeline.output_tokens for c in every),
            "predictedMs": _ms(first.predicted),
        }
        for name, tokens in (
            ("cachedTokens", sum(c.timeline.cached_tokens for c in every)),
            ("expectedCachedTokens", sum(c.timeline.expected_cached for c in every)),
        ):
            if tokens:
                line[name] = tokens
        if len(every) > 1:
            line["choices"] = len(every)
        for name, seconds in (("ttftMs", "ttft"), ("handoffMs", "handoff")):
            known = [s for c in every if (s := getattr(c.timeline, seconds)) is not None]
            if known:
                line[name] = _ms(known[0])
        if continued := sum(c.continued for c in every):
            line["continued"] = continued
        if any(c.has_grace for c in every):
            line["failover"] = True
        if any(c.trial for c in every):
            line["tried"] = True
        return line


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


class AccessLog:
    """Writes lines to a stream; `close` waits for what is unwritten."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lines: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None

    def write(self, line: JsonObject) -> None:
        """Add one line; never waits. Lines are dropped while output stalls."""
        if self._size > MAX_BUFFER:
            self._dropped += 1
            return
        if self._dropped:
            line["droppedBefore"], self._dropped = self._dropped, 0
        data = orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE)
        self._lines.append(data)
        self._size += len(data)
        if self._timer is None and self._writing is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    async def close(self) -> None:
        """Write what is left; takes at most a second."""
        if self._timer is not None:
            self._timer.cancel()
            self._flush()
        if self._writing is not None:
            await asyncio.wait((self._writing,), timeout=1.0)

    def _flush(self) -> None:
        self._timer = None
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, self._put, b"".join(lines))
        self._writing.add_done_callback(self._written)

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._stream.flush()

    def _written(self, done: asyncio.Future[None]) -> None:
        done.exception()  # a closed standard output must not stop the service
        self._writing = None
        self._size = sum(map(len, self._lines))
        self._flush()
