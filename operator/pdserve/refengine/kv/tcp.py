"""KV transport over tcp: each pull uses one authenticated connection, which is then reused.

It listens at the pod's address and at those of the instance's devices, connects to peers, and keeps
connections. `sending` and `pulling` are the two ends of a connection, on the event loop (uvloop in
the engine). Timeouts bound every wait; a connection with an error is dropped, never reused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pdserve.http1.listen import listening
from pdserve.http1.stalls import within
from pdserve.refengine.kv.kv_transport import (
    HANDSHAKE_SECONDS,
    Exporter,
    Identity,
    Link,
    PathError,
    PeerAddress,
    PullTimeoutError,
    TransportError,
    WantedKv,
)
from pdserve.refengine.kv.listeners import DeviceListeners
from pdserve.refengine.kv.pulling import PullingEnd
from pdserve.refengine.kv.sending import SendingEnd

IDLE_PER_PEER = 8


class TcpTransport:
    """`Transport` over tcp."""

    def __init__(
        self, me: Identity, exporter: Exporter, timeout: float, frame_blocks: int = 0
    ) -> None:
        """`timeout`: seconds for a pull; `frame_blocks`: blocks in a frame, 0: as is usual."""
        self._frame_blocks = frame_blocks
        self._me, self._exporter, self._timeout = me, exporter, timeout
        self._idle: dict[PeerAddress, list[PullingEnd]] = {}
        self._server: asyncio.Server | None = None
        self._accepted: set[SendingEnd] = set()
        self.listeners = DeviceListeners(self._accept)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, **listening(host, port))
        bound: int = self._server.sockets[0].getsockname()[1]
        self.listeners.beside = (host, bound)
        return bound

    async def verify(self, peer: PeerAddress) -> tuple[str, ...]:
        """Connect and verify both sides, keep the connection for pulls."""
        client = await self._connect(peer)
        self._keep(peer, client)
        return client.devices

    async def link(self, peer: PeerAddress) -> Link:
        """Connect and verify both sides.

        Raises:
            TransportError: the peer cannot be reached, or is not the one that was named.
        """
        return await self._connect(peer)

    async def pull(self, peer: PeerAddress, wanted: WantedKv, landing: Sequence[memoryview]) -> int:
        """Fill `landing` with the KV of a request; returns bytes.

        Raises:
            CorruptKvError: what arrived is not the KV that was asked for.
            PullTimeoutError: it took longer than the transport's limit.
            TransportError: the peer cannot be reached, or refused.
        """
        client = self._reusable(peer)
        try:
            async with within(self._timeout):
                if client is None:
                    client = await self._connect(peer)
                size = await client.pull(wanted, landing)
        except TimeoutError as error:
            raise PullTimeoutError(
                f"KV pull from {peer.id} took longer than {self._timeout:g} s"
            ) from error
        self._keep(peer, client)
        return size

    def keys_changed(self) -> None:
        """Drop kept connections whose key is not the one to use, or not accepted, any more."""
        for peer, clients in self._idle.items():
            fresh = [client for client in clients if client.usable]
            for client in clients:
                if client not in fresh:
                    client.close()
            self._idle[peer] = fresh
        for connection in tuple(self._accepted):
            connection.keys_changed()

    async def stop(self) -> None:
        """Close everything."""
        for clients in self._idle.values():
            for client in clients:
                client.close()
        self._idle.clear()
        for connection in tuple(self._accepted):
            connection.abort()
        self.listeners.stop()
        if self._server is not None:
            self._server.close()

    def _accept(self) -> SendingEnd:
        # The peer gives up its pull after `timeout`; here it has a little longer.
        return SendingEnd(
            self._me, self._exporter, self._accepted, lambda: self.listeners.listening,
            2 * self._timeout,
        )  # fmt: skip

    def _keep(self, peer: PeerAddress, client: PullingEnd) -> None:
        idle = self._idle.setdefault(peer, [])
        if client.usable and len(idle) < IDLE_PER_PEER:
            idle.append(client)
        else:
            client.close()

    def _reusable(self, peer: PeerAddress) -> PullingEnd | None:
        idle = self._idle.get(peer, [])
        while idle:
            client = idle.pop()
            if client.usable:
                return client
        return None

    async def _connect(self, peer: PeerAddress) -> PullingEnd:
        loop = asyncio.get_running_loop()
        try:
            async with within(HANDSHAKE_SECONDS):
                _, client = await loop.create_connection(
                    lambda: PullingEnd(self._me, peer, self._frame_blocks),
                    peer.host,
                    peer.port,
                    local_addr=(peer.source, 0) if peer.source else None,
                )
                try:
                    await client.answer()
                except TransportError:
                    # An unknown process may answer at a device's address: no sign of a wrong key.
                    if not peer.device:
                        self._me.keys.pair_refused(peer.id)
                    raise
                return client
        except TimeoutError as error:
            raise PathError(f"{peer.id}: no handshake in {HANDSHAKE_SECONDS:g} s") from error
        except OSError as error:
            raise PathError(f"{peer.id} at {peer.host}:{peer.port}: {error}") from error
