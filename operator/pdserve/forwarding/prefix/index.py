"""Which instance holds which prompt blocks: what its engine reports, or an estimate.

The estimate is from what was prefilled where. Engines keep the KV of prompts that they computed
until memory is short, least recently used first. The index does the same for each instance: a
prompt's blocks are touched from its last one to its first, so that a beginning outlives what
follows it, and the oldest are given up at a bound. For an instance that reports its blocks
(`report`) the estimate only fills the time until a report comes, and `removed` corrects it.

Lookup walks the digests of a prompt while some instance holds all of them so far: O(blocks found),
one step for a prompt without a hit. An instance is a bit of a number, so that a step costs the same
for any number of instances.

Bounds: `capacity` blocks over all instances, about 300 bytes each. What one instance holds is
bounded by an equal share, and by what its engine proved to keep (`proved`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

H = TypeVar("H", bound=Hashable)
CAPACITY = 32_768
"""Blocks that one gateway process keeps, over all its scenarios: about 10 MiB."""
LEAST = 64
"""Blocks of one instance, whatever its engine proved."""
_SHRINK = 0.9


class Hits(NamedTuple):
    """Who holds the beginning of one prompt: by number of leading blocks, most first."""

    layers: tuple[tuple[int, int], ...] = ()
    """(blocks, bits of the instances that hold so many and no more)."""


class _Held:
    """What one instance holds, the least recently used block first."""

    __slots__ = ("blocks", "bound", "number", "reports")

    def __init__(self, number: int, bound: int) -> None:
        self.number = number
        self.blocks: OrderedDict[int, None] = OrderedDict()
        self.bound = bound
        self.reports = False


class PrefixIndex(Generic[H]):
    """Blocks by instance, and instances by block."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        """`capacity`: blocks over all instances, 1 or more."""
        self._capacity = capacity
        self._held: dict[H, _Held] = {}
        self._by_number: list[H | None] = []
        self._bits: dict[int, int] = {}
        self.size = 0
        """Blocks held, over all instances."""

    def follow(self, holders: Collection[H], capacity: int | None = None) -> None:
        """Keep these instances' blocks only; `capacity`: the new bound, where it changes."""
        self._capacity = self._capacity if capacity is None else capacity
        for gone in [h for h in self._held if h not in holders]:
            held = self._held.pop(gone)
            self._cut(held, 0)
            self._by_number[held.number] = None
        for new in holders:
            if new not in self._held:
                self._held[new] = _Held(self._free_number(new), self._capacity)
        for held in self._held.values():
            self._cut(held, min(held.bound, self.share))

    def stored(self, holder: H, digests: Sequence[int]) -> None:
        """Note that an instance holds these leading blocks of a prompt, used just now.

        Nothing happens for an instance that `follow` did not name.
        """
        held = self._held.get(holder)
        if held is not None:
            most = min(held.bound, self.share)
            self._add(held, reversed(digests[:most]))

    def report(self, holder: H) -> None:
        """Begin anew with an instance that reports its blocks: `reported` and `removed` follow."""
        held = self._held.get(holder)
        if held is not None:
            held.reports, held.bound = True, self._capacity
            self._cut(held, 0)

    def reported(self, holder: H, digests: Iterable[int]) -> None:
        """Note blocks that an instance reports, the least recently used first."""
        held = self._held.get(holder)
        if held is not None and held.reports:
            self._add(held, digests)

    def silent(self, holder: H) -> None:
        """Note that an instance reports no more: its blocks are an estimate again."""
        held = self._held.get(holder)
        if held is not None:
            held.reports = False

    def reports(self, holder: H) -> bool:
        """Whether an instance reports its blocks."""
        held = self._held.get(holder)
        return held is not None and held.reports

    @property
    def reporting(self) -> int:
        """How many instances report their blocks."""
        return sum(held.reports for held in self._held.values())

    @property
    def share(self) -> int:
        """How many blocks of one instance are kept at most."""
        return max(1, self._capacity // max(1, len(self._held)))

    def _add(self, held: _Held, digests: Iterable[int]) -> None:
        most = min(held.bound, self.share)
        bit, blocks, bits = 1 << held.number, held.blocks, self._bits
        for digest in digests:
            if digest in blocks:
                blocks.move_to_end(digest)
            else:
                bits[digest] = bits.get(digest, 0) | bit
                blocks[digest] = None
                self.size += 1
        self._cut(held, most)

    def removed(self, holder: H, digests: Iterable[int]) -> None:
        """Note that an instance holds these blocks no more; unknown ones are ignored."""
        held = self._held.get(holder)
        if held is not None:
            for digest in digests:
                self._give_up(held, digest)

    def proved(self, holder: H, expected: int, found: int) -> None:
        """Learn how much an instance keeps: its engine found `found` of `expected` blocks.

        Fewer: it keeps less than the index took for granted. All: it may keep more. What an
        instance reports by itself is not bounded by that.
        """
        held = self._held.get(holder)
        if held is None or held.reports or expected <= 0:
            return
        if found < expected:
            held.bound = max(LEAST, min(held.bound, int(_SHRINK * len(held.blocks))))
            self._cut(held, held.bound)
        else:
            held.bound = min(self._capacity, held.bound + expected)

    def find(self, digests: Sequence[int]) -> Hits:
        """The instances that hold the beginning of a prompt."""
        bits = self._bits
        now = bits.get(digests[0], 0) if digests else 0
        layers: list[tuple[int, int]] = []
        depth = 0
        while now:
            depth += 1
            further = now & bits.get(digests[depth], 0) if depth < len(digests) else 0
            if further != now:
                layers.append((depth, now ^ further))
                now = further
        return Hits(tuple(reversed(layers)))

    def blocks_at(self, hits: Hits, holder: H) -> int:
        """How many leading blocks an instance holds, by an answer of `find`."""
        held = self._held.get(holder)
        if held is None:
            return 0
        bit = 1 << held.number
        return next((blocks for blocks, holders in hits.layers if holders & bit), 0)

    def best(self, hits: Hits, most: int, random: Callable[[], float]) -> list[tuple[H, int]]:
        """At most `most` instances with their leading blocks, those with most blocks first.

        Of equal ones some are taken at random; `random` draws from [0, 1).
        """
        found: list[tuple[H, int]] = []
        for blocks, holders in hits.layers:
            width = len(self._by_number)
            turn = int(random() * width)
            # Rotated, so that the first bits are any of the equal ones.
            rest = (holders >> turn) | ((holders & ((1 << turn) - 1)) << (width - turn))
            while rest and len(found) < most:
                low = rest & -rest
                rest ^= low
                holder = self._by_number[(low.bit_length() - 1 + turn) % width]
                if holder is not None:
                    found.append((holder, blocks))
        return found

    def _free_number(self, holder: H) -> int:
        for number, known in enumerate(self._by_number):
            if known is None:
                self._by_number[number] = holder
                return number
        self._by_number.append(holder)
        return len(self._by_number) - 1

    def _cut(self, held: _Held, most: int) -> None:
        """Give up the oldest blocks above a number."""
        while len(held.blocks) > most:
            self._give_up(held, next(iter(held.blocks)))

    def _give_up(self, held: _Held, digest: int) -> None:
        if digest not in held.blocks:
            return
        del held.blocks[digest]
        self.size -= 1
        left = self._bits[digest] & ~(1 << held.number)
        if left:
            self._bits[digest] = left
        else:
            del self._bits[digest]
