"""One engine process: load, wire everything together, listen, drain on SIGTERM, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from pdserve.http1.listen import listening
from pdserve.refengine.api.connection import ConnectionLimits, HttpConnection
from pdserve.refengine.api.generate import Generator
from pdserve.refengine.api.handlers import Routes
from pdserve.refengine.api.handover import Sender
from pdserve.refengine.config import EngineConfig
from pdserve.refengine.kv.kv_transport import Identity
from pdserve.refengine.kv.paths import KvPaths
from pdserve.refengine.kv.tcp import TcpTransport
from pdserve.refengine.metrics import EngineMetrics
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.peer_links import Links
from pdserve.refengine.runtime.engine import Engine
from pdserve.refengine.runtime.pacing import Pacer, load_profile
from pdserve.refengine.trust import Trust
from pdserve.wire import http

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StartedInstance:
    """A started instance: where it listens, and its parts for tests and benches."""

    port: int
    transfer_port: int
    engine: Engine
    links: Links


@contextlib.asynccontextmanager
async def running(config: EngineConfig, model: LoadedModel) -> AsyncIterator[StartedInstance]:
    """Listen and serve inside the `async with` block."""
    loop = asyncio.get_running_loop()
    pacer = Pacer(load_profile(config.paced), config.pace_factor) if config.paced else None
    metrics = EngineMetrics(config.model_name, paced=pacer is not None)
    engine = Engine(config, model, metrics, pacer, loop)
    engine.warm_up()
    host = config.advertise or config.bind
    links = Links(config.instance, config.role, model.numerics, host)
    trust = Trust(config.token, config.control, config.request, config.kv_key)
    identity = Identity(config.instance, trust, model.fingerprint, model.numerics)
    transport = TcpTransport(identity, engine.handoff, config.transfer_timeout)
    trust.changed = transport.keys_changed
    transport.listeners.changed = metrics.device_addresses
    links.transport = transport
    links.paths = engine.kv_source = KvPaths(
        transport, transport.listeners, config.role == "decode", metrics.kv_pulled
    )
    engine.handoff.admits_peer = links.admits
    transfer_port = 0
    if config.role != "both":
        transfer_port = await transport.start(config.bind, config.transfer_port)
    sender = Sender(config.instance, host, transfer_port)
    generator = Generator(config, model, engine, sender, lambda: links.ready)
    connections: set[HttpConnection] = set()
    routes = Routes(
        config,
        model,
        engine,
        links,
        trust,
        generator,
        int(time.time()),
        lambda: generator.open_replies,
    )
    prompts = frozenset((http.PATH_COMPLETIONS, http.PATH_CHAT))
    kept = min(config.max_body_bytes, generator.body_bytes)
    bounds = ConnectionLimits(config.max_body_bytes, kept, prompts, config.arrival_seconds)
    server = await loop.create_server(
        lambda: HttpConnection(routes, bounds, connections),
        **listening(config.bind, config.port),
        backlog=1024,
    )
    try:
        port = server.sockets[0].getsockname()[1]
        yield StartedInstance(port, transfer_port, engine, links)
        await _drain(engine, generator, config.drain_seconds)
    finally:
        server.close()
        for connection in tuple(connections):
            connection.close()
        links.close()
        await transport.stop()
        generator.close()
        engine.stop()


async def _drain(engine: Engine, generator: Generator, seconds: float) -> None:
    """Refuse new work and let what runs finish, for at most `seconds`."""
    engine.draining = True
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not (engine.executing or len(engine.handoff) or generator.open_replies):
            return
        await asyncio.sleep(0.05)
    log.warning("stopping with %d requests running", engine.executing)


async def serve(config: EngineConfig, model: LoadedModel) -> None:
    """Serve until SIGTERM or SIGINT; a second signal stops at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(config, model) as instance:
        log.info(
            "%s serves %s as %s on %s:%d, KV on port %d%s",
            config.instance,
            config.model_name,
            config.role,
            config.bind,
            instance.port,
            instance.transfer_port,
            f", PACED by {config.paced} x {config.pace_factor:g}" if config.paced else "",
        )
        await stop.wait()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
