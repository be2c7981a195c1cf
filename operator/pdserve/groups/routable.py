"""Which instances a gateway may route to (invariant 1). `controllers` writes them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pdserve.groups.instances import InstanceObs
from pdserve.groups.spares import NO_SPARES, SpareRule, serving
from pdserve.terms import ROLES, Role
from pdserve.wire.names import PORT_HTTP, PORT_TRANSFER
from pdserve.wire.peers import Peer, PeerTable
from pdserve.wire.routes import RouteGroup, RouteInstance


def is_routable(instance: InstanceObs, table: PeerTable | None) -> bool:
    """Linked for the container that runs, Ready, staying, sound, and in the table as it is now."""
    return (
        instance.fault is None
        and not instance.terminating
        and instance.drain_started is None
        and instance.running
        and instance.ready
        and instance.linked
        and peer_entry(instance, table) is not None
    )


def peer_entry(instance: InstanceObs, table: PeerTable | None) -> Peer | None:
    """The table's entry for this very instance: same name, role, and address of each member."""
    entry = table.peer(instance.name) if table is not None else None
    if entry is None or entry.role != instance.role:
        return None
    return entry if addresses(instance) == addresses_in(entry) else None


def addresses(instance: InstanceObs) -> tuple[str, ...] | None:
    """Its endpoint, then where the other members' KV is; None while one is not known."""
    members, pod_ip = instance.members, instance.pod_ip
    if pod_ip is None or len(members) < instance.size:
        return None
    if len(members) == 1:
        return (endpoint(pod_ip),)
    others = [transfer(m.pod_ip) for m in members[1:] if m.pod_ip is not None]
    return (endpoint(pod_ip), *others) if len(others) == len(members) - 1 else None


def addresses_in(entry: Peer) -> tuple[str, ...]:
    """The same as an entry of a table says it."""
    return entry.endpoint, *[node.transfer for node in entry.nodes[1:]]


def routable(
    instances: Iterable[InstanceObs],
    tables: Mapping[int, PeerTable],
    slots: Mapping[str, Mapping[Role, int]],
    rule: SpareRule = NO_SPARES,
) -> tuple[RouteGroup, ...]:
    """Route groups by index; instances by role, then name.

    A group is listed only while it has both roles of one revision (of two, the one with more
    instances): a prefill without a decode could only make its client wait.

    Args:
        instances: of one ScenarioGroup.
        tables: newest peer table by group index.
        slots: b_p and b_d of every revision among `instances`.
        rule: which decodes stand back as spares.
    """
    ready: dict[tuple[int, str], list[InstanceObs]] = {}
    for instance in instances:
        if is_routable(instance, tables.get(instance.group_index)):
            key = (instance.group_index, instance.revision)
            ready.setdefault(key, []).append(instance)
    groups: dict[int, RouteGroup] = {}
    for (index, revision), members in sorted(ready.items()):
        former = groups.get(index)
        if {i.role for i in members} != set(ROLES):
            continue
        if former is not None and len(former.instances) >= len(members):
            continue
        members.sort(key=lambda i: (ROLES.index(i.role), i.name))
        served = serving(members, rule)
        routes = tuple(_route(i, tables[index], slots[revision]) for i in served)
        groups[index] = RouteGroup(index, revision, routes)
    return tuple(groups[index] for index in sorted(groups))


def endpoint(pod_ip: str) -> str:
    """HTTP URL of an instance (IPv6 in brackets)."""
    return f"http://{host(pod_ip)}:{PORT_HTTP}"


def transfer(pod_ip: str) -> str:
    """`host:port` of a member's KV transport."""
    return f"{host(pod_ip)}:{PORT_TRANSFER}"


def host(pod_ip: str) -> str:
    """An address as a URL's host."""
    return f"[{pod_ip}]" if ":" in pod_ip else pod_ip


def _route(instance: InstanceObs, table: PeerTable, slots: Mapping[Role, int]) -> RouteInstance:
    entry = peer_entry(instance, table)
    assert entry is not None  # noqa: S101 - is_routable was checked for each of them
    return RouteInstance(
        instance.name, instance.role, entry.endpoint, slots[instance.role], entry.domains
    )
