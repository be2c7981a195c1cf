"""Which digests are cached: by a model of an engine with few blocks."""

from __future__ import annotations

import random
from array import array
from collections import OrderedDict

from pdserve.engines.cached_digests import CachedDigests
from pdserve.wire.prefixes import PromptBlocks

SIZE = 16
"""Tokens of an engine block."""


class Cache:
    """An engine's prefix cache: chains of blocks, the least recently used given up."""

    def __init__(self, room: int, most: int = 1 << 15) -> None:
        self.room = room
        self.blocks: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self.cached: CachedDigests[tuple[int, ...]] = CachedDigests(most)

    def compute(self, tokens: list[int], per_digest: int) -> array[int]:
        """Prefill a prompt whose gateway blocks have `per_digest` tokens; returns its digests."""
        full = range(SIZE, len(tokens) + 1, SIZE)
        chain = [tuple(tokens[:end]) for end in full]
        for block in reversed(chain):
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > self.room:
            self.cached.removed(self.blocks.popitem(last=False)[0])
        ends = range(per_digest, len(tokens) + 1, per_digest)
        digests = array("Q", [hash(tuple(tokens[:end])) & (1 << 64) - 1 for end in ends])
        named = PromptBlocks(digests, per_digest / len(tokens))
        self.cached.computed(named, chain, len(tokens), SIZE, self.blocks)
        return digests


def test_a_digest_is_cached_as_long_as_the_block_it_ends_in() -> None:
    """Followed by what is new alone, a set has the digests whose tokens the engine has."""
    rng = random.Random(5)
    cache = Cache(room=40)
    followed: set[int] = set()
    tokens_of: dict[int, list[int]] = {}
    for _ in range(2000):
        start = rng.randrange(6)
        tokens = [start] * 96 + [rng.randrange(3) for _ in range(rng.randrange(0, 400))]
        tokens = tokens[: rng.randrange(60, 500)]
        computed = cache.compute(tokens, 50)
        for number, digest in enumerate(computed):
            tokens_of[digest] = tokens[: 50 * (number + 1)]
        held, gone = cache.cached.take_news()
        followed |= set(held)
        followed -= set(gone)
        assert followed == set(cache.cached.newest(1 << 15))
        for digest in followed:
            prompt = tokens_of[digest]
            assert tuple(prompt[: len(prompt) // SIZE * SIZE]) in cache.blocks
        assert followed >= set(computed)
    assert len(followed) == len(cache.cached) > 10


def test_beginnings_are_used_later_than_ends() -> None:
    cache = Cache(room=100)
    first = cache.compute([1] * 200, 50)
    second = cache.compute([2] * 200, 50)
    assert cache.cached.newest(100) == [*reversed(first), *reversed(second)]
    assert cache.cached.newest(3) == list(second[2::-1])
    assert cache.cached.take_news() == ([*reversed(first), *reversed(second)], [])
    cache.compute([1] * 100, 50)
    assert cache.cached.take_news().held == [first[1], first[0]]


def test_an_engine_block_may_be_longer_than_a_gateways_or_than_the_prompt() -> None:
    cache = Cache(room=100)
    short = cache.compute([7] * 40, 5)
    assert len(cache.cached) == len(short) == 8
    none = cache.compute([8] * 15, 5)
    assert len(none) == 3
    assert set(cache.cached.newest(100)) == set(short)
    # The gateway may take them for cached: it is informed.
    assert set(cache.cached.take_news().gone) == set(none)


def test_more_digests_than_are_kept_are_given_up() -> None:
    cache = Cache(room=1 << 20, most=100)
    calls = []
    cache.cached.changed = lambda: calls.append(len(cache.cached))
    for n in range(50):
        cache.compute([n] * 1000, 20)
        assert len(cache.cached) <= 100
    assert calls == [50, *[100] * 49]
    held, gone = cache.cached.take_news()
    assert len(held) == 100
    assert len(gone) == 50 * 50 - 100
    cache.cached.cleared()
    assert len(cache.cached) == 0
    assert sorted(cache.cached.take_news().gone) == sorted(held)
    assert cache.cached.take_news() == ([], [])
