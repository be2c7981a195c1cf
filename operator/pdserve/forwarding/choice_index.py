"""The instances of a scenario, kept in the order in which a request asks them.

Looking at every instance for each request costs as much as all the rest of a request from some
tens of instances on. So what changes at an instance is noted (`Instance.watch`), and a choice
brings only those instances up to date whose state changed, by an event or by time: O(log M) for
each of them. Choices are those that looking at all would give; `dispatch` and `decode` say what the
order means. Neighbours: `ranking` has the collections, `scenario_view` owns the one index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pdserve.forwarding.instance import Instance
from pdserve.forwarding.ranking import NEVER, Ranks, Timetable

Random = Callable[[], float]
"""Draws from [0, 1)."""


class GroupIndex:
    """Prefills and decodes of one group."""

    def __init__(self, decodes: Sequence[Instance], handoff: float, levels: Iterable[str]) -> None:
        """`levels`: those of the tree that cost hops; decodes alike in all of them are one kind."""
        self.prefills: Ranks[Instance, tuple[bool, int]] = Ranks()
        """Those that can be asked: free ones before those merely due, then fewest open legs."""
        self._asleep: Timetable[Instance] = Timetable()
        """Other prefills, by the time at which they can be asked."""
        self._handoff = handoff
        self._credit = self._owed = 0
        """Credit of all decodes; requests in prefill that have not asked a decode yet."""
        self._used: dict[Instance, int] = {}
        """Requests at each prefill, and credit and open legs of each decode, in these sums."""
        self._offered: dict[Instance, tuple[int, int]] = {}
        self._credits: Timetable[Instance] = Timetable()
        """Decodes by the time at which their credit may grow without an event."""
        self._turns: Timetable[Instance] = Timetable()
        """Decodes by the time at which their rank changes without an event."""
        levels = tuple(levels)
        kinds: dict[tuple[str | None, ...], tuple[Instance, Ranks[Instance, tuple[bool, float]]]]
        kinds = {}
        self._kind: dict[Instance, Ranks[Instance, tuple[bool, float]]] = {}
        for decode in decodes:
            domains = tuple(decode.route.domains.get(level) for level in levels)
            self._kind[decode] = kinds.setdefault(domains, (decode, Ranks()))[1]
        self._kinds = list(kinds.values())

    @property
    def has_credit(self) -> bool:
        """Whether a decode place is left when all that is in prefill has moved on."""
        return self._credit > self._owed and self._credit > 0

    @property
    def later(self) -> float:
        """When another prefill may become worth asking, if nothing happens before."""
        return self._asleep.first() if self.has_credit else self._credits.first()

    def refresh(self, instance: Instance, now: float) -> None:
        """Take the state of one instance at `now`."""
        if instance.route.role == "prefill":
            self._refresh_prefill(instance, now)
        else:
            self._refresh_decode(instance, now)

    def settle(self, now: float) -> None:
        """Take into account what time alone has changed until `now`."""
        if self._asleep.first() <= now:
            for prefill in self._asleep.take_due(now):
                self._refresh_prefill(prefill, now)
        if self._turns.first() <= now:
            for decode in self._turns.take_due(now):
                self._refresh_decode(decode, now)
        if not self.has_credit:  # else more credit makes no difference: time only adds to it
            for decode in self._credits.take_due(now):
                self._refresh_decode(decode, now)

    def best_decodes(self, distance: Callable[[Instance], int]) -> list[Sequence[Instance]]:
        """The best decodes to ask, all equally good; `distance`: hops to one, of each kind."""
        if len(self._kinds) == 1:
            return [self._kinds[0][1].lowest()]
        best: tuple[tuple[bool, float], int] | None = None
        found: list[Sequence[Instance]] = []
        for example, ranks in self._kinds:
            rank = ranks.rank()
            if rank is None:
                continue
            order = (rank, distance(example))
            if best is None or order < best:
                best, found = order, []
            if order == best:
                found.append(ranks.lowest())
        return found

    def _refresh_prefill(self, prefill: Instance, now: float) -> None:
        used = prefill.legs + prefill.held
        self._owed += used - self._used.get(prefill, 0)
        self._used[prefill] = used
        at = prefill.next_try(now)
        if at <= now:
            self.prefills.put(prefill, (prefill.free <= 0, used))
            self._asleep.put(prefill, NEVER)
        else:
            self.prefills.remove(prefill)
            self._asleep.put(prefill, at)

    def _refresh_decode(self, decode: Instance, now: float) -> None:
        at, credit, later = decode.outlook(now, self._handoff)
        before, legs = self._offered.get(decode, (0, 0))
        self._credit += credit - before
        self._owed -= decode.legs - legs
        self._offered[decode] = (credit, decode.legs)
        self._credits.put(decode, later)
        share = (decode.total - decode.free) / decode.total
        if at <= now:
            self._kind[decode].put(decode, (False, share))
            self._turns.put(decode, NEVER)
        elif (well := decode.health.next_try(now)) <= now:
            self._kind[decode].put(decode, (True, share))
            self._turns.put(decode, at)
        else:
            self._kind[decode].remove(decode)
            self._turns.put(decode, well)


class ChoiceIndex:
    """All groups of a scenario."""

    def __init__(self) -> None:
        self._noted: list[Instance] = []
        self._of: dict[Instance, GroupIndex] = {}
        self._groups: dict[int, GroupIndex] = {}
        self._open: Ranks[GroupIndex, tuple[bool, int]] = Ranks()
        """Groups with credit and a prefill that can be asked, by the rank of their best one."""
        self._later: Timetable[GroupIndex] = Timetable()

    def add(
        self, number: int, prefills: Sequence[Instance], decodes: Sequence[Instance],
        handoff: float, levels: Iterable[str],
    ) -> None:  # fmt: skip
        """Take in a group. `handoff` in seconds; `levels`: see `GroupIndex`."""
        group = self._groups[number] = GroupIndex(decodes, handoff, levels)
        for instance in (*prefills, *decodes):
            self._of[instance] = group
            instance.watch(self._noted)
        if not prefills and not decodes:
            self._place(group)

    def prefill(self, now: float, random: Random) -> Instance | None:
        """The prefill to ask at `now` (monotonic seconds); None when none can be asked."""
        self._follow(now)
        groups = self._open.lowest()
        if len(groups) == 1:
            tied = groups[0].prefills.lowest()
            return tied[int(random() * len(tied))]
        return _one_of([group.prefills.lowest() for group in groups], random)

    def first(self, now: float) -> Instance | None:
        """One of those that `prefill` may choose at `now`, without a draw."""
        self._follow(now)
        groups = self._open.lowest()
        return groups[0].prefills.lowest()[0] if groups else None

    def open_to(self, instance: Instance, now: float) -> bool:
        """Whether the group of an instance has decode credit at `now`."""
        self._follow(now)
        group = self._of.get(instance)
        if group is None:
            return False
        group.settle(now)
        return group.has_credit

    def later(self, now: float) -> float:
        """When a prefill may become worth asking, if nothing happens before; seconds as `now`."""
        self._follow(now)
        return self._later.first()

    def decode(
        self, number: int, distance: Callable[[Instance], int], now: float, random: Random
    ) -> Instance | None:
        """The decode of a group to ask first at `now`; None when none is alive."""
        self._follow(now)
        group = self._groups.get(number)
        if group is None:
            return None
        group.settle(now)
        return _one_of(group.best_decodes(distance), random)

    def blocked(self, now: float) -> bool:
        """Whether prefills can be asked at `now`, but only in groups without decode credit."""
        self._follow(now)
        for group in self._groups.values():
            group.settle(now)
            self._place(group)
        idle = [group for group in self._groups.values() if group.prefills.lowest()]
        return bool(idle) and not any(group.has_credit for group in idle)

    def _follow(self, now: float) -> None:
        """Bring up to date what changed since the last choice, by an event or by time."""
        changed: set[GroupIndex] = set()
        if self._later.first() <= now:
            changed.update(self._later.take_due(now))
        for instance in self._noted:
            instance.noted = False
            group = self._of[instance]
            group.refresh(instance, now)
            changed.add(group)
        self._noted.clear()
        for group in changed:
            group.settle(now)
            self._place(group)

    def _place(self, group: GroupIndex) -> None:
        rank = group.prefills.rank()
        if rank is not None and group.has_credit:
            self._open.put(group, rank)
        else:
            self._open.remove(group)
        self._later.put(group, group.later)


def _one_of(tied: Sequence[Sequence[Instance]], random: Random) -> Instance | None:
    """One of several lists' items, each as likely as any other; None when there are none."""
    at = int(random() * sum(map(len, tied)))
    for items in tied:
        if at < len(items):
            return items[at]
        at -= len(items)
    return None
