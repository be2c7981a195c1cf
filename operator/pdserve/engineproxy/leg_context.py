"""What legs of both roles need: admission, the engine, and how its failures are reported.

Errors carry slot hints like every other answer of an instance. An engine that breaks is `failed`
for gateways (502), never a refusal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import orjson

from pdserve.engineproxy.engine_access import EngineAccess
from pdserve.engineproxy.leg_chains import LegChains
from pdserve.engineproxy.peer_checks import PeerChecks
from pdserve.engineproxy.places import Places, TakenPlace
from pdserve.engineproxy.proxy_config import ProxyConfig
from pdserve.engineproxy.proxy_metrics import ProxyMetrics
from pdserve.engineproxy.stream_end import message_of
from pdserve.engines.instance_answers import RejectedError
from pdserve.engines.room_flow import HOST, PORT, ROOM, meeting_place
from pdserve.http1.client import Exchange
from pdserve.http1.errors import ApiError, Headers
from pdserve.http1.listener import UpstreamError
from pdserve.http1.receive import HttpRequest
from pdserve.terms.json import JsonObject
from pdserve.wire import calls
from pdserve.wire.bounds import WireError, parse_json

JSON: Final = "application/json"
REFUSALS: Final = frozenset({429, 503})
"""Statuses by which the engine says that it has no room."""
CLIENT_ERRORS: Final = frozenset({400, 413, 422})
"""Statuses of the engine that are the client's own mistakes."""
FLAGS: Final = ("do_remote_prefill", "do_remote_decode")
"""Of a leg's P/D parameters; each is for one role."""
MAX_NAME: Final = 256
MAX_ERROR: Final = 64 << 10
"""Bytes of an engine's error that are passed on."""
MAX_REPLY: Final = 64 << 20
_FORWARDED: Final = tuple(
    name.encode() for name in (calls.HEADER_REQUEST_ID, "traceparent", "tracestate")
)


@dataclass(slots=True)
class LegContext:
    """The parts of one proxy that requests use."""

    config: ProxyConfig
    places: Places
    engine: EngineAccess
    peers: PeerChecks
    metrics: ProxyMetrics
    clock: Callable[[], float] = time.monotonic
    chains: LegChains | None = None
    """Which blocks hold which leg's prompt; None: the engine's events are not read."""
    draining: bool = False
    """It takes nothing new and ends what runs."""

    @property
    def ready(self) -> bool:
        """Whether requests are taken, as long as there is room."""
        return not self.why_not_ready

    @property
    def why_not_ready(self) -> str:
        """Empty when it is ready."""
        if self.draining:
            return "draining"
        if not self.engine.up:
            return self.engine.why
        return "" if self.peers.linked else "links of no peer table were complete yet"

    def hints(self) -> Headers:
        """Headers of every reply."""
        return self.places.hint(self.clock()).headers()

    def admit(self, request: HttpRequest) -> TakenPlace:
        """Take a place for a request.

        Raises:
            ApiError: it is refused; the engine sees nothing of it.
        """
        reason = None
        if self.draining:
            reason = calls.REJECT_DRAINING
        elif not self.ready:
            reason = calls.REJECT_NOT_READY
        if reason is not None:
            raise self.refused(reason, f"instance: {self.why_not_ready}")
        left = milliseconds(request, calls.HEADER_DEADLINE_MS)
        if left is not None and left <= 0:
            error = self.refused(calls.REJECT_DEADLINE, f"needs 1 ms, {left} ms are left")
            times = ((calls.HEADER_NEEDED_MS, 1), (calls.HEADER_LEFT_MS, 0))
            error.headers += tuple((name.encode(), b"%d" % ms) for name, ms in times)
            raise error
        name = request.header(calls.HEADER_REQUEST_ID) or ""
        if len(name) > MAX_NAME or not name.isprintable():
            raise ApiError(
                400, f"{calls.HEADER_REQUEST_ID}: at most {MAX_NAME} printable characters"
            )
        place = self.places.take(name, self.clock())
        if place is None:
            role = self.config.role
            full = calls.REJECT_FULL if role == "prefill" else calls.REJECT_DECODE_FULL
            raise self.refused(full, f"none of {self.config.places} places is free")
        return place

    def refused(self, reason: str, message: str, status: int = 503) -> RejectedError:
        """Count a refusal; the caller raises it."""
        self.metrics.rejected(reason)
        return RejectedError(reason, message, status)

    def free(self, place: TakenPlace) -> bool:
        """Give a place back; False when it was free already."""
        return self.places.free(place, self.clock())

    def expire(self) -> None:
        """Give back the places of KV whose lease ended; await events no longer than sensible."""
        now = self.clock()
        for place in self.places.overdue(now):
            self.free(place)
        if self.chains is not None:
            self.chains.expire(now)

    def engine_lost(self) -> None:
        """Give back the places of KV that an engine held which is no more."""
        for place in self.places:
            if place.state == "holding":
                self.free(place)
        if self.chains is not None:
            self.chains.cleared()

    def lost(self, error: UpstreamError) -> ApiError:
        """A leg whose engine went away, or answered nonsense."""
        self.engine.suspect()
        return _broken(f"engine: {error}", "engine_lost")

    def engine_full(self) -> None:
        """The engine refused a request: refuse before it for a while."""
        self.places.close(self.clock())

    async def engine_error(self, exchange: Exchange) -> ApiError:
        """An engine's reply other than 200, as the answer to the gateway.

        Raises:
            UpstreamError: it broke off.
        """
        raw = await exchange.read(self.config.reply_seconds)
        value = _object(raw) if len(raw) <= MAX_ERROR else None
        message = f"engine answered {exchange.status}"
        if value is not None:
            message = f"{message}: {message_of(value)}"
        if exchange.status in CLIENT_ERRORS:
            return _EngineSaysError(exchange.status, message, value)
        return _broken(message, "engine_error")


class _EngineSaysError(ApiError):
    """A client's mistake, in the engine's own words where it used an object."""

    def __init__(self, status: int, message: str, value: JsonObject | None) -> None:
        super().__init__(status, message, code="engine_refused")
        self._said = value

    def value(self) -> JsonObject:
        """The engine's error object, or one of ours."""
        return super().value() if self._said is None else self._said


def forwarded(request: HttpRequest) -> Headers:
    """Headers of a request that the engine gets too."""
    return tuple((n, request.headers[n]) for n in _FORWARDED if n in request.headers)


def body_of(request: HttpRequest) -> JsonObject:
    """The JSON object in a leg's body.

    Raises:
        ApiError: 400, it is none; 413, it is too large.
    """
    if request.size > len(request.body):
        raise ApiError(413, f"request body of {request.size} bytes is too large", code="too_large")
    try:
        value = parse_json(request.body, max_bytes=max(1, len(request.body)))
    except WireError as error:
        raise ApiError(400, f"body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError(400, "body: a JSON object is required", code="invalid_json")
    return value


def kv_params(body: JsonObject, flag: str, role: str) -> JsonObject:
    """The P/D parameters of a leg, in which `flag` is true, and not that of the other role.

    Raises:
        ApiError: 400, they are not those of a leg of this `role`.
    """
    params = body.get(calls.PARAM_KV)
    given = params if isinstance(params, dict) else {}
    if given.get(flag) is not True or any(given.get(f) for f in FLAGS if f != flag):
        raise ApiError(
            400, f"a {role} only takes {calls.PARAM_KV} with {flag}: true, and no other flag",
            param=calls.PARAM_KV, code="wrong_role",
        )  # fmt: skip
    return given


def room_place(body: JsonObject, role: str) -> tuple[str, int]:
    """Host and port of the bootstrap server at which the legs of a request meet.

    Raises:
        ApiError: 400, the body names no room, or is one of a leg that pulls KV.
    """
    place = meeting_place(body)
    if place is None or calls.PARAM_KV in body:
        raise ApiError(
            400, f"a {role} only takes legs with {HOST}, {PORT} and {ROOM}",
            param=ROOM, code="wrong_role",
        )  # fmt: skip
    return place


def _broken(message: str, code: str) -> ApiError:
    return ApiError(502, message, kind="server_error", code=code)


def _object(raw: bytes) -> JsonObject | None:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def milliseconds(request: HttpRequest, name: str) -> int | None:
    """The header of this name; None without it.

    Raises:
        ApiError: 400, it is no whole number.
    """
    value = request.header(name)
    if value is None:
        return None
    try:
        return int(value)
    except ValueError as error:
        raise ApiError(400, f"{name}: {value!r:.80} is not an integer of milliseconds") from error
