"""One engine process: load, wire everything together, listen, drain on SIGTERM, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from pdserve.engines.prefix_feed import PrefixFeed
from pdserve.engines.trust import Trust
from pdserve.http1.limits import ClientLimits
from pdserve.http1.server import HttpServer
from pdserve.refengine.api.generate import Generator
from pdserve.refengine.api.handlers import Routes
from pdserve.refengine.api.handover import Sender
from pdserve.refengine.config import EngineConfig
from pdserve.refengine.following import following
from pdserve.refengine.kv.kv_transport import Identity
from pdserve.refengine.kv.paths import KvPaths
from pdserve.refengine.kv.tcp import TcpTransport
from pdserve.refengine.leading import Leading
from pdserve.refengine.metrics import EngineMetrics
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.peer_links import Links
from pdserve.refengine.runtime.engine import Engine
from pdserve.refengine.runtime.pacing import Pacer, load_profile
from pdserve.terms import Role
from pdserve.wire import calls
from pdserve.wire.peers import PeerTable

MAX_HEAD = 64 << 10
MAX_WAITING = 64
"""Complete requests of one connection that may wait for the answer to the one before them."""
UNBOUNDED = 1 << 62
"""Bytes of all bodies."""
CLOSE_SECONDS = 1.0
"""How long a connection may take to send the last of its answer when the process ends."""
_PROMPTS = (calls.PATH_COMPLETIONS, calls.PATH_CHAT)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StartedInstance:
    """A started instance: where it listens, and its parts for tests and benches."""

    port: int
    transfer_port: int
    engine: Engine
    links: Links
    flip: asyncio.Future[tuple[Role, PeerTable]]
    """The role that it is to take, and the table that says so; the block is then to end."""


@contextlib.asynccontextmanager
async def running(
    config: EngineConfig, model: LoadedModel, former: PeerTable | None = None
) -> AsyncIterator[StartedInstance]:
    """Listen and serve inside the `async with` block; `former`: the table that made it flip."""
    loop = asyncio.get_running_loop()
    pacer = Pacer(load_profile(config.paced), config.pace_factor) if config.paced else None
    metrics = EngineMetrics(config.model_name, paced=pacer is not None)
    trust = Trust(config.token, config.control, config.request, config.kv_key)
    leading = Leading(config, model, trust) if config.members > 1 else None
    model = model if leading is None else leading.model
    engine = Engine(config, model, metrics, pacer, loop)
    host = config.advertise or config.bind
    links = Links(config.instance, config.role, model.numerics, host, former)
    if leading is None:
        engine.warm_up()
    else:
        leading.attach(engine, links)
    identity = Identity(config.instance, trust, model.fingerprint, model.numerics)
    transport = TcpTransport(identity, engine.handoff, config.transfer_timeout)
    trust.changed = transport.keys_changed
    transport.listeners.changed = metrics.device_addresses
    links.transport = transport
    links.paths = KvPaths(
        transport, transport.listeners, config.role == "decode",
        metrics.kv_pulled, metrics.kv_corrupt,
    )  # fmt: skip
    engine.pull_from(links.paths)
    engine.handoff.admits_peer = links.admits
    transfer_port = 0
    if config.role != "both":
        transfer_port = await transport.start(config.bind, config.transfer_port)
    sender = Sender(config.instance, host, transfer_port)
    generator = Generator(config, model, engine, sender, lambda: links.ready)
    flip: asyncio.Future[tuple[Role, PeerTable]] = loop.create_future()
    feed = PrefixFeed(engine.cached)
    routes = Routes(
        config, model, engine, links, trust, generator, int(time.time()),
        lambda: generator.open_replies, feed,
        lambda role, table: None if flip.done() else flip.set_result((role, table)),
    )  # fmt: skip
    kept = dict.fromkeys(_PROMPTS, min(config.max_body_bytes, generator.body_bytes))
    server = HttpServer(
        routes, _limits(config), _report, keeps=lambda path: kept.get(path, config.max_body_bytes)
    )
    try:
        port = await server.start(config.bind, config.port)
        yield StartedInstance(port, transfer_port, engine, links, flip)
        await _drain(engine, generator, config.drain_seconds)
    finally:
        feed.close()
        await server.stop(CLOSE_SECONDS)
        links.close()
        await transport.stop()
        generator.close()
        engine.stop()


def _limits(config: EngineConfig) -> ClientLimits:
    """A slot bounds what runs, so bodies are bounded by connection alone; gateways keep theirs."""
    seconds = config.arrival_seconds
    return ClientLimits(
        body=config.max_body_bytes,
        head=MAX_HEAD,
        receive=seconds,
        idle=math.inf,
        write_stall=seconds,
        tells_late=True,
        pipelined=MAX_WAITING,
        waiting=config.max_body_bytes,
        memory=UNBOUNDED,
        sweep=min(1.0, seconds / 4),
    )


def _report(error: Exception) -> None:
    log.error("A request failed", exc_info=error)


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
    if config.member > 0:
        async with following(config, model, _limits(config)) as port:
            log.info(
                "member %d of %d of %s computes layers %s on port %d",
                config.member, config.members, config.instance, model.share, port,
            )  # fmt: skip
            await stop.wait()
            _second_signal_ends()
        return
    former: PeerTable | None = None
    while not stop.is_set():
        config, former = await _serve_role(config, model, stop, former)


async def _serve_role(
    config: EngineConfig, model: LoadedModel, stop: asyncio.Event, former: PeerTable | None
) -> tuple[EngineConfig, PeerTable | None]:
    """Serve in one role, until `stop` or a flip; returns what to go on with."""
    stopping = asyncio.ensure_future(stop.wait())
    async with running(config, model, former) as instance:
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
        either: set[asyncio.Future[Any]] = {stopping, instance.flip}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set() or not instance.flip.done():
            _second_signal_ends()
            return config, former
        role, former = instance.flip.result()
        config = config.in_role(role, instance.port, instance.transfer_port)
    stopping.cancel()
    return config, former


def _second_signal_ends() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
