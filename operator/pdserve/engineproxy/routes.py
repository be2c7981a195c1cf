"""Paths of the proxy, and who may call them; `wire.calls` has pdserve's own."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import orjson

from pdserve import __version__
from pdserve.engineproxy.decode_leg import DecodeLegs
from pdserve.engineproxy.engine_access import get
from pdserve.engineproxy.kv_events import BlockHash
from pdserve.engineproxy.leg_context import JSON, LegContext
from pdserve.engineproxy.peer_checks import PATH_DISCARD, PATH_PULLED
from pdserve.engineproxy.prefill_leg import PrefillLegs
from pdserve.engineproxy.proxy_state import ProxyState
from pdserve.engines.instance_answers import StaleTableError
from pdserve.engines.prefix_feed import PrefixFeed
from pdserve.engines.trust import Trust
from pdserve.exposition import CONTENT_TYPE
from pdserve.http1.errors import ApiError
from pdserve.http1.listener import UpstreamError
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.terms.json import JsonObject
from pdserve.wire import calls
from pdserve.wire.bounds import MAX_BYTES, WireError, parse_json
from pdserve.wire.credentials import CAPABILITY, MAX_PUSH
from pdserve.wire.links import DrainReport
from pdserve.wire.peers import Peer
from pdserve.wire.prefixes import PATH_PREFIXES

PATH_LIVE: Final = "/livez"
"""200 while the proxy itself runs, whatever its engine does."""
PATH_ENGINE_METRICS: Final = "/metrics/engine"
"""The engine's own exposition."""
ENGINE_SECONDS: Final = 2.0
MAX_NAME: Final = 256

_GENERATE: Final = frozenset((calls.PATH_COMPLETIONS, calls.PATH_CHAT))
_CONTROL: Final = frozenset((calls.PATH_PEERS, calls.PATH_LINKS, calls.PATH_DRAIN))
_BY_PEERS: Final = frozenset((PATH_PULLED, PATH_DISCARD))
_KEPT: Final = {
    calls.PATH_PEERS: MAX_PUSH,
    calls.PATH_RELEASE: 64 << 10,
    PATH_PREFIXES: 256,
    PATH_PULLED: 64 << 10,
    PATH_DISCARD: MAX_BYTES,
}
"""Bytes of the bodies that paths beside those of generation take."""

Handler = Callable[[HttpRequest, Reply], Awaitable[None] | None]

log = logging.getLogger(__name__)


class ProxyRoutes:
    """The application: one call per request."""

    def __init__(
        self, context: LegContext, trust: Trust, state: ProxyState,
        feed: PrefixFeed[BlockHash] | None = None,
    ) -> None:  # fmt: skip
        """`state` takes peer tables over; `feed` reports the prefix cache, where it is known."""
        self._c, self._trust, self._state = context, trust, state
        self._legs: PrefillLegs | DecodeLegs
        role = context.config.role
        self._legs = PrefillLegs(context) if role == "prefill" else DecodeLegs(context)
        self._scrape: asyncio.Task[None] | None = None
        self._table: Mapping[str, tuple[str, Handler]] = {
            calls.PATH_COMPLETIONS: ("POST", self._generate),
            calls.PATH_CHAT: ("POST", self._generate),
            calls.PATH_MODELS: ("GET", self._models),
            calls.PATH_HEALTH: ("GET", self._health),
            calls.PATH_READY: ("GET", self._ready),
            calls.PATH_METRICS: ("GET", self._metrics),
            calls.PATH_INFO: ("GET", self._info),
            calls.PATH_PEERS: ("PUT", self._peers),
            calls.PATH_LINKS: ("GET", self._links),
            calls.PATH_DRAIN: ("POST", self._drain),
            calls.PATH_RELEASE: ("POST", self._release),
            PATH_LIVE: ("GET", self._live),
            PATH_ENGINE_METRICS: ("GET", self._engine_metrics),
            PATH_PULLED: ("POST", self._pulled),
            PATH_DISCARD: ("POST", self._discard),
        }
        if feed is not None:
            self._table = {**self._table, PATH_PREFIXES: ("POST", feed.subscribe)}

    def __call__(self, request: HttpRequest, reply: Reply) -> Awaitable[None] | None:
        """Answer one request; ApiError becomes its reply."""
        found = self._table.get(request.path)
        if found is None:
            raise ApiError(404, f"no such path: {request.path:.200}", code="not_found")
        method, handler = found
        given = "GET" if request.method == "HEAD" else request.method
        if given != method:
            raise ApiError(405, f"{request.path} takes {method}, not {request.method:.20}")
        return handler(request, reply)

    def screen(
        self, method: str, path: str, headers: dict[bytes, bytes], address: str
    ) -> ApiError | None:
        """Check a request's credential before anything of its body is kept; None: it is right."""
        given = headers.get(b"authorization", b"").decode("latin-1")
        try:
            if path in _GENERATE:
                self._trust.check_generation(given)
            elif path in _CONTROL:
                self._trust.controls(given)
            elif path in (calls.PATH_RELEASE, PATH_PREFIXES):
                self._trust.check_release(given)
            elif path in _BY_PEERS and not self._c.peers.any_sender(given):
                return _no_peer()
        except ApiError as error:
            return error
        return None

    def keeps(self, path: str) -> int:
        """Bytes of a body that are kept, by path."""
        if path in _GENERATE:
            return self._c.config.max_body_bytes
        return _KEPT.get(path, 0)

    async def _generate(self, request: HttpRequest, reply: Reply) -> None:
        self._trust.check_generation(_authorization(request))
        try:
            await self._legs.serve(request, reply)
        except ApiError:
            reply.headers = self._c.hints()
            raise

    async def _models(self, request: HttpRequest, reply: Reply) -> None:
        await self._pass_on(calls.PATH_MODELS, JSON, reply)

    async def _engine_metrics(self, request: HttpRequest, reply: Reply) -> None:
        await self._pass_on(self._c.config.engine_metrics_path, CONTENT_TYPE, reply)

    async def _pass_on(self, path: str, content_type: str, reply: Reply) -> None:
        try:
            status, raw = await get(self._c.config.engine, path, ENGINE_SECONDS)
        except UpstreamError as error:
            raise ApiError(502, f"engine: {error}", kind="server_error") from error
        if status != 200:
            raise ApiError(502, f"engine answered {status}", kind="server_error")
        reply.send(200, raw, content_type)

    def _live(self, request: HttpRequest, reply: Reply) -> None:
        _send(reply, 200, {"status": "ok"})

    def _health(self, request: HttpRequest, reply: Reply) -> None:
        engine = self._c.engine
        _send(reply, 200 if engine.up else 503, {"status": engine.why or "ok"})

    def _ready(self, request: HttpRequest, reply: Reply) -> None:
        why = self._c.why_not_ready
        _send(reply, 503 if why else 200, {"ready": not why, "why": why})

    async def _metrics(self, request: HttpRequest, reply: Reply) -> None:
        config, metrics = self._c.config, self._c.metrics
        if config.series:
            if self._scrape is None:
                self._scrape = asyncio.create_task(self._read_engine())
            await asyncio.shield(self._scrape)
        reply.send(200, metrics.registry.render().encode(), CONTENT_TYPE)

    async def _read_engine(self) -> None:
        """One scrape of the engine at a time: a counter in an older answer seems to begin anew."""
        config = self._c.config
        try:
            status, raw = await get(config.engine, config.engine_metrics_path, ENGINE_SECONDS)
            if status == 200:
                self._c.metrics.read_engine(raw.decode(errors="replace"))
        except UpstreamError as error:
            log.warning("the engine's metrics cannot be read: %s", error)
        finally:
            self._scrape = None

    def _info(self, request: HttpRequest, reply: Reply) -> None:
        c = self._c.config
        _send(
            reply,
            200,
            {
                "version": __version__,
                "instance": c.instance,
                "role": c.role,
                "slots": c.slots,
                "prefetch": c.prefetch,
                "leaseSeconds": c.lease_seconds,
                "loaded": self._c.engine.up,
                "ready": self._c.ready,
                "draining": self._c.draining,
            },
        )

    def _peers(self, request: HttpRequest, reply: Reply) -> None:
        sender = self._trust.controls(_authorization(request))
        try:
            version = self._state.take(request.body, sender)
        except WireError as error:
            raise ApiError(400, str(error), code="bad_table") from error
        except StaleTableError as error:
            _send(reply, 409, {"version": error.current} | error.value())
            return
        _send(reply, 200, {"version": version})

    def _links(self, request: HttpRequest, reply: Reply) -> None:
        self._trust.controls(_authorization(request))
        report = dataclasses.replace(
            self._c.peers.report(), credentials=CAPABILITY, grant=self._trust.revision
        )
        _send(reply, 200, report.to_json())

    def _drain(self, request: HttpRequest, reply: Reply) -> None:
        self._trust.controls(_authorization(request))
        self._c.draining = True
        places = self._c.places
        report = DrainReport(places.executing, places.holding, places.executing)
        _send(reply, 200, report.to_json())

    def _release(self, request: HttpRequest, reply: Reply) -> None:
        self._trust.check_release(_authorization(request))
        name = _message(request).get("request_id")
        if not isinstance(name, str) or len(name) > MAX_NAME:
            what = f"request_id: a string of at most {MAX_NAME} is required"
            raise ApiError(400, what, param="request_id")
        if isinstance(self._legs, PrefillLegs):
            self._legs.release(name)
        reply.send(204, b"", JSON, self._c.hints())

    def _pulled(self, request: HttpRequest, reply: Reply) -> None:
        _, message = self._from_peer(request)
        name, seconds = message.get("request_id"), message.get("seconds")
        if isinstance(self._legs, PrefillLegs) and isinstance(name, str):
            took = float(seconds) if isinstance(seconds, int | float) else None
            self._legs.pulled(name, took)
        reply.send(204, b"", JSON)

    async def _discard(self, request: HttpRequest, reply: Reply) -> None:
        peer, message = self._from_peer(request)
        params = message.get(calls.PARAM_KV)
        if not isinstance(self._legs, DecodeLegs) or not isinstance(params, dict):
            raise ApiError(400, f"{calls.PARAM_KV}: an object is required, at a decode")
        # The engine connects to the address in them.
        host, port = params.get("remote_host"), params.get("remote_port")
        if self._c.peers.handing_over_at(host, port) != peer:
            raise ApiError(400, f"{calls.PARAM_KV}: {peer.id} does not hand KV over at its address")
        if not await self._legs.discard(params):
            raise ApiError(502, "the engine did not refuse", kind="server_error")
        reply.send(204, b"", JSON)

    def _from_peer(self, request: HttpRequest) -> tuple[Peer, JsonObject]:
        message = _message(request)
        peer = self._c.peers.sender(_authorization(request), message)
        if peer is None:
            raise _no_peer()
        return peer, message


def _send(reply: Reply, status: int, value: object) -> None:
    reply.send(status, orjson.dumps(value), JSON)


def _authorization(request: HttpRequest) -> str:
    return request.header("authorization") or ""


def _no_peer() -> ApiError:
    return ApiError(401, "a peer's credential is required", code="unauthorized")


def _message(request: HttpRequest) -> JsonObject:
    try:
        value = parse_json(request.body)
    except WireError as error:
        raise ApiError(400, f"body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError(400, "body: a JSON object is required", code="invalid_json")
    return value
