"""KV of one request in the form that travels: one contiguous buffer, block after block.

A block is contiguous in the pool over all layers ([layers, 2, kv_heads * dim * tokens]). So the
sender gathers once, and the receiver reads from the socket straight into its own blocks, whose ids
may be others (P/D-Serve section 3.6: contiguous send, RecvScatter). Positions of the last block
that are not part of the prompt are sent as zeros.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pdserve.refengine.kv.pool import blocks_for
from pdserve.refengine.model.model_config import BLOCK_TOKENS, LlamaConfig
from pdserve.refengine.model.tensors import Array


@dataclass(frozen=True, slots=True)
class Payload:
    """KV of `tokens` positions, and the CRC-32 of its bytes."""

    tokens: int
    data: memoryview
    checksum: int


def gather(pool: Array, blocks: Sequence[int], tokens: int, config: LlamaConfig) -> Payload:
    """Copy the KV of a prompt of `tokens` tokens out of its blocks of the pool."""
    used = list(blocks[: blocks_for(tokens)])
    copy = pool[used]
    tail = tokens % BLOCK_TOKENS
    if tail:
        shape = (config.layers, config.kv_heads)
        copy[-1, :, 0].reshape(*shape, config.head_dim, BLOCK_TOKENS)[..., tail:] = 0
        copy[-1, :, 1].reshape(*shape, BLOCK_TOKENS, config.head_dim)[:, :, tail:] = 0
    data = copy.data.cast("B")
    return Payload(tokens, data, zlib.crc32(data))


def landing(pool: Array, blocks: Sequence[int], tokens: int) -> list[memoryview]:
    """Writable memory of the blocks that will hold `tokens` positions, in order."""
    return [_bytes_of(pool[b]) for b in blocks[: blocks_for(tokens)]]


def _bytes_of(block: Array) -> memoryview:
    flat: Array = block.reshape(-1)
    if not np.shares_memory(flat, block):
        raise ValueError("a KV block must be contiguous")
    return flat.data.cast("B")
