"""Makes the peer table of a group, version by version (P/D-Serve 3.1 gather, 3.2 publish).

An instance enters once it runs and the addresses of its members are known, and leaves when
`removal.finished` says so. All other entries are carried over, with addresses of devices that
became known since: an instance that restarts in place or is not ready keeps its entry. The first
table waits for both roles, as links need two ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from pdserve.groups.instances import InstanceObs
from pdserve.groups.removal import finished
from pdserve.groups.routable import addresses, addresses_in, endpoint, transfer
from pdserve.groups.types import Observation, PublishTable
from pdserve.groups.view import GroupView, PlanDraft, leaving
from pdserve.terms import ROLES
from pdserve.wire.bounds import MAX_PASSED_VERSION
from pdserve.wire.peers import Peer, PeerNode, PeerTable


def publish_table(group: GroupView, observation: Observation, draft: PlanDraft) -> None:
    """Publish the next version if members or tier costs changed, or if an instance holds a higher
    one.
    """
    old = group.table
    by_name = {i.name: i for i in group.members}
    kept = tuple(
        _with_devices(p, by_name[p.id])
        for p in (old.instances if old else ())
        if _stays(p, by_name, group, observation)
    )
    names = {p.id for p in kept}
    gathered = [
        i
        for i in group.staying
        if i.running
        and addresses(i) is not None
        and i.name not in names
        and not _in_other_role(i, old)
        and i.revision == group.revision
    ]
    entries = kept + tuple(_peer(i, draft) for i in gathered)
    if (old is None or not old.instances) and {p.role for p in entries} != set(ROLES):
        return
    costs = draft.fabric.spec.tier_costs
    held = _held(entries, observation)
    passed = old is not None and held > old.version
    moved = old is not None and not _same(entries, old)
    if old is not None and not (moved or passed or dict(old.tier_costs) != costs):
        return
    version = 1 + max(held, old.version if old is not None else _lost(group, observation))
    table = PeerTable(f"{observation.wanted.name}-{group.index}", version, entries, costs)
    gone = sorted({p.id for p in (old.instances if old else ())} - {p.id for p in entries})
    came = [i.name for i in gathered]
    told = [f"{word} {', '.join(x)}" for word, x in (("adds", came), ("drops", gone)) if x]
    if passed:
        told.append("passes the version that instances hold")
    draft.act(
        PublishTable(group.index, table),
        f"group {group.index} table {version} {' and '.join(told) or _other_news(moved)}",
    )


def _other_news(moved: bool) -> str:
    return "has new addresses of devices" if moved else "has new tier costs"


def _same(entries: tuple[Peer, ...], old: PeerTable) -> bool:
    """Whether entries are those of a table, which may have left out devices to fit its object."""
    return entries == old.instances or (
        dataclasses.replace(old, instances=entries).fitted().instances == old.instances
    )


def _with_devices(peer: Peer, instance: InstanceObs) -> Peer:
    """The entry with the devices that are known now: a node agent may tell addresses late.

    What is not known at the moment (the node was deleted, say) stays as it was.
    """
    known = {m.node: m.devices for m in instance.members if any(d.ip for d in m.devices)}
    nodes = tuple(dataclasses.replace(n, devices=known.get(n.name, n.devices)) for n in peer.nodes)
    return peer if nodes == peer.nodes else dataclasses.replace(peer, nodes=nodes)


def _held(entries: Iterable[Peer], observation: Observation) -> int:
    """The highest version that an instance of the table says it holds; 0 where none says one.

    An instance takes no table of a lower version. It may hold a higher one where ours was lost
    (its ConfigMap was deleted or overwritten) and the instance could not be asked at the time.
    """
    reports = (observation.links.get(peer.id) for peer in entries)
    said = (report.version for report in reports if report is not None)
    return max((version for version in said if version <= MAX_PASSED_VERSION), default=0)


def _lost(group: GroupView, observation: Observation) -> int:
    """The version that a lost table may have had: 0 for a group whose first one this is.

    What was linked once had a table. Its version is at most the number of seconds until now, as
    no group ever had one table a second for its whole life.
    """
    return int(observation.now) if any(i.ever_linked for i in group.members) else 0


def _stays(
    peer: Peer, by_name: dict[str, InstanceObs], group: GroupView, observation: Observation
) -> bool:
    instance = by_name.get(peer.id)
    if instance is None:
        return False
    if addresses(instance) not in (None, addresses_in(peer)):
        return False
    if peer.role != instance.role:
        return False
    return not (leaving(instance) and finished(group, instance, observation))


def _in_other_role(instance: InstanceObs, old: PeerTable | None) -> bool:
    """A table leaves it out before the next one names it anew: its links and mark end between."""
    entry = old.peer(instance.name) if old is not None else None
    return entry is not None and entry.role != instance.role


def _peer(instance: InstanceObs, draft: PlanDraft) -> Peer:
    assert instance.pod_ip is not None  # noqa: S101 - the caller's filter
    leader, *others = instance.members
    return Peer(
        id=instance.name,
        role=instance.role,
        endpoint=endpoint(instance.pod_ip),
        transfer=transfer(instance.pod_ip),
        revision=instance.revision,
        domains=dict(instance.domains or draft.fabric.place_of(instance.node)),
        nodes=(
            PeerNode(leader.node, leader.devices),
            *(PeerNode(m.node, m.devices, transfer(m.pod_ip or "")) for m in others),
        ),
    )
