"""Messages between the leader and another member: a head, a few fields as JSON, and numbers.

    leader -> member                                  member -> leader
    PING                                              PONG
    STEP   {rows: [[start, count, blocks]]}, tables, x   STEPPED  x after the member's layers
    READ   {blocks}                                   BLOCKS   KV of the member's layers there
    WRITE  {blocks}, KV of the member's layers        WRITTEN
                                                      FAILED {why}: the request was refused

`rows` are those of `model.plan.Rows`; `tables` has the blocks of all of them, as int64; x and KV
are float32 in the machine's byte order, which both ends have alike (little-endian CPUs). Each
payload has a CRC-32C. The receiver knows from the fields how large a payload must be and takes no
other. Blocking sockets: the compute thread waits for a member as it waits for a product.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import orjson
from crc32c import crc32c

from pdserve.terms.json import JsonObject

Bytes = npt.NDArray[np.uint8]
HEAD = struct.Struct("!4sBBHIQI")
"""Magic, version, kind, zero, bytes of the fields, bytes of the payload, its checksum."""
VERSION = 1
MAX_FIELDS = 1 << 20
MAX_PAYLOAD = 1 << 30
CHUNK_BYTES = 8 << 20
"""About so many bytes of KV travel in one message."""
_MAGIC = b"PDMB"


class MemberGoneError(RuntimeError):
    """A member cannot be reached, or does not do what was asked; the message says which and why."""


class MemberKind(enum.IntEnum):
    """Kinds of messages."""

    PING = 1
    PONG = 2
    STEP = 3
    STEPPED = 4
    READ = 5
    BLOCKS = 6
    WRITE = 7
    WRITTEN = 8
    FAILED = 9


Sizes = Callable[[MemberKind, JsonObject], int]
"""Bytes of the payload that must follow; MemberGoneError: this message is not expected."""


class MemberStream:
    """One connection, from either end."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        """`peer` names the other end in errors."""
        with contextlib.suppress(OSError):  # it is closed already: the first read says so
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock, self.peer = sock, peer

    def send(
        self,
        kind: MemberKind,
        fields: JsonObject | None = None,
        parts: Sequence[memoryview] = (),
        seconds: float = 30.0,
    ) -> None:
        """Write one message.

        Raises:
            MemberGoneError: the other end does not take it in `seconds`.
        """
        text = orjson.dumps(fields or {})
        crc = 0
        for part in parts:
            crc = crc32c(part, crc)
        size = sum(len(part) for part in parts)
        head = HEAD.pack(_MAGIC, VERSION, kind, 0, len(text), size, crc)
        try:
            self._sock.settimeout(seconds)
            self._sock.sendall(head + text)
            for part in parts:
                self._sock.sendall(part)
        except OSError as error:
            raise MemberGoneError(f"{self.peer}: {error or type(error).__name__}") from error

    def receive(self, sizes: Sizes, seconds: float) -> tuple[MemberKind, JsonObject, Bytes]:
        """The next message, which must come within `seconds`.

        Raises:
            MemberGoneError: it does not come, is malformed, larger than allowed, or corrupt.
        """
        deadline = time.monotonic() + seconds
        head = self.exactly(HEAD.size, deadline)
        magic, version, number, _, length, size, crc = HEAD.unpack(head.tobytes())
        if magic != _MAGIC or version != VERSION:
            raise MemberGoneError(f"{self.peer}: it does not speak pdserve's member protocol")
        if length > MAX_FIELDS or size > MAX_PAYLOAD:
            raise MemberGoneError(f"{self.peer}: a message of {length} and {size} bytes")
        try:
            kind = MemberKind(number)
            fields = orjson.loads(self.exactly(length, deadline).tobytes())
        except ValueError as error:
            raise MemberGoneError(f"{self.peer}: malformed message: {error}") from error
        if not isinstance(fields, dict):
            raise MemberGoneError(f"{self.peer}: malformed message: fields are no object")
        expected = sizes(kind, fields)
        if size != expected:
            raise MemberGoneError(f"{self.peer}: {kind.name} of {size} bytes, {expected} expected")
        payload = self.exactly(size, deadline)
        if crc32c(payload.data) != crc:
            raise MemberGoneError(f"{self.peer}: {kind.name} arrived corrupt")
        return kind, fields, payload

    def exactly(self, size: int, deadline: float) -> Bytes:
        """The next `size` bytes, until `deadline` by `time.monotonic`.

        Raises:
            MemberGoneError: they do not come.
        """
        data = np.empty(size, np.uint8)
        view, have = data.data, 0
        while have < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise MemberGoneError(f"{self.peer}: no answer in time")
            try:
                self._sock.settimeout(left)
                count = self._sock.recv_into(view[have:])
            except OSError as error:
                raise MemberGoneError(f"{self.peer}: {error or type(error).__name__}") from error
            if not count:
                raise MemberGoneError(f"{self.peer}: it closed the connection")
            have += count
        return data

    def write(self, data: bytes) -> None:
        """Write bytes that are no message (of the handshake).

        Raises:
            MemberGoneError: the connection is gone.
        """
        try:
            self._sock.settimeout(3.0)
            self._sock.sendall(data)
        except OSError as error:
            raise MemberGoneError(f"{self.peer}: {error or type(error).__name__}") from error

    def close(self) -> None:
        """End the connection; what waits at either end fails."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
