"""KV of one request in the form that travels: one contiguous buffer, block after block.

A block is contiguous in the pool over all layers ([layers, 2, kv_heads * dim * tokens]). So the
sender gathers once, and the receiver reads from the socket straight into its own blocks, whose ids
may be others (P/D-Serve section 3.6: contiguous send, RecvScatter). Positions of the last block
that are not part of the prompt are sent as zeros.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pdserve.refengine.kv import integrity
from pdserve.refengine.kv.pool import blocks_for
from pdserve.refengine.model.model_config import BLOCK_TOKENS, LlamaConfig
from pdserve.refengine.model.tensors import Array


@dataclass(frozen=True, slots=True)
class Payload:
    """KV of `tokens` positions, and CRC-32C of its bytes, `each` blocks at a time (`integrity`)."""

    tokens: int
    data: memoryview
    generation: int
    each: int
    checksums: tuple[int, ...]

    @staticmethod
    def of(tokens: int, data: memoryview, each: int = 0) -> Payload:
        """A new generation of KV; `data` must be whole blocks and not change any more.

        `each`: blocks in a frame; 0: as many as is usual.
        """
        blocks = blocks_for(tokens)
        each = each or integrity.blocks_in_frame(len(data) // blocks)
        found = tuple(integrity.checksum(part) for _, _, part in _parts(data, blocks, each))
        return Payload(tokens, data, integrity.new_generation(), each, found)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return len(self.data) // blocks_for(self.tokens)

    def frames(self, each: int) -> Iterator[tuple[int, int, memoryview, int]]:
        """First block, number of blocks, bytes and their checksum of each frame of `each` blocks.

        Checksums are ready for the payload's own `each`, and computed for any other.
        """
        ready = self.checksums if each == self.each else ()
        parts = _parts(self.data, blocks_for(self.tokens), each)
        for index, (first, count, part) in enumerate(parts):
            yield first, count, part, ready[index] if ready else integrity.checksum(part)

    def crc32(self) -> int:
        """CRC-32 of all bytes, which engines of older versions check."""
        return zlib.crc32(self.data)


def frame_sizes(blocks: int, each: int) -> list[tuple[int, int]]:
    """First block and number of blocks of the frames that carry `blocks` blocks."""
    return [(first, min(each, blocks - first)) for first in range(0, blocks, each)]


def gather(pool: Array, blocks: Sequence[int], tokens: int, config: LlamaConfig) -> Payload:
    """Copy the KV of a prompt of `tokens` tokens out of its blocks of the pool."""
    used = list(blocks[: blocks_for(tokens)])
    copy = pool[used]
    tail = tokens % BLOCK_TOKENS
    if tail:
        shape = (config.layers, config.kv_heads)
        copy[-1, :, 0].reshape(*shape, config.head_dim, BLOCK_TOKENS)[..., tail:] = 0
        copy[-1, :, 1].reshape(*shape, BLOCK_TOKENS, config.head_dim)[:, :, tail:] = 0
    return Payload.of(tokens, copy.data.cast("B"))


def landing(pool: Array, blocks: Sequence[int], tokens: int) -> list[memoryview]:
    """Writable memory of the blocks that will hold `tokens` positions, in order.

    Blocks that are neighbours in memory are one buffer, which takes fewer reads to fill.
    """
    used = list(blocks[: blocks_for(tokens)])
    starts = [i for i in range(len(used)) if i == 0 or used[i] != used[i - 1] + 1]
    ends = [*starts[1:], len(used)]
    return [
        _bytes_of(pool[used[start] : used[start] + end - start])
        for start, end in zip(starts, ends, strict=True)
    ]


def _parts(data: memoryview, blocks: int, each: int) -> Iterator[tuple[int, int, memoryview]]:
    size = len(data) // blocks
    for first, count in frame_sizes(blocks, each):
        yield first, count, data[first * size : (first + count) * size]


def _bytes_of(blocks: Array) -> memoryview:
    flat: Array = blocks.reshape(-1)
    if not np.shares_memory(flat, blocks):
        raise ValueError("KV blocks must be contiguous")
    return flat.data.cast("B")
