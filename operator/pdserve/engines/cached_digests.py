"""Which digests of gateways are in an engine's prefix cache: by the engine block they end in.

An engine caches blocks of tokens; gateways name blocks of bytes. Where a gateway's block ends among
a prompt's tokens is an estimate: by its part of the whole prompt. A digest is cached as long as the
last full engine block up to there is. Blocks of the engine are of any hashable kind.

Pure, and bounded: a digest takes some 300 bytes. Neighbour: `prefix_feed` streams it to gateways.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

from pdserve.wire.prefixes import PromptBlocks

K = TypeVar("K", bound=Hashable)
MOST = 1 << 15
"""Digests of one instance: 16 MiB of text."""


class News(NamedTuple):
    """What changed, each digest once."""

    held: list[int]
    """Cached, the least recently used first; some may have been known."""
    gone: list[int]


class CachedDigests(Generic[K]):
    """The digests whose blocks are cached, the least recently used first."""

    def __init__(self, most: int = MOST) -> None:
        """`most`: digests that are kept; the least recently used are given up."""
        self._most = most
        self._ends: OrderedDict[int, K] = OrderedDict()
        """The block in which each digest ends."""
        self._of_block: dict[K, set[int]] = {}
        self._news: dict[int, bool] = {}
        self.changed: Callable[[], None] = lambda: None
        """Called when there is something new."""

    def __len__(self) -> int:
        return len(self._ends)

    def computed(
        self, prompt: PromptBlocks, chain: Sequence[K], tokens: int, size: int, cached: Container[K]
    ) -> None:
        """Note that a prompt was computed, or found in the cache.

        Args:
            prompt: its blocks as a gateway named them.
            chain: its full engine blocks, in order.
            tokens: length of the prompt.
            size: tokens of an engine block.
            cached: the engine blocks that are cached now.
        """
        for number in range(len(prompt.digests) - 1, -1, -1):
            full = round((number + 1) * prompt.share * tokens) // size
            end = chain[min(len(chain), max(1, full)) - 1] if chain else None
            if end is not None and end in cached:
                self._keep(prompt.digests[number], end)
            else:
                # Also where it was not known: the gateway may take it for cached meanwhile.
                self._forget(prompt.digests[number])
                self._note(prompt.digests[number], held=False)
        while len(self._ends) > self._most:
            self._forget(next(iter(self._ends)))
        self._tell()

    def removed(self, block: K) -> None:
        """Note that an engine block is cached no more."""
        for digest in tuple(self._of_block.get(block, ())):
            self._forget(digest)
        self._tell()

    def cleared(self) -> None:
        """Note that nothing is cached any more."""
        for digest in tuple(self._ends):
            self._forget(digest)
        self._tell()

    def newest(self, most: int) -> list[int]:
        """At most `most` digests, those used last; the least recently used first."""
        return list(self._ends)[-most:]

    def take_news(self) -> News:
        """What changed since this was asked last."""
        news, self._news = self._news, {}
        return News([d for d, held in news.items() if held], [d for d, h in news.items() if not h])

    def _keep(self, digest: int, block: K) -> None:
        former = self._ends.get(digest)
        if former != block:
            if former is not None:
                self._part(digest, former)
            self._ends[digest] = block
            self._of_block.setdefault(block, set()).add(digest)
        self._ends.move_to_end(digest)
        self._note(digest, held=True)

    def _forget(self, digest: int) -> None:
        block = self._ends.pop(digest, None)
        if block is not None:
            self._part(digest, block)
            self._note(digest, held=False)

    def _part(self, digest: int, block: K) -> None:
        of_block = self._of_block[block]
        of_block.discard(digest)
        if not of_block:
            del self._of_block[block]

    def _note(self, digest: int, *, held: bool) -> None:
        self._news.pop(digest, None)
        self._news[digest] = held

    def _tell(self) -> None:
        if self._news:
            self.changed()
