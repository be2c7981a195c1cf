"""Which instances the operator must ask before the next plan: only those in transition.

`controllers` calls this first, asks the engines, puts the answers into the Observation and then
plans. An engine that cannot be asked is absent from the answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pdserve.groups.instances import InstanceObs
from pdserve.wire.peers import PeerTable


@dataclass(frozen=True, slots=True)
class Polls:
    """Pod names, sorted."""

    links: tuple[str, ...]
    """`GET links` here; push the newest table first where the answer's version is older."""
    drains: tuple[str, ...]
    """`POST drain` here."""


def polls(
    instances: Iterable[InstanceObs], tables: Mapping[int, PeerTable], routed: frozenset[str]
) -> Polls:
    """Choose whom to ask.

    Links: a group is in transition while any of its members is running but not linked; then all
    of its members are asked, since both ends must report a link. Drains: members that left the
    routes. Where a group goes as a whole, its decodes get the order only after every prefill
    is idle and out of the table: a request still in prefill needs a decode to go on to.
    """
    links: set[str] = set()
    drains: set[str] = set()
    by_group: dict[int, list[InstanceObs]] = {}
    for instance in instances:
        by_group.setdefault(instance.group_index, []).append(instance)
    for index, members in by_group.items():
        table = tables.get(index)
        named = {p.id for p in table.instances} if table is not None else set()
        linkable = [i for i in members if i.running and i.fault is None and i.name in named]
        if any(not i.linked and not i.terminating for i in linkable):
            links.update(i.name for i in linkable)
        drains.update(i.name for i in members if may_drain(i, members, named, routed))
    return Polls(tuple(sorted(links)), tuple(sorted(drains)))


def may_drain(
    instance: InstanceObs,
    members: Iterable[InstanceObs],
    named: Iterable[str],
    routed: frozenset[str],
) -> bool:
    """True once a draining instance may get the order: no gateway sends it new work any more."""
    if instance.drain_started is None or not instance.running or instance.terminating:
        return False
    if instance.name in routed:
        return False
    if instance.role == "prefill":
        return True
    table = set(named)
    peers = [i for i in members if i.fault is None and not i.terminating]
    stays = any(i.role == "decode" and i.drain_started is None and i.linked for i in peers)
    prefills = any(i.role == "prefill" and i.name in table for i in peers)
    return stays or not prefills
