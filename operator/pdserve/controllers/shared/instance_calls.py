"""Calls an instance answers on its control paths: peer tables, link reports, drains.

Whom to call and when is the linker's (`controllers.shared.linker`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

import aiohttp

from pdserve.desired.service_credentials import (
    BadSecret,
    ServiceCredentials,
    Terms,
    control_tokens,
    grant_of,
)
from pdserve.engines import registry as engine_types
from pdserve.engines.control import ControlRequest, EngineControl
from pdserve.engines.registry import EngineTypeError
from pdserve.kube.errors import KubeError
from pdserve.wire.bounds import MAX_BYTES
from pdserve.wire.links import DrainReport, LinkReport
from pdserve.wire.peers import PeerTable

MOST_REMEMBERED = 16_384
"""Containers whose working token is remembered; forgetting costs a request each."""


@dataclass(frozen=True, slots=True)
class Target:
    """One running instance and what it needs: its leader answers for all of its members. Another
    member, `instance` being its pod's name, is given tables where its engine takes them.

    `table` is the newest peer table, when it names the instance; `poll` asks for link reports
    again and again (something in its group is being linked); `watch` asks now and then; `drain`
    asks it to drain. `terms` are of the grant that goes with the table; None: the instance reads
    none.
    """

    instance: str
    container_id: str
    endpoint: str
    service: str
    engine: str
    """Its engine type."""
    table: PeerTable | None = None
    poll: bool = False
    drain: bool = False
    watch: bool = False
    terms: Terms | None = None
    role: str = ""
    """With another one it is asked and told anew: what was reported is of its former role."""


class EngineApi(Protocol):
    """What an instance answers on its control paths."""

    async def put_peers(self, target: Target, table: PeerTable) -> None:
        """Give it a peer table (a version it already has is fine), and a grant by its terms."""
        ...

    async def get_links(self, target: Target) -> LinkReport:
        """Its link report."""
        ...

    async def post_drain(self, target: Target) -> DrainReport:
        """Start, or ask after, its drain."""
        ...


class EngineError(Exception):
    """An instance did not answer, or not as agreed."""


class HttpEngines:
    """`EngineApi` over HTTP with the service's control credentials."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        credentials: Callable[[str], Awaitable[ServiceCredentials]],
        timeout: float = 2.0,
    ) -> None:
        """`credentials` gives those of a service key `namespace/name`; `timeout` in seconds."""
        self._session = session
        self._credentials = credentials
        self._works: dict[str, str] = {}
        """The token that a container last took, by container id."""
        self._timeout = aiohttp.ClientTimeout(total=timeout)

    async def put_peers(self, target: Target, table: PeerTable) -> None:
        """See EngineApi. An instance that holds a newer table keeps it: its report says so."""
        control = _control(target)
        body = table.to_json()
        if target.terms is not None:
            held = await self._held(target, "PUT peers")
            namespace = target.service.partition("/")[0]
            grant = grant_of(held, namespace, target.instance, table, target.terms)
            body["credentials"] = grant.to_json()
        await self._call(target, control.put_peers(body))

    async def get_links(self, target: Target) -> LinkReport:
        """See EngineApi."""
        control = _control(target)
        return control.read_links(await self._call(target, control.get_links()))

    async def post_drain(self, target: Target) -> DrainReport:
        """See EngineApi."""
        control = _control(target)
        return control.read_drain(await self._call(target, control.post_drain()))

    async def _call(self, target: Target, request: ControlRequest) -> bytes:
        what = f"{request.method} {request.path}"
        held = await self._held(target, what)
        known = self._works.get(target.container_id)
        tokens = control_tokens(held, target.service.partition("/")[0], target.instance)
        answer = None
        for token in sorted(tokens, key=lambda t: t != known):
            answer = await self._ask(target, request, token)
            if answer[0] != HTTPStatus.UNAUTHORIZED:
                self._remember(target.container_id, token)
                break
        status, raw = answer or (HTTPStatus.UNAUTHORIZED, b"")
        if status not in request.accepts:
            raise EngineError(f"{what}: HTTP {status}: {raw[:200].decode('utf-8', 'replace')}")
        return raw

    async def _held(self, target: Target, what: str) -> ServiceCredentials:
        try:
            return await self._credentials(target.service)
        except (KubeError, BadSecret) as error:
            # The service may be on its way out, its Secret first.
            raise EngineError(f"{what}: no credentials: {error}") from error

    def _remember(self, container_id: str, token: str) -> None:
        if len(self._works) >= MOST_REMEMBERED:
            self._works.clear()
        self._works[container_id] = token

    async def _ask(self, target: Target, request: ControlRequest, token: str) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}
        sent = self._session.request(
            request.method, target.endpoint + request.path, json=request.body, headers=headers,
            timeout=self._timeout, allow_redirects=False, auto_decompress=False,
        )  # fmt: skip
        try:
            async with sent as reply:
                return reply.status, await _bounded(reply)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            what = f"{request.method} {request.path}"
            raise EngineError(f"{what}: {type(error).__name__}: {error}") from error


def _control(target: Target) -> EngineControl:
    try:
        return engine_types.control(target.engine)
    except EngineTypeError as error:
        raise EngineError(str(error)) from error


async def _bounded(reply: aiohttp.ClientResponse) -> bytes:
    """At most one byte more than an answer may have; its charset and type do not matter.

    Raises ValueError for a body in another encoding than was asked for.
    """
    encoding = reply.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ValueError(f"the answer is encoded as {encoding[:40]!r}, and nothing was accepted")
    body = b""
    while len(body) <= MAX_BYTES and (part := await reply.content.read(MAX_BYTES + 1 - len(body))):
        body += part
    return body
