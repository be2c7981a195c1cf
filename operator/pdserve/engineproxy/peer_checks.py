"""Peer table of an engine behind a proxy, and the links to every peer of the other role.

A link is verified when the peer's own proxy answers under the name and role of the table and has
its engine loaded; a decode also connects to the address at which the prefill's engine hands KV
over. It is checked again every `AGAIN` seconds. An instance is ready once the links of some table
were complete; a newer table being linked does not unready it.

Proxies of one group tell each other two things: a decode that KV was pulled, a prefill that KV will
not be. Each message carries a token made of the pair's key for this sender and receiver.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import orjson

from pdserve.engineproxy.engine_access import get
from pdserve.engines.instance_answers import checked_entry
from pdserve.engines.trust import Trust
from pdserve.http1.connect import connected
from pdserve.http1.listener import UpstreamError
from pdserve.http1.pool import Pool
from pdserve.terms import Role
from pdserve.terms.json import JsonMap
from pdserve.wire import calls
from pdserve.wire.bounds import WireError, parse_json
from pdserve.wire.credentials import proxy_token
from pdserve.wire.links import LinkReport
from pdserve.wire.peers import Peer, PeerTable

PATH_PULLED: Final = "/pdserve/v1/peer/pulled"
PATH_DISCARD: Final = "/pdserve/v1/peer/discard"
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
AGAIN: Final = 5.0
CHECK_SECONDS: Final = 3.0
CALL_SECONDS: Final = 5.0
MAX_INFO: Final = 64 << 10

log = logging.getLogger(__name__)


class UnlinkedError(Exception):
    """A link cannot be verified; the message says why."""


@dataclass(frozen=True, slots=True)
class _Link:
    """What a link to one peer depends on."""

    id: str
    role: Role
    endpoint: str
    transfer: str


class PeerChecks:
    """State of this instance in its P/D group."""

    def __init__(self, instance: str, role: Role, trust: Trust) -> None:
        """`instance`: its name in tables."""
        self._me, self._role, self._trust = instance, role, trust
        self._table: PeerTable | None = None
        self._tasks: dict[_Link, asyncio.Task[None]] = {}
        self._down: dict[str, str] = {}
        self._pool = Pool()
        self.linked = False
        """Whether the links of some table were complete once."""

    def accept(self, table: PeerTable) -> None:
        """Take a table over.

        Raises:
            ApiError: as `checked_entry` does.
        """
        checked_entry(table, self._table, self._me, self._role)
        if table == self._table:
            return
        self._table = table
        wanted = {_Link(p.id, p.role, p.endpoint, p.transfer) for p in table.opposite(self._me)}
        for link in [known for known in self._tasks if known not in wanted]:
            self._tasks.pop(link).cancel()
        down = {}
        for link in wanted:
            if link not in self._tasks:
                down[link.id] = "not verified yet"
                self._tasks[link] = asyncio.create_task(self._keep(link))
            elif link.id in self._down:
                down[link.id] = self._down[link.id]
        self._down = down
        self._pool.keep_only({link.endpoint for link in wanted})
        self._check_linked()

    def report(self) -> LinkReport:
        """What the operator asks for."""
        if self._table is None:
            return LinkReport(0, frozenset(), {})
        peers = {p.id for p in self._table.opposite(self._me)}
        return LinkReport(self._table.version, frozenset(peers - set(self._down)), dict(self._down))

    def opposite(self) -> tuple[Peer, ...]:
        """Peers of the other role, those with a verified link first."""
        peers = self._table.opposite(self._me) if self._table is not None else ()
        return tuple(sorted(peers, key=lambda p: (p.id in self._down, p.id)))

    def handing_over_at(self, host: object, port: object) -> Peer | None:
        """The peer whose engine hands KV over at this address; None where the table has none."""
        given = _plain(host, port)
        for peer in self.opposite():
            with contextlib.suppress(ValueError):
                if _split(peer.transfer) == given:
                    return peer
        return None

    async def tell(self, peer: Peer, path: str, message: JsonMap) -> bool:
        """Send a message to a peer's proxy; False where it did not take it."""
        proof = self._trust.proof_to(peer.id)
        if proof is None:
            return False
        token = proxy_token(proof.key, self._me, peer.id)
        headers = ((b"authorization", f"Bearer {token}".encode()),)
        body = orjson.dumps({**message, "from": self._me})
        try:
            exchange = await self._pool.post(peer.endpoint, path, body, headers, CALL_SECONDS)
        except UpstreamError as error:
            log.warning("%s does not take %s: %s", peer.id, path, error)
            return False
        try:
            await exchange.read(CALL_SECONDS)
        except UpstreamError:
            return False
        finally:
            self._pool.done(peer.endpoint, exchange)
        return exchange.status == 204

    def sender(self, authorization: str, message: JsonMap) -> Peer | None:
        """The peer that sent a message; None where nothing proves that one did."""
        name = message.get("from")
        peer = next((p for p in self.opposite() if p.id == name), None)
        return peer if peer is not None and self._proves(peer, authorization) else None

    def any_sender(self, authorization: str) -> bool:
        """Whether a message with this header comes from any peer; `sender` says from which."""
        return any(self._proves(peer, authorization) for peer in self.opposite())

    def close(self) -> None:
        """End all checks."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._pool.close()

    def _proves(self, peer: Peer, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        known = (proxy_token(p.key, peer.id, self._me) for p in self._trust.proofs_from(peer.id))
        same = [hmac.compare_digest(token.encode(), given.strip().encode()) for token in known]
        return scheme.lower() == "bearer" and any(same)

    async def _keep(self, link: _Link) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await self._verify(link)
            except UnlinkedError as error:
                self._down[link.id] = str(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            self._down.pop(link.id, None)
            self._check_linked()
            await asyncio.sleep(AGAIN)

    async def _verify(self, link: _Link) -> None:
        """Check one link; raises UnlinkedError."""
        try:
            status, raw = await get(link.endpoint, calls.PATH_INFO, CHECK_SECONDS, MAX_INFO)
            info = parse_json(raw) if status == 200 else None
            if self._role == "decode":
                host, port = _split(link.transfer)
                (await connected(host, port, CHECK_SECONDS)).abort()
        except (UpstreamError, WireError, ValueError) as error:
            raise UnlinkedError(str(error)) from error
        if not isinstance(info, dict):
            raise UnlinkedError(f"{link.endpoint}{calls.PATH_INFO} answers {status}, no object")
        found = info.get("instance"), info.get("role")
        if found != (link.id, link.role):
            raise UnlinkedError(f"at its address answers {found[1]!r:.80} {found[0]!r:.80}")
        if info.get("loaded") is not True:
            raise UnlinkedError("its engine is not up")

    def _check_linked(self) -> None:
        if self._table is not None and not self._down:
            self.linked = True


def _split(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; raises ValueError."""
    parts = urlsplit(f"//{address}")
    host, port = parts.hostname or "", parts.port
    if not host or port is None:
        raise ValueError(f"{address!r} is no host:port")
    return _plain(host, port)


def _plain(host: object, port: object) -> tuple[str, int]:
    """An address in one spelling; an impossible one where a part has another type."""
    if not isinstance(host, str) or type(port) is not int:
        return "", 0
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host.strip("[]"))), port
    return host.lower(), port
