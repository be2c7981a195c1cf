"""Paged KV memory: the references to each block, and the blocks that later prompts can reuse.

A full block of a prompt is found by the hash of all tokens up to its end (as in vLLM's prefix
cache). It stays when its last reference is released, and the least recently used one is recycled
first. In exact mode reuse is exact: the same tokens always give the same bits.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from pdserve.refengine.model.model_config import BLOCK_TOKENS


class OutOfBlocksError(RuntimeError):
    """Not enough free blocks; nothing was taken."""


def blocks_for(tokens: int) -> int:
    """How many blocks hold `tokens` positions, rounded up."""
    return -(-tokens // BLOCK_TOKENS)


def prompt_hashes(tokens: Sequence[int], salt: bytes = b"") -> list[bytes]:
    """One chained hash per full block of a prompt; no two are equal under different salts."""
    array = np.asarray(tokens, np.int32)
    chain = hashlib.blake2b(salt, digest_size=16).digest() if salt else b""
    hashes = []
    for start in range(0, len(array) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        data = array[start : start + BLOCK_TOKENS].tobytes()
        chain = hashlib.blake2b(chain + data, digest_size=16).digest()
        hashes.append(chain)
    return hashes


class BlockPool:
    """Allocator over block ids 1 .. count - 1 (block 0 is the padding of attention tables)."""

    def __init__(self, count: int, reuse: bool) -> None:
        self.total = count - 1
        self._reuse = reuse
        self._free = list(range(count - 1, 0, -1))
        self._users = [0] * count
        self._hash: dict[int, bytes] = {}
        self._by_hash: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self.removed: Callable[[bytes], None] = lambda _: None
        """Called with the hash of a cached block that is recycled."""

    def __contains__(self, digest: object) -> bool:
        """Whether the block of this hash is cached."""
        return digest in self._by_hash

    @property
    def available(self) -> int:
        """How many blocks an allocation can take, cached ones included."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """How many blocks are in use."""
        return self.total - self.available

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, oldest cached ones last.

        Raises:
            OutOfBlocksError: fewer are available; none is taken.
        """
        if count > self.available:
            raise OutOfBlocksError(f"{count} KV blocks wanted, {self.available} free")
        taken = [self._take() for _ in range(count)]
        for block in taken:
            self._users[block] = 1
        return taken

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Take a reference on the longest cached chain of `hashes`; returns its blocks."""
        found: list[int] = []
        for digest in hashes:
            block = self._by_hash.get(digest)
            if block is None:
                break
            self._users[block] += 1
            self._idle.pop(block, None)
            found.append(block)
        return found

    def publish(self, blocks: Sequence[int], hashes: Sequence[bytes]) -> None:
        """Make computed full blocks findable; a chain that is known already keeps its block."""
        if not self._reuse:
            return
        for block, digest in zip(blocks, hashes, strict=False):
            if digest not in self._by_hash and block not in self._hash:
                self._by_hash[digest] = block
                self._hash[block] = digest

    def forget(self) -> None:
        """Cached blocks hold nothing any more: no later prompt finds them."""
        for digest in self._by_hash:
            self.removed(digest)
        self._hash.clear()
        self._by_hash.clear()
        self._free += self._idle
        self._idle.clear()

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one reference on each block; the end of a chain is recycled first.

        Raises:
            ValueError: a block has no reference left.
        """
        for block in reversed(blocks):
            if self._users[block] <= 0:
                raise ValueError(f"KV block {block} released more often than taken")
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._hash:
                self._idle[block] = None
            else:
                self._free.append(block)

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        block, _ = self._idle.popitem(last=False)
        digest = self._hash.pop(block)
        del self._by_hash[digest]
        self.removed(digest)
        return block
