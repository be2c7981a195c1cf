"""Which instance makes KV arrive corrupt: a vote of the pairs of prefill and decode of a group.

A decode counts the pulls from each prefill that arrived corrupt. A pair is bad when enough of its
pulls were, sound when enough pulls were made and it is not bad, and abstains otherwise.

    bad with two or more of the other role, and with most of them   the instance itself
    one bad pair, one end of it sound with others                   the other end, but no prefill
                                                                    in whose slot one was replaced
                                                                    for this reason lately
    one bad pair, both ends sound with others                       the link between them
    one bad pair, neither end has a sound pair                      either end

For a link, and where it may be either end, the prefill is replaced, as no stream ends with it; but
the decode if a prefill of the group was replaced for the same reason lately: a decode that makes KV
arrive corrupt, or says so, would have one prefill after another replaced. Of a decode it is only
its own word that it is sound with others. One instance of a group is at fault at a time: the next
vote is without it. Where a prefill and a decode are equally
suspect, none is at fault: what they share is, and replacing instances would not help.

A fault replaces an instance (`repairs`), on another node where one has room. A decode alone can
accuse no more than one instance, and itself first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from pdserve.groups.instances import InstanceObs
from pdserve.groups.types import Repair
from pdserve.groups.view import GroupView
from pdserve.wire.links import LinkReport
from pdserve.wire.peers import PeerTable

FAULT: Final = "KvCorrupt"
LEAST_CORRUPT = 3
"""Corrupt pulls from which on a pair can be bad: one flipped bit replaces nothing."""
LEAST_PULLS = 20
"""Pulls from which on a pair without that is sound."""
BAD_SHARE = 0.02
"""Share of corrupt pulls from which on a pair is bad."""
LAST_SHARE = 0.5
"""The same where no other instance of the role serves: below it, what arrives is worth more than
the time without any."""

Pair = tuple[str, str]
"""Prefill and decode, by name."""


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Pulls of one decode from one prefill lately, and those that arrived corrupt."""

    pulls: int
    corrupt: int

    def is_bad(self, share: float = BAD_SHARE) -> bool:
        """Whether too many arrived corrupt."""
        return self.corrupt >= LEAST_CORRUPT and self.corrupt >= share * self.pulls

    @property
    def is_sound(self) -> bool:
        """Whether enough arrived, and hardly one of them corrupt."""
        return self.pulls >= LEAST_PULLS and not self.is_bad()


@dataclass(frozen=True, slots=True)
class FaultFound:
    """The instance that a vote found, and why it."""

    instance: str
    message: str


def vote(pairs: Mapping[Pair, PairCounts], replaced: Collection[str] = ()) -> FaultFound | None:
    """The instance at fault; None where there is none, or no telling which.

    Args:
        pairs: what the decodes of one group counted.
        replaced: prefills that took the place of one that was at fault lately.
    """
    bad = sorted(pair for pair, counts in pairs.items() if counts.is_bad())
    if not bad:
        return None
    tallies = [
        _Tally(name, end, pairs, bad) for end in (0, 1) for name in sorted({p[end] for p in bad})
    ]
    most = [t for t in tallies if t.against >= 2 and t.against > t.others]
    if most:
        first = max(most, key=lambda t: (t.against, -t.others))
        rivals = [t for t in most if (t.against, t.others) == (first.against, first.others)]
        if len({t.end for t in rivals}) > 1:
            return None
        return FaultFound(first.name, first.message)
    prefill, decode = max(bad, key=lambda pair: (pairs[pair].corrupt, pair))
    ends = {t.end: t for t in tallies if t.name in (prefill, decode)}
    sound = [bool(ends[end].others) for end in (0, 1)]
    if sound == [True, False]:
        chosen = ends[1]
    elif sound == [False, True]:
        chosen = ends[1 if prefill in replaced else 0]
    else:
        chosen = ends[1 if replaced else 0]
    where = "the link between them" if all(sound) else chosen.name
    told = pairs[prefill, decode]
    return FaultFound(
        chosen.name,
        f"{told.corrupt} of {told.pulls} KV pulls of {decode} from {prefill} arrived corrupt; "
        f"at fault seems {where}",
    )


class _Tally:
    """What the pairs of one instance say; `end` is 0 for a prefill, 1 for a decode."""

    def __init__(
        self, name: str, end: int, pairs: Mapping[Pair, PairCounts], bad: Collection[Pair]
    ) -> None:
        own = {pair: counts for pair, counts in pairs.items() if pair[end] == name}
        mine = [pair for pair in own if pair in bad]
        self.name, self.end = name, end
        self.against = len(mine)
        self.others = sum(counts.is_sound for counts in own.values())
        pulls, corrupt = (sum(getattr(own[p], what) for p in mine) for what in ("pulls", "corrupt"))
        peers = "decodes" if end == 0 else "prefills"
        self.message = (
            f"{corrupt} of {pulls} KV pulls with {self.against} {peers} arrived corrupt, and it is "
            f"sound with {self.others}"
        )


def judge_corruption(
    instances: Iterable[InstanceObs],
    tables: Mapping[int, PeerTable],
    links: Mapping[str, LinkReport],
    repairs: Iterable[Repair],
) -> tuple[InstanceObs, ...]:
    """Mark instances that make KV arrive corrupt with fault KvCorrupt.

    One that was counted so stays so, though nothing is reported of it any more. Each argument is of
    one ScenarioGroup and as in `Observation`.
    """
    seen = tuple(instances)
    counted = {r.last_uid: r for r in repairs if r.fault == FAULT}
    if not counted and not any(report.corrupt for report in links.values()):
        return seen
    marks = {i.name: counted[i.uid].message for i in seen if i.uid in counted}
    slots = {repair.slot for repair in counted.values()}
    for index in sorted({i.group_index for i in seen}):
        members = tuple(i for i in seen if i.group_index == index)
        if not any(i.name in marks or i.fault == FAULT for i in members):
            group = GroupView(index, members, tables.get(index))
            found = _found_in(group, links, slots)
            marks |= {} if found is None else {found.instance: found.message}
    return tuple(
        replace(i, fault=FAULT, fault_message=marks[i.name])
        if i.name in marks and i.fault is None
        else i
        for i in seen
    )


def pair_counts(group: GroupView, links: Mapping[str, LinkReport]) -> dict[Pair, PairCounts]:
    """What the decodes of a group reported of its prefills; empty where none saw corrupt KV."""
    prefills = {i.name for i in group.staying if i.role == "prefill"}
    return {
        (prefill, decode.name): PairCounts(pulls, min(pulls, report.corrupt.get(prefill, 0)))
        for decode in group.staying
        if decode.role == "decode" and (report := links.get(decode.name)) is not None
        for prefill, pulls in sorted(report.pulls.items())
        if prefill in prefills
    }


def _found_in(
    group: GroupView, links: Mapping[str, LinkReport], slots: Collection[str]
) -> FaultFound | None:
    counts = pair_counts(group, links)
    replaced = [i.name for i in group.staying if i.role == "prefill" and i.slot in slots]
    found = vote(counts, replaced)
    if found is None:
        return None
    instance = next(i for i in group.staying if i.name == found.instance)
    # Others of its role serve, or it does more harm than its loss.
    spared = group.ready(instance.role, without={instance.name}) > 0
    own = [c for pair, c in counts.items() if found.instance in pair]
    return found if spared or any(c.is_bad(LAST_SHARE) for c in own) else None
