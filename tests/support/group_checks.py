"""The architecture's invariants, checked on the small world while the planner's actions run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tests.support.builders import RESOURCE

from pdserve.groups import types as t
from pdserve.groups.instances import InstanceObs
from pdserve.groups.routable import is_routable
from pdserve.groups.view import group_views, leaving
from pdserve.terms import ROLES
from pdserve.wire.names import instance_name
from pdserve.wire.routes import RouteGroup

if TYPE_CHECKING:
    from tests.support.group_world import World


class BrokenError(AssertionError):
    """An invariant does not hold; the message says which."""


def at_every_moment(world: World) -> None:
    """What must hold at every moment."""
    held: Counter[str] = Counter()
    for pod in (p for w in world.peers for p in w.pods.values()):
        if pod.bound and not pod.failed:
            held[pod.new.node] += pod.devices
    for name, devices in held.items():
        machine = world.machines.get(name)
        if machine is not None and devices + machine.foreign > machine.capacity:
            raise BrokenError(f"node {name} is over-allocated")
    carriers = Counter(
        p.new.group_index for p in world.pods.values() if p.scale_unit and not p.terminating
    )
    if any(count > 1 for count in carriers.values()):
        raise BrokenError("two scale units in one P/D group")
    claimed = Counter(c.pod for c in world.claims)
    if twice := [pod for pod, count in claimed.items() if count > 1]:
        raise BrokenError(f"{twice} are claimed twice")


def ledger(world: World) -> None:
    """Invariant 13, of one that had all that it wants: pods and claims hold as many devices as are
    wanted, and no device is claimed that something else holds.
    """
    target = world.target
    holding = {name: pod.devices for name, pod in world.pods.items() if not pod.failed}
    claims = [c for c in world.all_claims() if c.pod not in holding]
    roles = target.prefill, target.decode
    wanted = target.replicas * sum(r.count * r.members * r.devices for r in roles)
    owned = sum(holding.values()) + sum(dict(c.takes)[RESOURCE] for c in claims)
    if owned < wanted:
        raise BrokenError(
            f"invariant 13: {target.name} owns {owned} of {wanted} devices: {sorted(holding)} "
            f"{sorted(c.pod for c in claims)}"
        )
    for name, machine in world.machines.items():
        pods = [p for p in world.all_pods() if p.new.node == name and not p.failed]
        left = [
            c
            for w in world.peers
            for c in w.all_claims()
            if c.node == name and (c.pod not in w.pods or w.pods[c.pod].failed)
        ]
        held = sum(p.devices for p in pods) + sum(dict(c.takes)[RESOURCE] for c in left)
        if held + machine.foreign > machine.capacity:
            raise BrokenError(
                f"invariant 13: {held} devices of {name} are held or claimed: "
                f"{[p.new.name for p in pods]} {[c.pod for c in left]}"
            )


def routed(world: World, group: RouteGroup) -> None:
    """Invariant 1, and never two revisions in one group."""
    for route in group.instances:
        pods = [p for p in world.pods.values() if p.new.instance == route.id]
        if len(pods) != pods[0].new.members:
            raise BrokenError(f"invariant 1: {route.id} is routed without some of its pods")
        for pod in pods:
            process = pod.process
            if process is None or not process.completed or pod.failed or pod.terminating:
                raise BrokenError(f"invariant 1: {route.id} is routed but cannot serve")
            if pod.drain_started is not None:
                raise BrokenError(f"invariant 1: {route.id} is routed but drains")
            if pod.linked_container != process.container:
                raise BrokenError(f"invariant 1: {route.id} is routed by a former process's links")
    if len({world.pods[r.id].new.revision for r in group.instances}) > 1:
        raise BrokenError("a group of two revisions is routed")


def needed(world: World, new: t.NewPod, seen: t.Observation) -> None:
    """Invariant 4: a fault replaces one instance, and growth stops at what is wanted.

    One that this very plan sends to the other role has left its own.
    """
    flipping = {p.new.instance for p in world.pods.values() if p.flip_to is not None}
    staying = [
        i
        for i in seen.instances
        if i.group_index == new.group_index
        and (i.role, i.revision) == (new.role, new.revision)
        and not leaving(i)
        and i.name not in flipping
    ]
    if len(staying) >= world.target.kept(new.role):
        raise BrokenError(f"invariant 4: {new.name} is one {new.role} too many")
    if new.replaces is not None and new.name not in world.pods:
        pod_is_new = new.replaces not in world.replaced
        gone = all(p.new.replaces != new.replaces for p in world.pods.values())
        if not pod_is_new and not gone:
            raise BrokenError(f"invariant 4: {new.replaces} is replaced twice")
        world.replaced.add(new.replaces)


def flipped(world: World, name: str) -> None:
    """A role changes only where no gateway, no peer and no mark leads to the instance."""
    pod = world.pods[name]
    table = world.tables.get(pod.new.group_index)
    named = table is not None and table.peer(name) is not None
    if name in world.routed or named or pod.linked_container is not None:
        raise BrokenError(f"invariant 1: {name} changes its role while it serves")


def given_up(world: World, pod: str, seen: t.Observation) -> None:
    """Invariants 2, 3 and 7: a sound instance goes only when it is surplus or outdated."""
    name = instance_name(pod)
    me = next(i for i in seen.instances if i.name == name)
    table = world.tables.get(me.group_index)
    if name not in world.routed and (table is None or table.peer(name) is None):
        return  # it never served
    if me.drain_started is not None:
        return  # an operator that died had begun: the other members follow
    groups = {i.group_index for i in seen.instances if not leaving(i)}
    mine = [
        i
        for i in seen.instances
        if i.group_index == me.group_index and i.role == me.role and not leaving(i)
    ]
    surplus = len(mine) > world.target.role(me.role).count or len(groups) > world.target.replicas
    if not surplus and me.revision == world.target.revision:
        raise BrokenError(f"invariant 2 or 7: {name} is sound, wanted, and drained")
    unrolled(world, me, seen)
    outage = world.target.rollout.allow_outage
    if world.target.replicas and serving_without(world, frozenset()) and not outage:
        going = {p.new.instance for p in world.pods.values() if p.drain_started is not None}
        others = going | {name}
        doomed = {
            instance_name(a.name)
            for a in (world.last.actions if world.last else ())
            if isinstance(a, t.BeginDrain)
        }
        if not serving_without(world, frozenset(others | doomed)):
            raise BrokenError(f"invariant 3: without {name} nothing serves")


def rolled(world: World, revision: str, seen: t.Observation) -> None:
    """A P/D group is made: not for a rollout that is paused, and not past its canary."""
    target = world.target
    live = _revisions(seen)
    if revision != target.revision or set(live.values()) <= {revision}:
        return
    if target.rollout.paused:
        raise BrokenError(f"a paused rollout makes a P/D group of {revision}")
    most = target.rollout.canary
    back = seen.rollout.stable in ("", revision)
    has = sum(r == revision for r in live.values())
    if most is not None and not back and has >= most:
        raise BrokenError(f"the canary of {most} P/D groups gets another one")


def unrolled(world: World, me: InstanceObs, seen: t.Observation) -> None:
    """A sound instance is given up with its P/D group.

    Invariant 7: that is no serving group of the wanted revision while one of another stays. While
    the rollout is paused it is none of another revision, unless more go than the one that a
    rollout adds.
    """
    target, live = world.target, _revisions(seen)
    (mine,) = (g for g in group_views(seen) if g.index == me.group_index)
    here = [i for i in mine.staying if i.role == me.role]
    if len(here) > target.role(me.role).count or not target.replicas or mine.gone:
        return
    if me.revision == target.revision:
        if mine.serving and set(live.values()) != {me.revision}:
            raise BrokenError(f"invariant 7: {me.name} goes before another revision")
        return
    few = len(live) <= target.replicas + 1
    if target.rollout.paused and mine.revision == me.revision and few:
        raise BrokenError(f"a paused rollout gives up {me.name}")


def _revisions(seen: t.Observation) -> dict[int, str]:
    """The revision of each P/D group that stays."""
    groups = (g for g in group_views(seen) if not g.gone)
    return {g.index: g.revision for g in groups}


def deletion(world: World, name: str, seen: t.Observation) -> None:
    """Invariants 1 and 5: out of routes and table, and idle or past its deadline."""
    pod = world.pods[name]
    name = instance_name(name)
    me = next(i for i in seen.instances if i.name == name)
    if name in world.routed:
        raise BrokenError(f"invariant 1: {name} is deleted while routed")
    if me.fault is None and not me.terminating and not pod.terminating:
        if pod.drain_started is None:
            table = world.tables.get(pod.new.group_index)
            if table is not None and table.peer(name) is not None:
                raise BrokenError(f"invariant 5: {name} is deleted without a drain")
            return
        late = world.now - pod.drain_started >= world.target.drain_seconds
        if pod.requests and not late and pod.process is not None:
            raise BrokenError(f"invariant 5: {name} is deleted with {pod.requests} requests")


def serving_without(world: World, without: frozenset[str]) -> bool:
    """Some group has a prefill and a decode of one revision that can serve."""
    kinds = {
        (i.group_index, i.revision, i.role)
        for i in world.instances()
        if i.name not in without and is_routable(i, world.tables.get(i.group_index))
    }
    return any({(g, r, role) for role in ROLES} <= kinds for g, r, _ in kinds)


def short(action: t.Action) -> str:
    """One line of a world's log."""
    match action:
        case t.CreateGroup(group_index=index, pods=pods):
            return f"CreateGroup {index} {[(p.name, p.node) for p in pods]}"
        case t.CreateInstance(pod=pod, reason=reason):
            return f"CreateInstance {pod.name} on {pod.node}: {reason}"
        case t.PublishTable(group_index=index, table=table):
            return f"PublishTable {index} v{table.version} {[p.id for p in table.instances]}"
        case _:
            return str(action)
