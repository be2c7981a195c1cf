"""Bytes of one transport connection: frames go to a callback, payloads straight into memory.

`BufferedProtocol` lets the kernel copy into the KV blocks themselves. The checksum of each piece is
computed while the piece is still in the CPU's cache, so a piece is at most `WINDOW` bytes.
"""

from __future__ import annotations

import asyncio
import socket
import zlib
from collections.abc import Sequence
from typing import cast

from pdserve.refengine.kv import integrity, protocol
from pdserve.refengine.kv.integrity import KvIdentity
from pdserve.refengine.kv.kv_transport import CorruptKvError, TransportError
from pdserve.terms.json import JsonObject

WINDOW = 256 << 10


class Landing:
    """Consecutive writable buffers that a payload fills."""

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._buffers = list(buffers)
        self._index = self._offset = 0
        self._missing = sum(map(len, buffers))

    @property
    def complete(self) -> bool:
        """Whether all has arrived and was checked."""
        return not self._missing

    def buffer(self) -> memoryview:
        """Where the next bytes go."""
        return self._next(WINDOW)

    def advance(self, count: int) -> None:
        """Note that `count` bytes were written into `buffer()`.

        Raises:
            CorruptKvError: they are not what was sent, or not what was asked for.
        """
        raise NotImplementedError

    def fill(self, data: memoryview) -> int:
        """Copy bytes that came together with a frame; returns how many were used.

        Raises:
            CorruptKvError: as `advance`.
        """
        used = 0
        while not self.complete and used < len(data):
            target = self.buffer()
            count = min(len(target), len(data) - used)
            target[:count] = data[used : used + count]
            self.advance(count)
            used += count
        return used

    def _next(self, most: int) -> memoryview:
        return self._buffers[self._index][self._offset : self._offset + most]

    def _take(self, count: int) -> memoryview:
        """The `count` bytes that were just written."""
        view = self._buffers[self._index]
        piece = view[self._offset : self._offset + count]
        self._missing -= count
        self._offset += count
        if self._offset == len(view):
            self._index, self._offset = self._index + 1, 0
        return piece


class WholeLanding(Landing):
    """A payload with one CRC-32 of all its bytes, as engines of older versions send it."""

    def __init__(self, buffers: Sequence[memoryview], announced: object) -> None:
        """`announced`: the CRC-32 that the peer sent."""
        super().__init__(buffers)
        self._announced, self._crc = announced, 0

    def advance(self, count: int) -> None:
        """Note that `count` bytes were written into `buffer()`.

        Raises:
            CorruptKvError: they are not what was sent.
        """
        self._crc = zlib.crc32(self._take(count), self._crc)
        if self.complete and self._crc != self._announced:
            raise CorruptKvError(
                f"KV payload is corrupt: CRC {self._crc}, announced {self._announced}"
            )


class CheckedLanding(Landing):
    """A payload in frames, each with its head (`integrity`)."""

    def __init__(
        self,
        buffers: Sequence[memoryview],
        identity: KvIdentity,
        frames: Sequence[tuple[int, int]],
    ) -> None:
        """`frames`: first block and number of blocks of each, in the order in which they come."""
        super().__init__(buffers)
        self._identity, self._frames = identity, iter(frames)
        self._head = bytearray(integrity.HEAD.size)
        self._frame = (0, 0)
        self._crc = self._frame_missing = self._head_missing = 0
        self._begin(next(self._frames))

    def buffer(self) -> memoryview:
        """Where the next bytes go."""
        if self._head_missing:
            return memoryview(self._head)[-self._head_missing :]
        return self._next(min(WINDOW, self._frame_missing))

    def advance(self, count: int) -> None:
        """Note that `count` bytes were written into `buffer()`."""
        if self._head_missing:
            self._head_missing -= count
            return
        self._crc = integrity.checksum(self._take(count), self._crc)
        self._frame_missing -= count
        if self._frame_missing:
            return
        self._identity.check(self._head, self._crc, *self._frame)
        following = next(self._frames, None)
        if following is not None:
            self._begin(following)

    def _begin(self, frame: tuple[int, int]) -> None:
        self._frame, self._crc = frame, 0
        self._frame_missing = frame[1] * self._identity.block_bytes
        self._head_missing = len(self._head)


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

    def landed(self) -> None:
        """A payload is complete, and checked."""
        raise NotImplementedError

    def closed(self, reason: str, error: TransportError | None = None) -> None:
        """The connection is gone; `error`: because of what arrived."""
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
            self.closed(str(error), error)
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
        if landing is not None and landing.complete:
            self._landing = None
            self.landed()
