"""Bytes of one transport connection: frames go to a callback, payloads straight into memory.

`BufferedProtocol` lets the kernel copy into the KV blocks themselves. The checksum of each piece is
computed while the piece is still in the CPU's cache.
"""

from __future__ import annotations

import asyncio
import socket
import zlib
from collections.abc import Sequence
from typing import cast

from pdserve.refengine.kv import protocol
from pdserve.refengine.kv.kv_transport import TransportError
from pdserve.terms.json import JsonObject


class Landing:
    """Consecutive writable buffers that a payload fills; counts and checksums what arrived.

    Raises:
        TransportError: the payload of `size` bytes does not fill the buffers exactly.
    """

    def __init__(self, buffers: Sequence[memoryview], size: int) -> None:
        if sum(len(b) for b in buffers) != size:
            raise TransportError(
                f"KV payload of {size} bytes for {sum(len(b) for b in buffers)} bytes of blocks"
            )
        self._buffers = list(buffers)
        self._index = self._offset = 0
        self.missing = size
        self.checksum = 0

    def buffer(self) -> memoryview:
        """Where the next bytes go."""
        return self._buffers[self._index][self._offset :]

    def advance(self, count: int) -> None:
        """Note that `count` bytes were written into `buffer()`."""
        begin = self._offset
        self._offset += count
        view = self._buffers[self._index]
        self.checksum = zlib.crc32(view[begin : self._offset], self.checksum)
        self.missing -= count
        if self._offset == len(view):
            self._index, self._offset = self._index + 1, 0

    def fill(self, data: memoryview) -> int:
        """Copy bytes that came together with a frame; returns how many were used."""
        used = 0
        while self.missing and used < len(data):
            target = self.buffer()
            count = min(len(target), len(data) - used)
            target[:count] = data[used : used + count]
            self.advance(count)
            used += count
        return used


class FrameConnection(asyncio.BufferedProtocol):
    """Base of both ends: subclasses get `frame`, `landed` and `closed` calls."""

    def __init__(self) -> None:
        self._scratch = bytearray(4 * protocol.MAX_FRAME)
        self._have = 0
        self._landing: Landing | None = None
        self.transport: asyncio.Transport | None = None

    def frame(self, kind: protocol.FrameKind, body: JsonObject) -> None:
        """A frame arrived; TransportError closes the connection."""
        raise NotImplementedError

    def landed(self, landing: Landing) -> None:
        """A payload is complete (not yet checked)."""
        raise NotImplementedError

    def closed(self, reason: str) -> None:
        """The connection is gone."""
        raise NotImplementedError

    def send(self, kind: protocol.FrameKind, body: JsonObject | None = None) -> None:
        """Write one frame; nothing when the connection is gone."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(protocol.encode(kind, body))

    def abort(self) -> None:
        """Drop the connection at once; no byte is written into landing buffers after this."""
        self._landing = None
        if self.transport is not None:
            self.transport.abort()

    def expect(self, landing: Landing) -> None:
        """The next bytes are a payload."""
        self._landing = landing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport = cast(asyncio.Transport, transport)
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._landing = None
        self.closed(str(exc) if exc else "connection closed")

    def get_buffer(self, sizehint: int) -> memoryview:
        """Called by the event loop."""
        if self._landing is not None:
            return self._landing.buffer()
        return memoryview(self._scratch)[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the event loop."""
        try:
            if self._landing is not None:
                self._landing.advance(nbytes)
                self._check_landing()
            else:
                self._have += nbytes
                self._parse()
        except TransportError as error:
            self.closed(str(error))
            self.abort()

    def _parse(self) -> None:
        data, at = memoryview(self._scratch)[: self._have], 0
        while at < len(data):
            if self._landing is not None:
                at += self._landing.fill(data[at:])
                self._check_landing()
                continue
            found = protocol.decode(data[at:])
            if found is None:
                break
            kind, body, size = found
            at += size
            self.frame(kind, body)
        rest = bytes(data[at:])
        self._scratch[: len(rest)] = rest
        self._have = len(rest)

    def _check_landing(self) -> None:
        landing = self._landing
        if landing is not None and not landing.missing:
            self._landing = None
            self.landed(landing)
