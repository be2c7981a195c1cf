"""Pods, nodes, engines and routes of a ScenarioGroup in memory, under a virtual clock.

Each method is one step of scheduler and kubelet, of engines that link, of requests, or a fault; a
test chooses their order. `group_world` adds the operator.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from tests.support.builders import RESOURCE, draw
from tests.support.group_objects import (
    Machine,
    Pod,
    Process,
    raw_node,
    raw_pod,
)
from tests.support.observed import instance_obs

from pdserve.groups import types as t
from pdserve.groups.health import HealthLimits
from pdserve.groups.instances import InstanceObs
from pdserve.groups.observe import joined
from pdserve.wire.links import DrainReport, LinkReport
from pdserve.wire.peers import PeerTable
from pdserve.wire.routes import RouteGroup

MOST_READ = 10_000
_READ: dict[Hashable, InstanceObs] = {}
"""What the real code reads of a pod, by the pod's state; thousands of schedules meet the same."""
LIMITS = HealthLimits(node_suspect=30, startup_deadline=300, unschedulable_seconds=15)


class GroupCluster:
    """The cluster of one ScenarioGroup. Methods are single steps."""

    def __init__(self, drawing: str) -> None:
        self.now = 1_000_000.0
        self.machines = {
            n.name: Machine(n.name, dict(n.labels), n.capacity[RESOURCE], n.used[RESOURCE])
            for n in draw(drawing)
        }
        self.pods: dict[str, Pod] = {}
        self.tables: dict[int, PeerTable] = {}
        self.routes: tuple[RouteGroup, ...] = ()
        self.lost: dict[str, t.DeviceClaim] = {}
        """What the operator's memory adds to the claims of the status."""
        self.serial = 0
        """Rises with each uid and container."""

    def all_pods(self) -> list[Pod]:
        """Pods on these machines, of other ScenarioGroups too."""
        return list(self.pods.values())

    def instances(self) -> tuple[InstanceObs, ...]:
        """All pods, read by the real code."""
        return joined(self._instance(pod) for pod in self.pods.values())

    def _instance(self, pod: Pod) -> InstanceObs:
        machine = self.machines.get(pod.new.node)
        key = (pod.state, str(machine), self.now)
        if key not in _READ:
            if len(_READ) > MOST_READ:
                _READ.clear()
            node = self.raw_node(pod.new.node)
            _READ[key] = instance_obs(self.raw_pod(pod), node, self.now, LIMITS)
        return _READ[key]

    @property
    def routed(self) -> frozenset[str]:
        """Ids in the route table."""
        return frozenset(i.id for g in self.routes for i in g.instances)

    def kubelet(self, name: str) -> bool:
        """One step of scheduler and kubelet for one pod; True if something changed."""
        pod = self.pods.get(name)
        machine = self.machines.get(pod.new.node) if pod else None
        if pod is None or machine is None or machine.silent_since is not None:
            return False
        if pod.terminating:
            # preStop drains: the pod ends when its requests have.
            if pod.requests and pod.process is not None and not pod.failed:
                return False
            self.vanish(name)
        elif not pod.bound:
            held = sum(
                p.devices
                for p in self.all_pods()
                if p.new.node == machine.name and p.bound and not p.failed
            )
            if held + pod.devices + machine.foreign > machine.capacity:
                return False
            pod.bound = True
        elif pod.process is None and not pod.failed and not pod.crash_loop:
            self.serial += 1
            pod.process = Process(f"container-{self.serial}")
        else:
            return False
        return True

    def push_tables(self) -> bool:
        """The operator's linker gives every sound running member the newest table."""
        changed = False
        for instance in self.instances():
            leader = self.pods.get(instance.name)
            process = None if leader is None else leader.process
            table = self.tables.get(instance.group_index)
            if process is None or table is None or table.peer(instance.name) is None:
                continue
            if instance.fault is None and process.table != table:
                process.table = table
                process.up &= {p.id for p in table.opposite(instance.name)}
                changed = True
        return changed

    def link(self, name: str) -> bool:
        """One engine verifies what links it can: the other end runs and its table names it."""
        pod = self.pods.get(name)
        if pod is not None and pod.process is not None and pod.new.member:
            return self._follow(pod.process, self.pods.get(pod.new.instance))
        if pod is None or pod.process is None or pod.process.table is None:
            return False
        process, table = pod.process, pod.process.table
        before = (set(process.up), process.completed)
        wanted_peers = {p.id for p in table.opposite(name)}
        process.up = {p for p in wanted_peers if self._answers(p, name)}
        process.completed = process.completed or process.up == wanted_peers
        return before != (process.up, process.completed)

    def _follow(self, process: Process, leader: Pod | None) -> bool:
        """Another member is well once its leader is."""
        well = leader is not None and leader.process is not None and leader.process.completed
        changed, process.completed = well and not process.completed, process.completed or well
        return changed

    def request(self) -> None:
        """One request arrives at every routed instance."""
        for name in self.routed:
            pod = self.pods.get(name)
            if pod is not None and pod.process is not None and not pod.process.draining:
                pod.requests += 1

    def finish(self, name: str) -> bool:
        """All requests of one pod end."""
        pod = self.pods.get(name)
        changed = pod is not None and pod.requests > 0
        if pod is not None:
            pod.requests = 0
        return changed

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    def restart(self, name: str) -> None:
        """The engine's process dies; kubelet starts a new one in the same container slot."""
        pod = self.pods.get(name)
        if pod is not None and pod.process is not None:
            pod.process, pod.requests = None, 0
            pod.restarts += 1
            for other in self.pods.values():
                if other.process is not None:
                    other.process.up.discard(name)

    def crash_loop(self, name: str) -> None:
        """It dies again and again."""
        self.restart(name)
        if name in self.pods:
            self.pods[name].crash_loop, self.pods[name].restarts = True, 3

    def fail(self, name: str) -> None:
        """Evicted by its kubelet."""
        self.restart(name)
        if name in self.pods:
            self._note(self.pods[name])
            self.pods[name].failed = True

    def delete_from_outside(self, name: str) -> None:
        """kubectl delete pod."""
        if name in self.pods:
            self.pods[name].terminating = True

    def silence(self, node: str) -> None:
        """The node stops answering; what runs there may go on."""
        machine = self.machines.get(node)
        if machine is not None and machine.silent_since is None:
            machine.silent_since = self.now

    def hear_again(self, node: str) -> None:
        """The node is back."""
        if node in self.machines:
            self.machines[node].silent_since = None

    def destroy(self, node: str) -> None:
        """The Node object is deleted; its pods' processes are gone."""
        if self.machines.pop(node, None) is not None:
            for pod in [p for p in self.pods.values() if p.new.node == node]:
                self.restart(pod.new.name)

    def holds(self, name: str, uid: str) -> bool:
        return name in self.pods and self.pods[name].uid == uid

    def vanish(self, name: str) -> None:
        self.restart(name)
        if name in self.pods:
            self._note(self.pods.pop(name))

    def _note(self, pod: Pod) -> None:
        """The operator's cache shows that the pod's devices came free."""
        new = pod.new
        if not pod.failed and pod.drain_started is None:
            self.lost[new.name] = t.DeviceClaim(
                new.name, new.leader_uid or pod.uid, new.slot, new.role, new.group_index, new.node,
                pod.takes,
            )  # fmt: skip

    def _answers(self, peer: str, me: str) -> bool:
        pod = self.pods.get(peer)
        table = pod.process.table if pod is not None and pod.process is not None else None
        return table is not None and table.peer(me) is not None

    def link_report(self, instance: InstanceObs) -> LinkReport | None:
        process = self.pods[instance.name].process
        if process is None:
            return None
        if process.table is None:
            return LinkReport(0, frozenset(), {})
        down = {p.id for p in process.table.opposite(instance.name)} - process.up
        return LinkReport(
            process.table.version, frozenset(process.up), dict.fromkeys(sorted(down), "no answer")
        )

    def drain_report(self, instance: InstanceObs) -> DrainReport | None:
        pod = self.pods[instance.name]
        if pod.process is None:
            return None
        pod.process.draining = True
        return DrainReport(pod.requests, 0, 0)

    def raw_pod(self, pod: Pod) -> dict[str, Any]:
        """The Pod as the API server would show it."""
        return raw_pod(pod, self.machines.get(pod.new.node), self.now)

    def raw_node(self, name: str) -> dict[str, Any] | None:
        """The Node as the API server would show it."""
        machine = self.machines.get(name)
        return None if machine is None else raw_node(machine)
