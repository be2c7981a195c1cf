"""One proxy process: wire everything together, listen, drain on SIGTERM, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

from pdserve.engineproxy.engine_access import EngineAccess
from pdserve.engineproxy.events_reader import EventsReader
from pdserve.engineproxy.kv_events import BlockHash
from pdserve.engineproxy.leg_chains import LegChains
from pdserve.engineproxy.leg_context import LegContext
from pdserve.engineproxy.peer_checks import PeerChecks
from pdserve.engineproxy.places import Places
from pdserve.engineproxy.proxy_config import ProxyConfig
from pdserve.engineproxy.proxy_metrics import ProxyMetrics
from pdserve.engineproxy.proxy_state import ProxyState
from pdserve.engineproxy.routes import ProxyRoutes
from pdserve.engines.prefix_feed import PrefixFeed
from pdserve.engines.trust import Trust
from pdserve.http1.limits import ClientLimits
from pdserve.http1.server import HttpServer
from pdserve.wire.credentials import MAX_PUSH

MAX_HEAD = 64 << 10
SWEEP_SECONDS = 0.25
"""Between looks for leases that ended."""
CLOSE_SECONDS = 1.0
"""How long a connection may take to send the last of its answer when the process ends."""
MAX_WAITING = 64
UNBOUNDED = 1 << 62
"""Bytes of all bodies: places bound what runs, and gateways keep their bounds."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """A started proxy: where it listens, and its state for tests."""

    port: int
    context: LegContext


@contextlib.asynccontextmanager
async def running(config: ProxyConfig) -> AsyncIterator[RunningProxy]:
    """Listen and serve inside the `async with` block, then drain.

    Raises:
        OSError: the address cannot be listened on.
    """
    trust = Trust(config.token, config.control, config.request, config.kv_key)
    places = Places(config.places)
    metrics = ProxyMetrics(config.role, config.slots, places, config.series, pulls=not config.rooms)
    peers = PeerChecks(config.instance, config.role, trust)
    engine = EngineAccess(config.engine, config.health_path)
    context = LegContext(config, places, engine, peers, metrics)
    engine.lost = context.engine_lost
    state = ProxyState(config.state_file, trust, peers)
    feed: PrefixFeed[BlockHash] | None = None
    if config.kv_events:
        context.chains = LegChains(config.kv_events_arguments)
        feed = PrefixFeed(context.chains.cached)
    routes = ProxyRoutes(context, trust, state, feed)
    server = HttpServer(routes, _limits(config), _report, routes.screen, routes.keeps)
    tasks = [asyncio.create_task(engine.watch()), asyncio.create_task(_sweep(context))]
    if context.chains is not None:
        reader = EventsReader(config.kv_events, config.kv_events_replay, context.chains)
        tasks.append(asyncio.create_task(reader.run()))
    try:
        state.restore()
        port = await server.start(config.bind, config.port)
        yield RunningProxy(port, context)
        await _drain(context)
    finally:
        if feed is not None:
            feed.close()
        await server.stop(CLOSE_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        peers.close()
        engine.close()


async def serve(config: ProxyConfig) -> None:
    """Serve until SIGTERM or SIGINT; a second signal stops at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(config) as proxy:
        log.info(
            "%s serves as %s on %s:%d, before the engine at %s",
            config.instance, config.role, config.bind, proxy.port, config.engine,
        )  # fmt: skip
        await stop.wait()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)


async def _sweep(context: LegContext) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        context.expire()


async def _drain(context: LegContext) -> None:
    """Refuse new work and let what runs finish, for at most `drain_seconds`."""
    context.draining = True
    deadline = context.clock() + context.config.drain_seconds
    while context.clock() < deadline:
        if not (context.places.executing or context.places.holding):
            return
        await asyncio.sleep(0.05)
    places = context.places
    if places.executing or places.holding:
        log.warning("stopping with %d requests, and KV of %d", places.executing, places.holding)


def _limits(config: ProxyConfig) -> ClientLimits:
    return ClientLimits(
        body=max(config.max_body_bytes, MAX_PUSH),
        head=MAX_HEAD,
        idle=math.inf,
        tells_late=True,
        pipelined=MAX_WAITING,
        waiting=config.max_body_bytes,
        memory=UNBOUNDED,
    )


def _report(error: Exception) -> None:
    log.error("A request failed", exc_info=error)
