"""Corruptions of KV on its way from a prefill to a decode, and the check that has to find them.

`Corruptions` makes the bytes that a prefill sends for one pull, damages them in one of the classes
of `CLASSES`, and gives them to the decode's own landing in pieces of random sizes. Shared by the
unit tests and `make bench-kv`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from pdserve.refengine.kv import integrity
from pdserve.refengine.kv.frames import CheckedLanding
from pdserve.refengine.kv.integrity import KvIdentity
from pdserve.refengine.kv.kv_transport import CorruptKvError
from pdserve.refengine.kv.payload import Payload, frame_sizes

BLOCKS, TOKENS = 8, 8 * 32
BLOCK_BYTES = 512
EACH = 2
"""Blocks in a frame."""
IDENTITY = KvIdentity("r-1", 1, "model-1", TOKENS, BLOCK_BYTES)


@dataclass(frozen=True)
class Sent:
    """A pull's answer: the frames of one KV, heads and bytes."""

    heads: tuple[bytes, ...]
    parts: tuple[bytes, ...]

    def wire(self) -> bytearray:
        """All of it in order."""
        return bytearray(b"".join(h + p for h, p in zip(self.heads, self.parts, strict=True)))


def sent(data: bytes, identity: KvIdentity = IDENTITY) -> Sent:
    """What a prefill sends for `data`, held as `identity`."""
    payload = Payload.of(identity.tokens, memoryview(data))
    frames = list(payload.frames(EACH))
    heads = (identity.head(crc, first, count) for first, count, _, crc in frames)
    return Sent(tuple(heads), tuple(bytes(part) for _, _, part, _ in frames))


def accepts(wire: bytes | bytearray, random_: random.Random) -> bool:
    """Whether a decode that asked for `IDENTITY` takes these bytes for the KV of its prompt."""
    memory = bytearray(BLOCKS * BLOCK_BYTES)
    landing = CheckedLanding([memoryview(memory)], IDENTITY, frame_sizes(BLOCKS, EACH))
    view, at = memoryview(wire), 0
    try:
        while at < len(view) and not landing.complete:
            size = random_.randint(1, 2 * BLOCK_BYTES)
            at += landing.fill(view[at : at + size])
    except CorruptKvError:
        return False
    return landing.complete


class Corruptions:
    """Seeded corruptions of one KV; each call of `one` makes another."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._data = self.random.randbytes(BLOCKS * BLOCK_BYTES)
        self._good = sent(self._data)
        self._other = sent(self.random.randbytes(BLOCKS * BLOCK_BYTES))

    @property
    def good(self) -> bytearray:
        """The undamaged bytes."""
        return self._good.wire()

    def one(self, kind: str) -> bytearray:
        """The bytes after one corruption of this class, never equal to the undamaged ones."""
        while True:
            wire = CLASSES[kind](self)
            if wire != self.good:
                return wire

    def one_bit(self) -> bytearray:
        """One bit of head or bytes is flipped."""
        return self._flipped(1)

    def head_bit(self) -> bytearray:
        """One bit of a head is flipped."""
        wire, frame = self.good, integrity.HEAD.size + EACH * BLOCK_BYTES
        place = self.random.randrange(len(self._good.heads)) * frame
        return _flip(wire, 8 * place + self.random.randrange(8 * integrity.HEAD.size))

    def some_bits(self) -> bytearray:
        """Up to 64 bits anywhere are flipped."""
        return self._flipped(self.random.randint(2, 64))

    def burst(self) -> bytearray:
        """Consecutive bytes are replaced."""
        wire, size = self.good, self.random.randint(1, 256)
        start = self.random.randrange(len(wire) - size)
        wire[start : start + size] = self.random.randbytes(size)
        return wire

    def zeroed(self) -> bytearray:
        """Consecutive bytes never arrived: zeros are in their place."""
        wire, size = self.good, self.random.randint(1, 2 * BLOCK_BYTES)
        start = self.random.randrange(len(wire) - size)
        wire[start : start + size] = bytes(size)
        return wire

    def truncated(self) -> bytearray:
        """The end is missing."""
        return self.good[: self.random.randrange(len(self.good))]

    def lost_piece(self) -> bytearray:
        """A piece is missing, what follows moved up, and any bytes follow the end."""
        wire, size = self.good, self.random.randint(1, 2 * BLOCK_BYTES)
        start = self.random.randrange(len(wire) - size)
        del wire[start : start + size]
        return wire + self.random.randbytes(size)

    def swapped_blocks(self) -> bytearray:
        """Two blocks of bytes changed places; heads stay."""
        blocks = [self._data[i : i + BLOCK_BYTES] for i in range(0, len(self._data), BLOCK_BYTES)]
        a, b = self.random.sample(range(BLOCKS), 2)
        blocks[a], blocks[b] = blocks[b], blocks[a]
        data = b"".join(blocks)
        return self._with(data)

    def swapped_frames(self) -> bytearray:
        """Two whole frames changed places, each with its head."""
        order = list(range(len(self._good.heads)))
        a, b = self.random.sample(order, 2)
        order[a], order[b] = order[b], order[a]
        heads, parts = self._good.heads, self._good.parts
        return Sent(tuple(heads[i] for i in order), tuple(parts[i] for i in order)).wire()

    def doubled_frame(self) -> bytearray:
        """A frame arrived in the place of another one."""
        heads, parts = list(self._good.heads), list(self._good.parts)
        a, b = self.random.sample(range(len(heads)), 2)
        heads[a], parts[a] = heads[b], parts[b]
        return Sent(tuple(heads), tuple(parts)).wire()

    def stale_block(self) -> bytearray:
        """A block still holds the bytes of other KV."""
        place = self.random.randrange(BLOCKS) * BLOCK_BYTES
        other = b"".join(self._other.parts)[place : place + BLOCK_BYTES]
        return self._with(self._data[:place] + other + self._data[place + BLOCK_BYTES :])

    def stale_frame(self) -> bytearray:
        """A whole frame, head and bytes, is of an earlier generation of the same request."""
        generation = self.random.randint(2, integrity.MAX_GENERATION)
        return self._mixed(replace(IDENTITY, generation=generation))

    def other_request(self) -> bytearray:
        """A whole frame is of another request."""
        return self._mixed(replace(IDENTITY, request=f"r-{self.random.randint(2, 1 << 30)}"))

    def other_model(self) -> bytearray:
        """A whole frame is of a model with other weights."""
        return self._mixed(replace(IDENTITY, model=f"model-{self.random.randint(2, 1 << 30)}"))

    def other_length(self) -> bytearray:
        """A whole frame is of KV of another number of tokens, in as many blocks."""
        return self._mixed(replace(IDENTITY, tokens=TOKENS - self.random.randint(1, 31)))

    def _flipped(self, bits: int) -> bytearray:
        wire = self.good
        for place in self.random.sample(range(8 * len(wire)), bits):
            _flip(wire, place)
        return wire

    def _with(self, data: bytes) -> bytearray:
        size = EACH * BLOCK_BYTES
        parts = tuple(data[i : i + size] for i in range(0, len(data), size))
        return replace(self._good, parts=parts).wire()

    def _mixed(self, identity: KvIdentity) -> bytearray:
        """A frame of another identity in the place of one, with the same bytes or with others."""
        data = self.random.choice((self._data, b"".join(self._other.parts)))
        foreign, at = sent(data, identity), self.random.randrange(BLOCKS // EACH)
        heads, parts = list(self._good.heads), list(self._good.parts)
        heads[at], parts[at] = foreign.heads[at], foreign.parts[at]
        return Sent(tuple(heads), tuple(parts)).wire()


def _flip(wire: bytearray, place: int) -> bytearray:
    wire[place // 8] ^= 1 << place % 8
    return wire


CLASSES: dict[str, Callable[[Corruptions], bytearray]] = {
    "one bit": Corruptions.one_bit,
    "a bit of a head": Corruptions.head_bit,
    "2 to 64 bits": Corruptions.some_bits,
    "burst of bytes": Corruptions.burst,
    "bytes that never came": Corruptions.zeroed,
    "truncated": Corruptions.truncated,
    "a piece lost": Corruptions.lost_piece,
    "two blocks swapped": Corruptions.swapped_blocks,
    "two frames swapped": Corruptions.swapped_frames,
    "a frame twice": Corruptions.doubled_frame,
    "stale block": Corruptions.stale_block,
    "frame of an earlier generation": Corruptions.stale_frame,
    "frame of another request": Corruptions.other_request,
    "frame of another model": Corruptions.other_model,
    "frame of another length": Corruptions.other_length,
}


def accepted(seed: int, count: int) -> Counter[str]:
    """How many of `count` corruptions, the same number of each class, were taken for good KV."""
    made, wrong = Corruptions(seed), Counter[str]()
    for number in range(count):
        kind = list(CLASSES)[number % len(CLASSES)]
        wrong[kind] += accepts(made.one(kind), made.random)
    return wrong
