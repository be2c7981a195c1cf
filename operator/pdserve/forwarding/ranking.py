"""Two collections that answer "which is first?" without looking at every item.

`Timetable`: which items are due. `Ranks`: which items have the lowest rank. A change of one item
costs O(log n). Both forget stale entries when they come to the top, and all of them when they are
most. Neighbour: `choice_index` keeps the instances of a scenario in them.
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

NEVER = float("inf")
T = TypeVar("T", bound=Hashable)
R = TypeVar("R", bound=tuple[float, ...])


class Timetable(Generic[T]):
    """Items with a time each."""

    __slots__ = ("_at", "_heap", "_seq")

    def __init__(self) -> None:
        self._at: dict[T, float] = {}
        self._heap: list[tuple[float, int, T]] = []
        self._seq = count()

    def put(self, item: T, at: float) -> None:
        """Set the time of an item, in seconds of any one clock; NEVER takes it out."""
        if at == NEVER:
            self._at.pop(item, None)
        elif self._at.get(item) != at:
            self._at[item] = at
            if len(self._heap) > 4 * len(self._at) + 16:
                self._heap = [(t, next(self._seq), i) for i, t in self._at.items()]
                heapify(self._heap)
            else:
                heappush(self._heap, (at, next(self._seq), item))

    def first(self) -> float:
        """The earliest time; NEVER without items."""
        heap = self._heap
        while heap and self._at.get(heap[0][2]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else NEVER

    def take_due(self, now: float) -> list[T]:
        """Take out every item whose time is `now` or before; the earliest first."""
        due: list[T] = []
        while self.first() <= now:
            item = heappop(self._heap)[2]
            del self._at[item]
            due.append(item)
        return due


class Ranks(Generic[T, R]):
    """Items with a rank each; `lowest` has those of the lowest, in no particular order."""

    __slots__ = ("_heap", "_members", "_places")

    def __init__(self) -> None:
        self._members: dict[R, list[T]] = {}
        self._places: dict[T, tuple[R, int]] = {}
        self._heap: list[R] = []

    def put(self, item: T, rank: R) -> None:
        """Set the rank of an item."""
        known = self._places.get(item)
        if known is not None:
            if known[0] == rank:
                return
            self._leave(known)
        members = self._members.get(rank)
        if members is None:
            if len(self._heap) > 4 * len(self._places) + 16:
                self._members = {rank: items for rank, items in self._members.items() if items}
                self._heap = list(self._members)
                heapify(self._heap)
            members = self._members[rank] = []
            heappush(self._heap, rank)
        self._places[item] = (rank, len(members))
        members.append(item)

    def remove(self, item: T) -> None:
        """Take an item out; nothing happens where it is not in."""
        known = self._places.pop(item, None)
        if known is not None:
            self._leave(known)

    def rank(self) -> R | None:
        """The lowest rank; None without items."""
        while self._heap:
            rank = self._heap[0]
            if self._members[rank]:
                return rank
            del self._members[heappop(self._heap)]
        return None

    def lowest(self) -> list[T]:
        """The items of the lowest rank; for reading only, and until the next change."""
        rank = self.rank()
        return [] if rank is None else self._members[rank]

    def _leave(self, place: tuple[R, int]) -> None:
        """Fill the gap with the last item of that rank."""
        rank, at = place
        members = self._members[rank]
        last = members.pop()
        if at < len(members):
            members[at] = last
            self._places[last] = (rank, at)
