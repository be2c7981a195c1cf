"""Checksums of KV frames: they cover the bytes, and what these bytes are and where they belong.

A frame is one head and the bytes of consecutive blocks. Its checksum is CRC-32C over the bytes,
then over the identity that the receiver asked for: request, generation, model, layout, and the
blocks of this frame. Identity is never read from the head, so a frame that was changed, cut,
swapped with another one, or made for an earlier request of the same name does not match.

CRC-32C and not CRC-32: CPUs have an instruction for it (SSE 4.2, ARMv8), by which the check of a
piece takes a fraction of the time of its copy. CRC finds faults, not forgery: peers are
authenticated in the handshake.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass, field

from crc32c import crc32c

from pdserve.refengine.kv.kv_transport import CorruptKvError

HEAD = struct.Struct("!4sIII")
"""Of a frame: magic, first block, number of blocks, checksum."""
_MAGIC = b"PDKF"
_IDENTITY = struct.Struct("!QIQII")
_BLOCKS = struct.Struct("!II")
MAX_GENERATION = (1 << 53) - 1
"""Any JSON parser keeps such a number as it is."""
FRAME_BYTES = 4 << 20
"""About so many bytes make a frame: large against its head, small against a long prompt's KV."""


def checksum(data: memoryview, before: int = 0) -> int:
    """CRC-32C of `data` after bytes whose CRC-32C is `before`; releases the GIL from 32 KiB on."""
    return crc32c(data, before)


def new_generation() -> int:
    """A number that no other KV of the same request name has, from 1 to `MAX_GENERATION`."""
    return 1 + secrets.randbelow(MAX_GENERATION)


def blocks_in_frame(block_bytes: int) -> int:
    """How many blocks of so many bytes a frame has unless a receiver asks for another number."""
    return max(1, FRAME_BYTES // block_bytes)


@dataclass(frozen=True, slots=True)
class KvIdentity:
    """Which KV a pull is about.

    `generation` tells it from earlier KV under the same request name, `model` is the fingerprint
    of the weights, and the KV of `tokens` positions is laid out in blocks of `block_bytes` each.
    """

    request: str
    generation: int
    model: str
    tokens: int
    block_bytes: int
    _packed: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [text.encode() for text in (self.request, self.model)]
        sizes = map(len, names)
        numbers = _IDENTITY.pack(self.generation, self.tokens, self.block_bytes, *sizes)
        object.__setattr__(self, "_packed", numbers + b"".join(names))

    def seal(self, bytes_checksum: int, first: int, count: int) -> int:
        """The checksum of the frame of `count` blocks from `first` on, given that of its bytes."""
        return crc32c(self._packed + _BLOCKS.pack(first, count), bytes_checksum)

    def head(self, bytes_checksum: int, first: int, count: int) -> bytes:
        """The head of that frame."""
        return HEAD.pack(_MAGIC, first, count, self.seal(bytes_checksum, first, count))

    def check(self, head: bytes | bytearray, bytes_checksum: int, first: int, count: int) -> None:
        """Accept the frame of `count` blocks from `first` on, or none.

        Args:
            head: of the frame that arrived.
            bytes_checksum: of its bytes, as they lie in memory now.
            first: the first block that is due.
            count: how many blocks are due.

        Raises:
            CorruptKvError: it is another frame, or its bytes are not those that were sent.
        """
        expected = self.head(bytes_checksum, first, count)
        if head == expected:
            return
        magic, its_first, its_count, its_checksum = HEAD.unpack(head)
        if magic != _MAGIC or (its_first, its_count) != (first, count):
            raise CorruptKvError(
                f"KV of {self.request!r} is corrupt: a frame of blocks {first} to "
                f"{first + count - 1} is due, its head is {bytes(head).hex()}"
            )
        raise CorruptKvError(
            f"KV of {self.request!r} is corrupt in blocks {first} to {first + count - 1}: checksum "
            f"{its_checksum:08x} was sent, {self.seal(bytes_checksum, first, count):08x} arrived"
        )
