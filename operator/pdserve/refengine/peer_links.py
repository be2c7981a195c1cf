"""Peer table and the links to every peer of the other role.

The operator pushes tables; versions only rise. For each peer in a table, one task connects to the
peer's pod, verifies both sides, and then keeps the connection to notice its loss; after a failure
it tries again with growing pauses. `kv.paths` gets each table from here and decides which address
KV is pulled from. An instance becomes ready when all links of a table are up. It stays ready while
the links of a newer table are made, because its old links still work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from pdserve.engines.instance_answers import check_age, checked_entry
from pdserve.refengine.kv.device_addresses import usable_addresses
from pdserve.refengine.kv.kv_transport import KvTransport, PeerAddress, TransportError
from pdserve.refengine.kv.paths import KvPaths, PeerDevices
from pdserve.refengine.members.links import MemberLinks
from pdserve.wire.links import LinkReport
from pdserve.wire.peers import Peer, PeerTable

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0

log = logging.getLogger(__name__)


class Links:
    """State of this instance in its P/D group."""

    def __init__(
        self, instance: str, role: str, numerics: str, host: str, former: PeerTable | None = None
    ) -> None:
        """`host`: where peers reach this instance's pod; `former`: the table that made it flip."""
        self._former = former
        self._me, self._role, self._numerics, self._host = instance, role, numerics, host
        self._table: PeerTable | None = None
        self._tasks: dict[PeerAddress, asyncio.Task[None]] = {}
        self._down: dict[str, str] = {}
        self.transport: KvTransport | None = None
        self.paths: KvPaths | None = None
        self.members: MemberLinks | None = None
        """The other members of this instance, whose leader this is; None: there are none."""
        self.members_missing: Callable[[], str | None] = lambda: None
        """Which of them are not there; None: none."""
        self.closing: Callable[[], None] = lambda: None
        """Gives the members up with the links."""
        self._linked = role == "both"

    @property
    def ready(self) -> bool:
        """All links of a table were up once, and every member of the instance is there."""
        return self._linked and self.members_missing() is None

    def accept(self, table: PeerTable) -> None:
        """Take a table over.

        Raises:
            StaleTableError: 409, the table is older, or another one of the present version.
            ApiError: 422, the table does not name this instance in its role, or not its members.
        """
        me = checked_entry(table, self._table or self._former, self._me, self._role)
        others = [] if self.members is None else self.members.addresses(me)
        if table != self._table:
            self._switch(table, me)
            if self.members is not None:
                self.members.switch(others)

    @property
    def told(self) -> bool:
        """Whether it took over a table in this role."""
        return self._table is not None

    def check_age(self, table: PeerTable) -> None:
        """Check that a table is not older than what this process has, in either role.

        Raises:
            StaleTableError: 409, it is older, or another one of the present version.
        """
        check_age(table, self._table or self._former)

    def report(self) -> LinkReport:
        """What the operator asks for."""
        if self._table is None:
            return LinkReport(0, frozenset(), {})
        peers = {p.id for p in self._table.opposite(self._me)}
        up, now = frozenset(peers - set(self._down)), asyncio.get_running_loop().time()
        seen = {} if self.paths is None else self.paths.recent.report(now)
        seen = {peer: counts for peer, counts in seen.items() if peer in peers}
        return LinkReport(
            self._table.version,
            up,
            dict(self._down),
            pulls={peer: pulls for peer, (pulls, _) in seen.items()},
            corrupt={peer: bad for peer, (_, bad) in seen.items() if bad},
        )

    def admits(self, peer: str) -> str | None:
        """None when `peer` may link to this instance, else why not."""
        if self._opposite(peer) is not None:
            return None
        version = 0 if self._table is None else self._table.version
        return f"{peer!r} is not a peer of {self._me} in table version {version}"

    def close(self) -> None:
        """Drop all links."""
        self.closing()
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        if self.paths is not None:
            self.paths.close()

    def _opposite(self, peer: str) -> Peer | None:
        peers = self._table.opposite(self._me) if self._table else ()
        return next((p for p in peers if p.id == peer), None)

    def _switch(self, table: PeerTable, me: Peer) -> None:
        self._table = table
        wanted: dict[PeerAddress, str] = {}
        devices: dict[PeerAddress, PeerDevices] = {}
        down: dict[str, str] = {}
        for peer in table.opposite(self._me):
            try:
                address = PeerAddress.parse(peer.id, peer.transfer)
            except TransportError as error:
                down[peer.id] = str(error)
                continue
            wanted[address] = peer.id
            devices[address] = _devices(peer, address.host)
        if self.paths is not None:
            self.paths.switch(_devices(me, self._host).addresses, devices)
        for address in [a for a in self._tasks if a not in wanted]:
            self._tasks.pop(address).cancel()
        for address, peer_id in wanted.items():
            if address in self._tasks:
                if peer_id in self._down:
                    down[peer_id] = self._down[peer_id]
                continue
            down[peer_id] = "not verified yet"
            self._tasks[address] = asyncio.create_task(self._keep(address))
        self._down = down
        self._check_ready()

    async def _keep(self, address: PeerAddress) -> None:
        pause = FIRST_PAUSE
        while self.transport is not None:
            try:
                link = await self.transport.link(address)
            except TransportError as error:
                self._down[address.id] = str(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            if link.numerics != self._numerics:
                log.warning(
                    "%s computes other bits (CPU type, --arithmetic): not exact", address.id
                )
            self._down.pop(address.id, None)
            self._check_ready()
            try:
                self._down[address.id] = await link.lost()
            finally:
                link.close()
            log.info("link to %s lost: %s", address.id, self._down[address.id])
            await asyncio.sleep(pause)

    def _check_ready(self) -> None:
        if self._table is not None and not self._down:
            self._linked = True


def _devices(peer: Peer, host: str) -> PeerDevices:
    """Of its first member, whose pod listens at `host`: the reference engine has no other."""
    devices = peer.nodes[0].devices if peer.nodes else ()
    return PeerDevices(usable_addresses(devices, host), any(d.ip for d in devices))
