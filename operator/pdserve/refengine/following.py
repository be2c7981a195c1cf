"""A member that is not the leader, as a process: its layers, and what the operator asks of it.

It answers no request of clients. Ready means that the leader is connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import orjson

from pdserve import __version__
from pdserve.engines.instance_answers import StaleTableError, checked_entry
from pdserve.engines.trust import Trust
from pdserve.exposition import CONTENT_TYPE, Registry
from pdserve.exposition.process_metrics import tell_process
from pdserve.http1.errors import ApiError
from pdserve.http1.limits import ClientLimits
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.http1.server import HttpServer
from pdserve.refengine.config import EngineConfig
from pdserve.refengine.leading import member_identity
from pdserve.refengine.members.worker import MemberWorker
from pdserve.refengine.model.loader import LoadedModel
from pdserve.wire import calls
from pdserve.wire.bounds import WireError, parse_json
from pdserve.wire.credentials import CAPABILITY, MAX_PUSH, Grant
from pdserve.wire.links import DrainReport, LinkReport
from pdserve.wire.peers import PeerTable

JSON = "application/json"
CLOSE_SECONDS = 1.0
Handler = Callable[[HttpRequest, Reply], None]

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def following(
    config: EngineConfig, model: LoadedModel, limits: ClientLimits
) -> AsyncIterator[int]:
    """Listen and compute for the leader inside the `async with` block; gives the port for it."""
    assert model.staged is not None and model.share is not None  # noqa: S101 - `config` sees to it
    trust = Trust(config.token, config.control, config.request, config.kv_key)
    worker = MemberWorker(
        member_identity(config, model), model.staged, model.config, model.share,
        trust.member_proofs,
    )  # fmt: skip
    routes = MemberRoutes(config, model, worker, trust)
    server = HttpServer(routes, limits, lambda e: log.error("A request failed", exc_info=e))
    transfer_port = worker.start(config.bind, config.transfer_port)
    try:
        await server.start(config.bind, config.port)
        yield transfer_port
        await _while_leader_there(worker, config.drain_seconds)
    finally:
        await server.stop(CLOSE_SECONDS)
        worker.stop()


async def _while_leader_there(worker: MemberWorker, seconds: float) -> None:
    """The leader drains meanwhile: its last requests need this member."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while worker.leader_there:  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.05)


class MemberRoutes:
    """What such a process answers over HTTP: probes, metrics, and the operator's control paths."""

    def __init__(
        self, config: EngineConfig, model: LoadedModel, worker: MemberWorker, trust: Trust
    ) -> None:
        self._config, self._model, self._worker, self._trust = config, model, worker, trust
        self._peers: PeerTable | None = None
        self._registry = Registry()
        tell_process(self._registry, "engine", __version__)
        self._handlers: dict[tuple[str, str], Handler] = {
            ("GET", calls.PATH_HEALTH): lambda _request, reply: _send(reply, 200, {"status": "ok"}),
            ("GET", calls.PATH_READY): self._ready,
            ("GET", calls.PATH_METRICS): self._metrics,
            ("GET", calls.PATH_INFO): self._info,
            ("PUT", calls.PATH_PEERS): self._put_peers,
            ("GET", calls.PATH_LINKS): self._get_links,
            ("POST", calls.PATH_DRAIN): self._drain,
        }

    def __call__(self, request: HttpRequest, reply: Reply) -> None:
        """Answer one request; ApiError becomes its reply."""
        method = "GET" if request.method == "HEAD" else request.method
        handler = self._handlers.get((method, request.path))
        if handler is None:
            leader = self._config.instance
            raise ApiError(404, f"requests are answered by {leader}, not by its member")
        handler(request, reply)

    def _ready(self, _request: HttpRequest, reply: Reply) -> None:
        ready = self._worker.leader_there
        why = "" if ready else "the leader is not connected"
        _send(reply, 200 if ready else 503, {"ready": ready, "why": why})

    def _metrics(self, _request: HttpRequest, reply: Reply) -> None:
        reply.send(200, self._registry.render().encode(), CONTENT_TYPE)

    def _info(self, _request: HttpRequest, reply: Reply) -> None:
        share = self._model.share
        _send(reply, 200, {
            "version": __version__, "instance": self._config.instance, "role": self._config.role,
            "member": self._config.member, "members": self._config.members,
            "layers": None if share is None else [share.first, share.end],
            "steps": self._worker.steps, "fingerprint": self._model.fingerprint,
            "numerics": self._model.numerics, "ready": self._worker.leader_there,
        })  # fmt: skip

    def _put_peers(self, request: HttpRequest, reply: Reply) -> None:
        sender = self._trust.controls(request.header("authorization") or "")
        try:
            value = parse_json(request.body, max_bytes=MAX_PUSH)
            table = PeerTable.from_json(value)
            given = value.get("credentials")
            grant = None if given is None else Grant.from_json(given)
        except WireError as error:
            raise ApiError(400, str(error), code="bad_table") from error
        self._trust.take(grant, sender)
        try:
            checked_entry(table, self._peers, self._config.instance, self._config.role)
        except StaleTableError as error:
            _send(reply, 409, {"version": error.current} | error.value())
            return
        self._peers = table
        _send(reply, 200, {"version": table.version})

    def _get_links(self, request: HttpRequest, reply: Reply) -> None:
        self._trust.controls(request.header("authorization") or "")
        version = 0 if self._peers is None else self._peers.version
        report = LinkReport(version, frozenset(), {}, CAPABILITY, self._trust.revision)
        _send(reply, 200, report.to_json())

    def _drain(self, request: HttpRequest, reply: Reply) -> None:
        self._trust.controls(request.header("authorization") or "")
        _send(reply, 200, DrainReport(0, 0, 0).to_json())


def _send(reply: Reply, status: int, value: object) -> None:
    reply.send(status, orjson.dumps(value), JSON)
