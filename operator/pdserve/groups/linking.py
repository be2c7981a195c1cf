"""When an instance is Linked: the readiness gate `pdserve.io/Linked`, per container.

The peers an instance needs are those of the other role that are already linked: they serve, so
every pair of serving instances must have its link. While none is linked, it needs all live ones of
the table. An instance is linked when its process has the newest table and reports each needed peer
up, and each of them, also at the newest table, reports it up. So a broken new instance never keeps
the others from being linked. The leader answers for all members; each has a readiness gate of its
own, for its own container.
"""

from __future__ import annotations

from pdserve.groups.instances import InstanceObs
from pdserve.groups.routable import peer_entry
from pdserve.groups.types import MarkLinked, MarkUnlinked, Observation, TellLeader
from pdserve.groups.view import GroupView, PlanDraft


def update_links(group: GroupView, observation: Observation, draft: PlanDraft) -> None:
    """Mark what became linked, and unmark what lost its links by restarting in place."""
    for instance in group.staying:
        marked = [m for m in instance.members if m.linked_container is not None]
        reason = _lost_links(group, instance) if marked else None
        if reason is not None:
            for member in marked:
                draft.act(
                    MarkUnlinked(member.pod, member.uid, reason),
                    f"{member.pod} is no longer linked: {reason}",
                )
        elif len(marked) < len(instance.members) and instance.running:
            _link(group, instance, observation, draft)


def tell_leaders(group: GroupView, draft: PlanDraft) -> None:
    """Give each member the address of its leader: engines need it to find each other."""
    for instance in group.staying:
        address = instance.pod_ip
        for member in instance.members if address is not None else ():
            if member.index and member.leader_address != address:
                draft.act(
                    TellLeader(member.pod, member.uid, address or ""),
                    f"{member.pod} learns its leader's address",
                )


def _link(
    group: GroupView, instance: InstanceObs, observation: Observation, draft: PlanDraft
) -> None:
    """Mark the members of an instance that are not marked yet, if it is linked."""
    if group.table is None:
        return
    missing = links_missing(group, instance, observation)
    if missing is not None:
        if peer_entry(instance, group.table) is not None:
            draft.reasons.append(f"{instance.name} is not linked yet: {missing}")
        return
    for member in instance.members:
        if member.linked_container is None and member.container_id is not None:
            draft.act(
                MarkLinked(member.pod, member.uid, member.container_id),
                f"{member.pod} is linked at table {group.table.version}",
            )


def links_missing(group: GroupView, instance: InstanceObs, observation: Observation) -> str | None:
    """What still keeps `instance` from being linked, or None."""
    table = group.table
    if table is None or peer_entry(instance, table) is None:
        return "the peer table does not name it"
    report = observation.links.get(instance.name)
    if report is None or report.version < table.version:
        return f"it has not taken over table {table.version}"
    needed = _needed(group, instance)
    if not needed:
        return "no peer of the other role runs"
    for peer in needed:
        if peer.name not in report.up:
            return f"link to {peer.name} is down: {report.down.get(peer.name, 'not reported')}"
        theirs = observation.links.get(peer.name)
        if theirs is None or theirs.version < table.version or instance.name not in theirs.up:
            return f"{peer.name} does not report it up"
    return None


def _needed(group: GroupView, instance: InstanceObs) -> tuple[InstanceObs, ...]:
    table = group.table
    opposite = {p.id for p in table.opposite(instance.name)} if table is not None else set()
    live = [i for i in group.staying if i.name in opposite and i.running and peer_entry(i, table)]
    settled = [i for i in live if i.linked]
    return tuple(settled or live)


def _lost_links(group: GroupView, instance: InstanceObs) -> str | None:
    for member in instance.members:
        if member.linked_container is None or member.container_id is None:
            continue
        if member.linked_container != member.container_id:
            return "its container restarted"
    if not group.named(instance):
        return "the peer table does not name it"
    return None
