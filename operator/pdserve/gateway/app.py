"""The gateway as one object: paths to handlers, keys, request ids, start and stop.

Neighbours: `http1.server` calls `handle` for every request; `generate` serves the two generating
endpoints; `__main__` is the process around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pdserve.engines.credentials import Credential
from pdserve.engines.flow import Endpoint
from pdserve.exposition import CONTENT_TYPE
from pdserve.forwarding.request.effects import Settings
from pdserve.gateway.access_log import AccessLog
from pdserve.gateway.auth import API_KEY, AUTHORIZATION, KeyRing
from pdserve.gateway.front import Certificate, Front
from pdserve.gateway.generate import GenerateHandler, Parts
from pdserve.gateway.job import Tools
from pdserve.gateway.limits import GatewayLimits
from pdserve.gateway.metrics import GatewayMetrics
from pdserve.gateway.model_list import JSON, is_models, list_models
from pdserve.gateway.prefix_feeds import PrefixFeeds
from pdserve.gateway.prefixes import PromptHasher
from pdserve.gateway.release import Releaser
from pdserve.gateway.request_ids import REQUEST_ID, RequestIds
from pdserve.gateway.route_source import RouteSource
from pdserve.gateway.service import Service
from pdserve.gateway.trace_settings import TraceSettings
from pdserve.http1.errors import ApiError
from pdserve.http1.limits import ClientLimits
from pdserve.http1.pool import Pool
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.http1.server import HttpServer
from pdserve.wire.calls import (
    PATH_CHAT,
    PATH_COMPLETIONS,
    PATH_HEALTH,
    PATH_LIMITS,
    PATH_METRICS,
    PATH_MODELS,
    PATH_READY,
)
from pdserve.wire.routes import RouteTable

if TYPE_CHECKING:
    from pdserve.gateway.tracing import Tracer

logger = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"
_GENERATE: dict[str, Endpoint] = {PATH_CHAT: "chat", PATH_COMPLETIONS: "completions"}
KEY_REFRESH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How one gateway process runs."""

    credential: Credential = field(default_factory=Credential)
    """What engines know this gateway by."""
    limits: ClientLimits = field(default_factory=ClientLimits)
    settings: Settings = field(default_factory=Settings)
    room_limit: int = 1024
    drain_seconds: float = 30.0
    """On SIGTERM: how long requests in progress may go on."""
    own_id: str = ""
    """The gateway's name in the route table's list of gateways; empty: in none."""
    limit_patience: float = 0.5
    """Seconds to wait for the gateway that decides about limits, before deciding by a share."""
    tracing: TraceSettings | None = None
    """Where traces go; None: requests are not traced."""
    front: Front = field(default_factory=Front)
    """Certificate, web pages that may call, port of the metrics."""


class GatewayServer:
    """One gateway process."""

    def __init__(
        self,
        source: RouteSource,
        options: GatewayOptions,
        keys: KeyRing | None = None,
        rng: random.Random | None = None,
        access_log: AccessLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Breaks ties between equal instances; nothing secret depends on it.
        rng = rng or random.Random()  # noqa: S311 - jitter and schedules, no secrets
        self.metrics = GatewayMetrics()
        self.pool = Pool()
        self.service = Service(self.metrics, self.pool, rng, options.room_limit)
        self.server = HttpServer(self.handle, options.limits, _report, self._screen, self._keeps)
        self.monitor = HttpServer(self._monitor, ClientLimits(), _report)
        """Serves the metrics where they have a port of their own."""
        self.metrics_port = 0
        """That port, once it is open."""
        self._front, self._limits = options.front, options.limits
        self._log = access_log
        self._source = source
        self._drain_seconds = options.drain_seconds
        self._keys = keys
        own_id = options.own_id or secrets.token_hex(6)
        self._rates = GatewayLimits(
            self.metrics, keys, options.credential, own_id, options.limit_patience, clock
        )
        self._releaser = releaser = Releaser(self.pool, options.credential)
        self._ids = RequestIds()
        self._tracer = _tracer(options.tracing, self.metrics)
        tools = Tools(
            self.pool, releaser, options.credential, options.settings, self.service.another
        )
        parts = Parts(
            self.service, tools, self._rates, keys, self._ids, PromptHasher(options.credential),
            self.server.memory, self._limits.body, access_log,
        )  # fmt: skip
        self._generate = GenerateHandler(parts, self._tracer)
        self._feeds = PrefixFeeds(self.pool, options.credential)
        self._tasks: list[asyncio.Task[None]] = []

    def _follow(self, table: RouteTable) -> None:
        self.service.apply(table)
        self._rates.follow(table)
        self._feeds.follow(self.service.schedulers)

    def _keeps(self, path: str) -> int:
        """Bodies are for the paths that generate."""
        return self._limits.body if path in _GENERATE or path == PATH_LIMITS else 0

    async def start(self, host: str, port: int) -> int:
        """Begin to follow routes and to listen; returns the clients' port (0 asks for a free one).

        Raises:
            OSError: a port cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._source.run(self._follow)))
        self._tasks.append(loop.create_task(self._rates.peers.run()))
        if self._tracer is not None:
            self._tracer.start()
        if self._keys is not None:
            self._tasks.append(loop.create_task(_refresh(self._keys)))
        if self._front.metrics_port is not None:
            self.metrics_port = await self.monitor.start(host, self._front.metrics_port)
        certificate = self._front.certificate
        if certificate is None:
            return await self.server.start(host, port)
        self._tasks.append(loop.create_task(_renew(certificate)))
        return await self.server.start(host, port, certificate.context)

    async def stop(self) -> None:
        """Stop accepting, let requests finish within the drain time, then close everything.

        Requests that are not done by then are cut, and their number is logged.
        """
        cut = await self.server.stop(self._drain_seconds)
        if cut:
            logger.warning("%d requests were cut at the end of the drain time", cut)
        await self._releaser.settle()
        if self._log is not None:
            await self._log.close()
        if self._tracer is not None:
            await self._tracer.stop()
        if self._front.metrics_port is not None:
            await self.monitor.stop(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._feeds.close()
        self.pool.close()

    async def failed(self) -> None:
        """Return when a background task ended, which it never should; raises its error."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def handle(self, request: HttpRequest, reply: Reply) -> Awaitable[None] | None:
        """Answer one request: now, by callbacks, or by what is returned."""
        request_id = self._ids.of(request.headers)
        allowed = self._front.cors.headers(request.headers.get(b"origin"))
        reply.headers = ((REQUEST_ID, request_id.encode()), *allowed)
        endpoint = _GENERATE.get(request.path)
        if endpoint is not None and request.method == "POST":
            return self._generate.handle(endpoint, request, reply, request_id)
        record = None if endpoint is None else self._generate.record(request, request_id)
        failed: ApiError | None = None
        try:
            self._answer(request, reply)
        except ApiError as error:
            failed = error
        if record is not None:
            self._generate.end(record, reply, failed)
        elif failed is not None:
            reply.error(failed)
        return None

    def _screen(
        self, method: str, path: str, headers: dict[bytes, bytes], address: str
    ) -> ApiError | None:
        """Check the key before anything of the body is read."""
        if self._keys is None or not (path in _GENERATE or is_models(path)):
            return None
        if method == "OPTIONS" and self._front.cors.preflight(headers) is not None:
            return None  # a browser asks without the key
        try:
            self._keys.check(headers.get(AUTHORIZATION), headers.get(API_KEY), address)
        except ApiError as error:
            return error
        return self._rates.screen(headers) if path in _GENERATE else None

    def _answer(self, request: HttpRequest, reply: Reply) -> None:
        """Answer what is not for an engine; raises ApiError."""
        path, method = request.path, request.method
        if method == "OPTIONS" and (answer := self._front.cors.preflight(request.headers)):
            reply.send(200, b"", TEXT, answer)
        elif path in _GENERATE:
            _allow(method, "POST")
        elif is_models(path):
            _allow(method, "GET")
            list_models(self.service, path, reply)
        elif path in (PATH_METRICS, PATH_LIMITS) and self._front.metrics_port is None:
            self._monitor(request, reply)
        elif path in (PATH_HEALTH, "/healthz"):
            _allow(method, "GET")
            reply.send(200, b"ok\n", TEXT)
        elif path == PATH_READY:
            _allow(method, "GET")
            self._ready(reply)
        else:
            known = ", ".join((*_GENERATE, PATH_MODELS))
            raise ApiError(404, f"no such path: {path:.200} (known: {known})", code="not_found")

    def _monitor(self, request: HttpRequest, reply: Reply) -> None:
        try:
            if request.path == PATH_LIMITS:
                _allow(request.method, "POST")
                reply.send(200, self._rates.answer(request.headers, request.body), JSON)
                return
            if request.path != PATH_METRICS:
                raise ApiError(404, f"no such path here: {request.path:.200}", code="not_found")
            self._metrics(request.method, reply)
        except ApiError as error:
            reply.error(error)

    def _metrics(self, method: str, reply: Reply) -> None:
        _allow(method, "GET")
        self.service.show_instances()
        if self._keys is not None:
            self.metrics.keys(*self._keys.counts)
        reply.send(200, self.metrics.registry.render().encode(), CONTENT_TYPE)

    def _ready(self, reply: Reply) -> None:
        if self.server.draining:
            reply.send(503, b"draining\n", TEXT)
        elif self.service.table is None:
            reply.send(503, b"no route table yet\n", TEXT)
        else:
            reply.send(200, b"ok\n", TEXT)


def _allow(method: str, allowed: str) -> None:
    if method != allowed and not (method == "HEAD" and allowed == "GET"):
        raise ApiError(
            405,
            f"method {method} is not allowed here: use {allowed}",
            code="method_not_allowed",
            headers=((b"allow", allowed.encode()),),
        )


def _tracer(settings: TraceSettings | None, metrics: GatewayMetrics) -> Tracer | None:
    if settings is None:
        return None
    # What encodes spans takes 4 MB, which processes without traces need not pay.
    from pdserve.gateway.tracing import Tracer

    return Tracer(settings, metrics)


async def _refresh(keys: KeyRing) -> None:
    while True:
        await asyncio.sleep(KEY_REFRESH_SECONDS)
        with contextlib.suppress(OSError):
            keys.refresh()


async def _renew(certificate: Certificate) -> None:
    while True:
        await asyncio.sleep(KEY_REFRESH_SECONDS)
        with contextlib.suppress(OSError):
            certificate.refresh()


def _report(error: Exception) -> None:
    logger.error("a request failed inside the gateway", exc_info=error)
