"""Gather and publish: the peer table of a group, version by version (P/D-Serve 3.1, 3.2).

An instance enters once it runs and the addresses of its members are known, and leaves when
`removal.finished` says so. Entries of the others are carried over untouched: an instance that is
restarted in place or not ready keeps its entry. The first table waits for both roles, as links need
two ends.
"""

from __future__ import annotations

from pdserve.groups.removal import finished
from pdserve.groups.routes import addresses, addresses_in, endpoint, transfer
from pdserve.groups.types import InstanceObs, Observation, PublishTable
from pdserve.groups.view import GroupView, PlanDraft, leaving
from pdserve.terms import ROLES
from pdserve.wire.peers import Peer, PeerNode, PeerTable


def publish_table(group: GroupView, observation: Observation, draft: PlanDraft) -> None:
    """Publish the next version if members or tier costs changed."""
    old = group.table
    by_name = {i.name: i for i in group.members}
    kept = tuple(
        p for p in (old.instances if old else ()) if _stays(p, by_name, group, observation)
    )
    names = {p.id for p in kept}
    gathered = [
        i
        for i in group.staying
        if i.running
        and addresses(i) is not None
        and i.name not in names
        and i.revision == group.revision
    ]
    entries = kept + tuple(_peer(i, draft) for i in gathered)
    if (old is None or not old.instances) and {p.role for p in entries} != set(ROLES):
        return
    costs = draft.fabric.spec.tier_costs
    if old is not None and entries == old.instances and dict(old.tier_costs) == costs:
        return
    version = old.version + 1 if old is not None else 1
    table = PeerTable(f"{observation.wanted.name}-{group.index}", version, entries, costs)
    gone = sorted({p.id for p in (old.instances if old else ())} - {p.id for p in entries})
    came = [i.name for i in gathered]
    told = [f"{word} {', '.join(x)}" for word, x in (("adds", came), ("drops", gone)) if x]
    draft.act(
        PublishTable(group.index, table),
        f"group {group.index} table {version} {' and '.join(told) or 'has new tier costs'}",
    )


def _stays(
    peer: Peer, by_name: dict[str, InstanceObs], group: GroupView, observation: Observation
) -> bool:
    instance = by_name.get(peer.id)
    if instance is None:
        return False
    if addresses(instance) not in (None, addresses_in(peer)):
        return False
    return not (leaving(instance) and finished(group, instance, observation))


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
