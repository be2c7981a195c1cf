"""A prefill leg: the engine computes one token, and its KV is held until a decode has it.

The place stays taken after the reply: until a decode's proxy reports the pull, the gateway
releases the KV, or the lease ends. An engine whose legs meet in a room answers when its KV has gone
over; its place is free with the reply.
"""

from __future__ import annotations

import asyncio

from pdserve.engineproxy.leg_context import (
    JSON,
    MAX_REPLY,
    REFUSALS,
    LegContext,
    body_of,
    forwarded,
    kv_params,
    room_place,
)
from pdserve.engineproxy.peer_checks import PATH_DISCARD
from pdserve.engineproxy.places import TakenPlace
from pdserve.engineproxy.stream_end import TokenCounts
from pdserve.engines.prefix_feed import named_blocks
from pdserve.http1.errors import ApiError
from pdserve.http1.listener import UpstreamError
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.terms.json import JsonObject
from pdserve.wire import calls
from pdserve.wire.bounds import WireError, parse_json


class PrefillLegs:
    """The generation endpoints of a prefill."""

    def __init__(self, context: LegContext) -> None:
        self._c = context
        self._tasks: dict[TakenPlace, asyncio.Task[None] | None] = {}
        """Of the requests that the engine computes."""
        self._discards: set[asyncio.Task[None]] = set()

    async def serve(self, request: HttpRequest, reply: Reply) -> None:
        """Answer one request; cancelled when the client goes away.

        Raises:
            ApiError: the answer is an error.
        """
        place = self._c.admit(request)
        try:
            self._tasks[place] = asyncio.current_task()
            self._check(body := body_of(request))
            raw = await self._computed(request, self._reporting(request, place, body))
            del self._tasks[place]  # from here on there is KV to free, and nothing to cancel
            value = _reply_object(raw)
            kv, counts = value.get(calls.PARAM_KV), TokenCounts.of(value)
            self._c.metrics.prefilled(counts)
            if self._c.chains is not None:
                self._c.chains.answered(place.name, counts.prompt, self._c.clock())
            if kv is not None:
                self._c.places.hold(place, kv, self._c.clock(), self._c.config.lease_seconds)
                reply.on_unread = lambda: self._let_go(place)
            else:
                self._c.free(place)
            reply.send(200, raw, JSON, self._c.hints())
        finally:
            self._tasks.pop(place, None)
            if place.state == "executing":
                self._c.free(place)
                if self._c.chains is not None:
                    self._c.chains.drop(place.name)

    def release(self, name: str) -> None:
        """End a request of this name, or see to it that the KV held under it is freed."""
        place = self._c.places.find(name)
        if place is not None:
            self._let_go(place)

    def _let_go(self, place: TakenPlace) -> None:
        task = self._tasks.get(place)
        if task is not None:
            task.cancel()
        elif self._c.config.release_by_refusal:
            discard = asyncio.get_running_loop().create_task(self._discard(place))
            self._discards.add(discard)
            discard.add_done_callback(self._discards.discard)

    def pulled(self, name: str, transfer: float | None) -> None:
        """No decode needs the KV any more.

        `transfer`: seconds from its request to its first token; None where none pulled it.
        """
        place = self._c.places.find(name)
        if place is None or place.state != "holding":
            return
        held = self._c.clock() - place.held_since
        if self._c.free(place) and transfer is not None:
            self._c.metrics.pulled(held, transfer)

    def _check(self, body: JsonObject) -> None:
        """Raises ApiError where the body is not that of a prefill leg."""
        if self._c.config.rooms:
            room_place(body, "prefill")
        else:
            kv_params(body, "do_remote_decode", "prefill")

    def _reporting(self, request: HttpRequest, place: TakenPlace, body: JsonObject) -> bytes:
        """The body to send: where the gateway named its blocks, the engine reports its own."""
        chains, named = self._c.chains, named_blocks(request)
        if chains is None or not named.digests or not place.name:
            return request.body
        return chains.begin(place.name, named, body)

    async def _computed(self, request: HttpRequest, body: bytes) -> bytes:
        c = self._c
        c.metrics.busy.begin()
        try:
            exchange = await c.engine.post(
                request.path, body, forwarded(request), c.config.reply_seconds
            )
            try:
                if exchange.status in REFUSALS:
                    c.engine_full()
                    raise c.refused(calls.REJECT_FULL, f"the engine answers {exchange.status}")
                if exchange.status != 200:
                    raise await c.engine_error(exchange)
                return await exchange.read(c.config.reply_seconds)
            finally:
                c.engine.done(exchange)
        except UpstreamError as error:
            raise c.lost(error) from error
        finally:
            c.metrics.busy.end()

    async def _discard(self, place: TakenPlace) -> None:
        """Have the KV freed by a decode that refuses it; without one the lease ends it."""
        for peer in self._c.peers.opposite():
            if await self._c.peers.tell(peer, PATH_DISCARD, {calls.PARAM_KV: place.kv}):
                self._c.free(place)
                return


def _reply_object(raw: bytes) -> JsonObject:
    """A prefill's reply; raises ApiError where it is none that can be passed on."""
    try:
        value = parse_json(raw, max_bytes=MAX_REPLY)
    except WireError as error:
        raise _nonsense(str(error)) from error
    if not isinstance(value, dict):
        raise _nonsense("no object")
    if not isinstance(value.get(calls.PARAM_KV), dict | None):
        raise _nonsense(f"{calls.PARAM_KV} is no object")
    return value


def _nonsense(what: str) -> ApiError:
    return ApiError(502, f"the engine's reply: {what}", kind="server_error", code="engine_reply")
