"""A tiny cluster in memory for the group planner: pods, nodes, engines, routes, a virtual clock.

It carries out the planner's actions as `controllers` does, one by one, so that a test may stop
("crash") after any of them; and it moves everything else by single steps whose order the test
chooses: scheduler and kubelet, engines linking, route writes, requests, faults. The planner sees it
only through raw pod and node objects, read by the real `observe`, `health` and `topology` code.
Every action is checked against the architecture's invariants when it is carried out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.support import group_checks as checks
from tests.support.builders import LEVELS, RESOURCE
from tests.support.group_checks import BrokenError
from tests.support.group_cluster import MOST_READ, GroupCluster
from tests.support.group_objects import Pod, foreign_pods

from pdserve.groups import types as t
from pdserve.groups.claims import must_be_recorded_first, newest, recalled, reservations, with_room
from pdserve.groups.flip_types import FlipRole
from pdserve.groups.plan import plan
from pdserve.groups.polls import polls
from pdserve.groups.rollout_types import UNKNOWN
from pdserve.groups.routable import routable
from pdserve.groups.spares import SpareRule
from pdserve.placement import GroupRequest
from pdserve.terms import Role
from pdserve.topology import Fabric, TreeSpec, build_fabric, node_view, pod_view, reservation_of

SLOTS: dict[Role, int] = {"prefill": 2, "decode": 4}
_TREES: dict[str, Fabric] = {}
"""The tree, by all that it depends on."""


def wanted(
    counts: str,
    replicas: int = 1,
    devices: int = 8,
    revision: str = "r1",
    members: int = 1,
    **more: Any,
) -> t.Wanted:
    """`wanted("2P1D", 2)`: 2 P/D groups of 2 prefills and 1 decode, each of so many `members`."""
    p, d = counts.removesuffix("D").split("P")
    return t.Wanted(
        name="shop-chat",
        replicas=replicas,
        prefill=t.RoleWanted(int(p), devices, RESOURCE, members=members),
        decode=t.RoleWanted(int(d), devices, RESOURCE, members=members),
        revision=revision,
        **more,
    )


class World(GroupCluster):
    """The cluster and its operator. `settle` runs all steps fairly until nothing changes."""

    def __init__(self, drawing: str, target: t.Wanted) -> None:
        super().__init__(drawing)
        self.target = target
        self.repairs: tuple[t.Repair, ...] = ()
        self.claims: tuple[t.DeviceClaim, ...] = ()
        """In status."""
        self.rollout = UNKNOWN
        """In status."""
        self.peers: list[World] = [self]
        """All ScenarioGroups on these machines, by rank: scenario priority, then age."""
        self.last: t.Plan | None = None
        self.log: list[str] = []
        self.templates: dict[str, t.Wanted] = {}
        """What was wanted at each revision: the templates that are kept."""
        self.replaced: set[str] = set()
        self._versions: dict[int, int] = {}
        self._plans = 0
        self.made: tuple[t.Observation, Fabric, t.Plan] | None = None
        """The newest plan and what it was made from."""

    def all_pods(self) -> list[Pod]:
        return [pod for world in self.peers for pod in world.pods.values()]

    def observation(self) -> t.Observation:
        """Everything as `controllers` would show it."""
        instances = self.instances()
        asked = polls(instances, self.tables, self.routed)
        by_name = {i.name: i for i in instances}
        return t.Observation(
            wanted=self.target,
            instances=instances,
            tables=dict(self.tables),
            links={n: r for n in asked.links if (r := self.link_report(by_name[n])) is not None},
            drains={n: d for n in asked.drains if (d := self.drain_report(by_name[n])) is not None},
            repairs=self.repairs,
            rollout=self.rollout,
            routed=self.routed,
            has_routes=True,
            now=self.now,
            former={
                revision: replace(
                    self.target, revision=revision, prefill=_as(self.target.prefill, then.prefill),
                    decode=_as(self.target.decode, then.decode),
                )
                for revision, then in self.templates.items()
                if revision != self.target.revision
            },
            claims=self.all_claims(),
            ahead=self._ahead(),
        )  # fmt: skip

    def all_claims(self) -> tuple[t.DeviceClaim, ...]:
        """Those in status and those in memory."""
        found = newest(self.claims, self.lost.values())
        return tuple(sorted(found, key=lambda c: (c.group_index, c.slot)))

    def _ahead(self) -> tuple[GroupRequest, ...]:
        before = self.peers[: self.peers.index(self)]
        return tuple(
            w.last.blocked_request for w in before if w.last and w.last.blocked_request is not None
        )

    def fabric(self) -> Fabric:
        """The tree with what is free."""
        pods = self.all_pods()
        claims = [c for w in self.peers for c in w.all_claims()]
        held = [(p.new.name, p.new.node, p.bound, p.failed, p.devices) for p in pods]
        key = f"{held} {claims} {self.machines}"
        if key not in _TREES:
            if len(_TREES) > MOST_READ:
                _TREES.clear()
            _TREES[key] = self._tree(pods, claims)
        return _TREES[key]

    def _tree(self, pods: list[Pod], claims: list[t.DeviceClaim]) -> Fabric:
        read = [pod_view(self.raw_pod(p)) for p in pods]
        holding = {p.name for p in read if p.devices}
        left = [c for c in claims if c.pod not in holding]
        views = [
            node_view(
                self.raw_node(name) or {},
                [
                    *(p for p in read if p.node == name),
                    *map(pod_view, foreign_pods(machine)),
                ],
            )
            for name, machine in self.machines.items()
        ]
        return build_fabric(
            TreeSpec("test", LEVELS),
            views,
            [*(r for p in read for r in reservation_of(p)), *reservations(left)],
        )

    def operator(self, stop_after: int | None = None, refused_after: int | None = None) -> t.Plan:
        """Plan, and carry out all actions, or crash after some (status is then not written).

        `refused_after` so many pods of the first creation; the others are deleted, the plan ends.
        """
        seen, tree = self.observation(), self.fabric()
        made = self._plan(seen, tree)
        self.last = made
        if must_be_recorded_first(made, self.claims):
            self.claims = made.claims
            self._decided(seen)
        for k, action in enumerate(made.actions):
            if stop_after is not None and k >= stop_after:
                self.log.append("operator crashes")
                return made
            if refused_after is not None and isinstance(action, t.CreateGroup | t.CreateInstance):
                self._refuse(action.pods, refused_after)
                break
            self._execute(action, seen)
        self.repairs, self.claims, self.rollout = made.repairs, made.claims, made.rollout
        self._decided(seen)
        return made

    def _refuse(self, pods: tuple[t.NewPod, ...], after: int) -> None:
        known = set(self.pods)
        for new in pods[: min(after, len(pods) - 1)]:
            self._post(new)
        for name in sorted(set(self.pods) - known):
            self.pods[name].drain_started = self.now
            self.pods[name].terminating = True

    def _decided(self, seen: t.Observation) -> None:
        """Status says what is kept of all that was claimed."""
        for claim in seen.claims:
            self.lost.pop(claim.pod, None)

    def _plan(self, seen: t.Observation, tree: Fabric) -> t.Plan:
        """The plan; made anew only when what is seen is not what was seen the time before."""
        if self.made is not None and self.made[0] == seen and self.made[1] is tree:
            return self.made[2]
        made = plan(seen, tree)
        reordered = replace(seen, instances=seen.instances[::-1])
        self._plans += 1
        rechecked = bool(made.actions) or self._plans % 8 == 0
        if rechecked and repr(plan(reordered, tree)) != repr(made):
            raise BrokenError("invariant 8: the same inputs gave another plan")
        self.made = (seen, tree, made)
        return made

    def restart_operator(self) -> None:
        """Another process: its memory is what the peer tables tell."""
        self.last = None
        at = {**self.templates, self.target.revision: self.target}
        self.lost = {}
        found = recalled(
            self.claims, self.tables, self.instances(),
            lambda revision, role: at.get(revision, self.target).role(role).takes,
        )  # fmt: skip
        self.lost = with_room(found, self.fabric())

    def write_routes(self) -> None:
        """What the PDService's reconciler does."""
        instances = self.instances()
        rule = SpareRule(self.target.spares, self.target.decode.count, self.routed)
        slots = {i.revision: SLOTS for i in instances}
        self.routes = routable(instances, self.tables, slots, rule)
        for group in self.routes:
            checks.routed(self, group)

    def _execute(self, action: t.Action, seen: t.Observation) -> None:
        self.log.append(f"{self.now - 1_000_000:.0f}: {checks.short(action)}")
        match action:
            case t.CreateGroup(pods=pods):
                checks.rolled(self, pods[0].revision, seen)
                for new in pods:
                    self._post(new)
            case t.CreateInstance(pods=pods):
                checks.needed(self, pods[0], seen)
                for new in pods:
                    self._post(new)
            case t.PublishTable():
                self._publish(action)
            case t.DeleteTable(group_index=index):
                self.tables.pop(index, None)
            case t.BeginDrain(name=name, uid=uid, flip_to=role) if self.holds(name, uid):
                checks.given_up(self, name, seen)
                self.pods[name].drain_started, self.pods[name].flip_to = self.now, role
            case FlipRole(name=name, uid=uid, role=role) if self.holds(name, uid):
                checks.flipped(self, name)
                self.pods[name].flip(role)
            case t.DeletePod(name=name, uid=uid, force=force):
                if self.holds(name, uid):
                    checks.deletion(self, name, seen)
                    self.pods[name].terminating = True
                    if force:
                        self.vanish(name)
            case _:
                self._mark(action)

    def _mark(self, action: t.Action) -> None:
        marks = t.MarkLinked | t.MarkUnlinked | t.TellLeader | t.MoveScaleUnit
        if not isinstance(action, marks) or not self.holds(action.name, action.uid):
            return
        pod = self.pods[action.name]
        match action:
            case t.MarkLinked(container_id=container):
                pod.linked_container = container
            case t.MarkUnlinked():
                pod.linked_container, pod.was_linked = None, True
            case t.TellLeader(address=address):
                pod.leader_address = address
            case t.MoveScaleUnit(present=present):
                pod.scale_unit = present

    def _post(self, new: t.NewPod) -> None:
        if new.name in self.pods:
            return  # 409: it exists
        self.serial += 1
        same = new.revision == self.target.revision
        role = (self.target if same else self.templates[new.revision]).role(new.role)
        if new.member:
            new = replace(new, leader_uid=self.pods[new.instance].uid)
        beside = dict(role.requests).get("memory", 0)
        self.pods[new.name] = Pod(new, f"uid-{self.serial}", self.now, role.devices, beside)
        self.pods[new.name].scale_unit = new.scale_unit

    def _publish(self, action: t.PublishTable) -> None:
        index, table = action.group_index, action.table
        if table.version <= self._versions.get(index, 0) and index in self.tables:
            raise BrokenError(f"table {index} version does not rise: {table.version}")
        old = self.tables.get(index)
        for peer in table.instances:
            before = old.peer(peer.id) if old is not None else None
            if before is not None and before != peer:
                raise BrokenError(f"the entry of {peer.id} changed without cause")
        self.tables[index] = table
        self._versions[index] = table.version

    def settle(self, limit: int = 400) -> t.Plan:
        """Run fairly until the planner asks for nothing and nothing else changes.

        Raises:
            BrokenError: it does not come to rest.
        """
        for _ in range(limit):
            changed, made = self.round()
            if changed or made.actions:
                continue
            if made.requeue_after is None:
                return made
            self.advance(made.requeue_after + 0.001)
        raise BrokenError("no rest:\n" + "\n".join(self.log[-30:]))

    def round(self) -> tuple[bool, t.Plan]:
        """One fair round of all parts: did the cluster change, and the plan made at its end."""
        changed = self.each(self.kubelet)
        changed |= self.push_tables()
        changed |= self.each(self.link)
        before = self.routes
        self.write_routes()
        changed |= before != self.routes
        changed |= self.each(self.finish)
        return changed, self.operator()

    def each(self, step: Callable[[str], bool]) -> bool:
        """One step for every pod, in order; True if any changed something."""
        return sum([step(name) for name in sorted(self.pods)]) > 0

    def condition(self, kind: str) -> t.ConditionState:
        """A condition of the last plan."""
        assert self.last is not None
        return next(c for c in self.last.conditions if c.type == kind)

    def want(self, change: Callable[[t.Wanted], t.Wanted]) -> None:
        """Edit what is wanted; the template of the revision before is kept."""
        self.templates[self.target.revision] = self.target
        self.target = change(self.target)


def counts(target: t.Wanted, prefill: int, decode: int) -> t.Wanted:
    """The same with other counts per group."""
    return replace(
        target,
        prefill=replace(target.prefill, count=prefill),
        decode=replace(target.decode, count=decode),
    )


def _as(now: t.RoleWanted, then: t.RoleWanted) -> t.RoleWanted:
    return replace(then, count=now.count)
