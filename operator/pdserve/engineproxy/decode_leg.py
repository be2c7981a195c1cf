"""A decode leg: the engine gets the KV of a prefill of this group, or a prompt, and generates.

A decode engine that fails before its first token has not delivered anything: the gateway gets
`kv_failed` and asks another decode or another prefill. So the head of a stream waits for the first
event, which may be an error. What the engine streams is passed on as it comes; when the client
reads too slowly, the engine's connection is not read.
"""

from __future__ import annotations

import asyncio
from typing import Final

import orjson

from pdserve.engineproxy.leg_context import (
    CLIENT_ERRORS,
    JSON,
    REFUSALS,
    LegContext,
    body_of,
    forwarded,
    kv_params,
    milliseconds,
    room_place,
)
from pdserve.engineproxy.local_prompts import LocalPrompts
from pdserve.engineproxy.peer_checks import PATH_PULLED
from pdserve.engineproxy.stream_end import StreamEnds, TokenCounts, message_of, stream_error
from pdserve.http1.client import Exchange
from pdserve.http1.errors import ApiError
from pdserve.http1.listener import UpstreamError
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.terms.json import JsonObject
from pdserve.wire import calls
from pdserve.wire.peers import Peer

NO_MODEL: Final = "pdserve-no-such-model"
"""Asked for to be refused: an engine frees KV when it refuses the decode leg that would pull it."""
DISCARD_SECONDS: Final = 5.0
_EVENTS: Final = b"text/event-stream"
EVENT_STREAM: Final = f"{_EVENTS.decode()}; charset=utf-8"


class DecodeLegs:
    """The generation endpoints of a decode."""

    def __init__(self, context: LegContext) -> None:
        self._c = context
        self._local = LocalPrompts()
        self._messages: set[asyncio.Task[bool]] = set()

    async def serve(self, request: HttpRequest, reply: Reply) -> None:
        """Answer one request; cancelled when the client goes away.

        Raises:
            ApiError: the answer is an error, or an event of one where a stream has begun.
        """
        c = self._c
        place = c.admit(request)
        c.metrics.busy.begin()
        try:
            pull, streamed = self._read(request)
            try:
                exchange = await self._sent(request, pull, whole=not streamed)
                try:
                    await self._answer(exchange, reply, pull)
                finally:
                    c.engine.done(exchange)
            except UpstreamError as error:
                raise c.lost(error) from error
            finally:
                pull.stop()
        finally:
            c.metrics.busy.end()
            c.free(place)

    async def discard(self, params: JsonObject) -> bool:
        """Have a prefill free KV that no decode will pull; False where the engine did not refuse.

        The engine is asked for a model that it does not have, with the parameters of that KV.
        """
        body = {"model": NO_MODEL, "prompt": "-", "max_tokens": 1, calls.PARAM_KV: params}
        try:
            exchange = await self._c.engine.post(
                calls.PATH_COMPLETIONS, orjson.dumps(body), (), DISCARD_SECONDS
            )
        except UpstreamError:
            return False
        try:
            await exchange.read(DISCARD_SECONDS)
        except UpstreamError:
            return False
        finally:
            self._c.engine.done(exchange)
        return exchange.status in REFUSALS or 400 <= exchange.status < 500

    def tell_pulled(self, holder: Peer, message: JsonObject) -> None:
        """Report a pull to the prefill's proxy, in the background."""
        task = asyncio.get_running_loop().create_task(
            self._c.peers.tell(holder, PATH_PULLED, message)
        )
        self._messages.add(task)
        task.add_done_callback(self._messages.discard)

    def _read(self, request: HttpRequest) -> tuple[_Handover, bool]:
        """How a leg gets its KV, and whether it is streamed; the rest of the body is not kept.

        Raises:
            ApiError: the body is not that of a decode leg, or the KV is none of a peer's.
        """
        body = body_of(request)
        streamed = bool(body.get("stream"))
        if self._c.config.rooms:
            self._holder(*room_place(body, "decode"))
            return _Handover(), streamed
        if request.header(calls.HEADER_LOCAL_PREFILL) == "1":
            return self._computed(request, body), streamed
        params = kv_params(body, "do_remote_prefill", "decode")
        holder = self._holder(params.get("remote_host"), params.get("remote_port"))
        return _Pull(self, holder, params), streamed

    def _computed(self, request: HttpRequest, body: JsonObject) -> _Handover:
        """A prompt that the engine computes; raises ApiError where it cannot begin at once."""
        c = self._c
        if calls.PARAM_KV in body:
            raise ApiError(
                400, f"{calls.HEADER_LOCAL_PREFILL}: a leg without {calls.PARAM_KV} is required",
                param=calls.PARAM_KV, code="wrong_role",
            )  # fmt: skip
        tpot = milliseconds(request, calls.HEADER_TPOT_MS)
        if c.places.executing > c.config.slots:
            message = "a prompt is computed here only where it can begin at once"
            raise c.refused(calls.REJECT_DECODE_FULL, message)
        if self._local.too_slow(None if tpot is None else tpot / 1000, c.clock()):
            raise c.refused(calls.REJECT_TPOT, "answers that run here would become too slow")
        return _Computed(self._local)

    def _holder(self, host: object, port: object) -> Peer:
        """The peer that hands KV over at an address; raises ApiError where the table has none."""
        holder = self._c.peers.handing_over_at(host, port)
        if holder is None:
            shown = f"{host!r:.80}:{port!r:.20}"
            raise self._kv_failed(f"no prefill of the peer table hands KV over at {shown}")
        return holder

    async def _sent(self, request: HttpRequest, pull: _Handover, *, whole: bool) -> Exchange:
        c = self._c
        pull.begin(c.config.pull_seconds if whole else None)
        body, request.body = request.body, b""
        return await c.engine.post(request.path, body, forwarded(request), c.config.reply_seconds)

    async def _answer(self, exchange: Exchange, reply: Reply, pull: _Handover) -> None:
        """Pass an engine's reply on. Raises ApiError and UpstreamError."""
        c = self._c
        if exchange.status != 200:
            error = await c.engine_error(exchange)
            if exchange.status in REFUSALS:
                c.engine_full()
            if exchange.status in CLIENT_ERRORS:
                pull.dropped()
                raise error
            raise self._kv_failed(error.message)
        if exchange.headers.get(b"content-type", b"").startswith(_EVENTS):
            await self._stream(exchange, reply, pull)
            return
        raw = await exchange.read(c.config.reply_seconds)
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise self._kv_failed(f"the engine's reply is not JSON: {error!s:.100}") from error
        if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
            value = {"error": "the engine's reply is no completion"}
        if not value.get("choices"):
            raise self._kv_failed(message_of(value))
        pull.done()
        c.metrics.decoded(TokenCounts.of(value))
        reply.send(200, raw, JSON, c.hints())

    async def _stream(self, exchange: Exchange, reply: Reply, pull: _Handover) -> None:
        c, ends = self._c, StreamEnds()
        wrong, first = "", 0.0

        def take(data: bytes) -> None:
            nonlocal wrong, first
            ends.keep(data)
            if reply.started:
                reply.write(data)
                return
            head = ends.first(data)
            if head is None or wrong:
                return
            wrong = stream_error(head)
            if wrong:
                exchange.abort()
                return
            pull.done()
            first = c.clock()
            reply.on_flow(exchange.pause, exchange.resume)
            reply.start(200, EVENT_STREAM, head, c.hints())

        try:
            await exchange.relay(take, c.config.reply_seconds)
        except UpstreamError:
            if not wrong:
                raise
        if not reply.started:
            raise self._kv_failed(wrong or "the engine's stream has no event")
        counts = ends.counts()
        self._local.ended(first, c.clock(), counts.made)
        c.metrics.decoded(counts)
        reply.end()

    def _kv_failed(self, message: str) -> ApiError:
        return self._c.refused(calls.REJECT_KV_FAILED, message, 502)


class _Handover:
    """KV that comes by itself, without a report."""

    def begin(self, seconds: float | None) -> None:
        """The engine gets the leg now; its KV counts as there after `seconds` at the latest."""

    def done(self) -> None:
        """The engine has the KV."""

    def dropped(self) -> None:
        """The engine has freed the KV at the prefill, without a pull."""

    def stop(self) -> None:
        """No report by time any more."""


class _Computed(_Handover):
    """KV that this engine computes."""

    def __init__(self, prompts: LocalPrompts) -> None:
        self._prompts = prompts
        self._open = True
        prompts.computing += 1

    def done(self) -> None:
        """The prompt has its first token."""
        self.stop()

    def stop(self) -> None:
        """It has, or is given up."""
        if self._open:
            self._open = False
            self._prompts.computing -= 1


class _Pull(_Handover):
    """Reports once that the KV of a leg was pulled."""

    def __init__(self, legs: DecodeLegs, holder: Peer, params: JsonObject) -> None:
        self._legs, self._holder, self._params = legs, holder, params
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._open = True

    def begin(self, seconds: float | None) -> None:
        """The engine gets the leg now; its KV counts as pulled after `seconds` at the latest."""
        self._since = self._loop.time()
        if seconds is not None:
            self._timer = self._loop.call_later(seconds, self.done)

    def done(self) -> None:
        """The engine has the KV."""
        self._tell({"seconds": self._loop.time() - self._since})

    def dropped(self) -> None:
        """The engine has freed the KV at the prefill, without a pull."""
        self._tell({})

    def _tell(self, details: JsonObject) -> None:
        self.stop()
        if self._open:
            self._open = False
            name = self._params.get("remote_request_id")
            self._legs.tell_pulled(self._holder, {"request_id": name, **details})

    def stop(self) -> None:
        """No report by time any more."""
        if self._timer is not None:
            self._timer.cancel()
