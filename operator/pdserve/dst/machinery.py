"""What every cluster runs: scheduler, kubelets, Deployments, disruption and garbage collection.

Only effects that the operator can see are modelled. Time is the event loop's; random numbers are
the world's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pdserve.controllers.shared.caches import SCENARIO_GROUPS
from pdserve.dst.api_fields import copy
from pdserve.dst.disruption import PodIndex, status_of
from pdserve.dst.moments import now, stamp
from pdserve.dst.scheduling import refusal_of
from pdserve.dst.world_engines import SimulatedEngine
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import (
    DEPLOYMENTS,
    NODES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    Object,
    ObjectKey,
    Resource,
    key_of,
)
from pdserve.terms.json import JsonMap
from pdserve.wire import names
from pdserve.wire.pin import pinned_node

if TYPE_CHECKING:
    from pdserve.dst.world import World

UNSCHEDULABLE = "Unschedulable"
"""Reason of the scheduler's condition."""


AT_ONCE = 250
"""Pods in one step of the event loop, more than any schedule has: a Lease in real time may be held
beside."""


class Machinery:
    """See the module. One per world; `schedule`, `start`, `probe`
    are for tests to extend.
    """

    def __init__(self, world: World) -> None:
        """`world`: whose objects and engines it acts on."""
        self.world = world
        self._due: dict[str, float] = {}
        self._ips = 0
        self._waiting: list[Object] = []
        self._bound: dict[str, list[ObjectKey]] = {}
        """Pods by node, as they were at version `_bound_at`."""
        self._bound_at = -1
        self._counted: object = None
        """What budgets were last judged by."""
        self._collected = -1
        """The API's version when there was nothing left to collect."""

    async def run(self) -> None:
        """Act until cancelled."""
        steps, quiet, seen, state = 0, 0, -1, None
        while True:
            quiet = quiet + 1 if seen == self.world.api.version else 0
            seen = self.world.api.version
            before, state = state, self._state()
            changed = before != state
            # Where nothing changed, only what waits for time to pass can act.
            pods = self.world.seen(PODS) if changed else self._waiting
            self._waiting = []
            for number, pod in enumerate(pods, 1):
                self._pod(pod)
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)
            if changed:
                for deployment in self.world.seen(DEPLOYMENTS):
                    self._deployment(deployment)
            if changed or quiet == 0:
                self._budgets()
            steps += 1
            if steps % 10 == 0 and self._collected != self.world.api.version:
                before = self.world.api.version
                self.world.api.collect_garbage()
                self._collected = before if self.world.api.version == before else -1
            # Nothing moved for five seconds: nothing here is about to.
            await asyncio.sleep(self.world.step if quiet < 50 else 20 * self.world.step)

    def restart(self, pod: str, namespace: str) -> None:
        """Restart the container in place: another process, the same pod and address.

        Raises:
            KeyError: no such pod runs.
        """
        obj = self.world.get(PODS, pod, namespace)
        if obj is None:
            raise KeyError(pod)
        ip = obj["status"]["podIP"]
        moment = asyncio.get_running_loop().time()
        self.world.engines.by_ip[ip] = SimulatedEngine(pod, restarted_at=moment)
        self._ips += 1
        statuses = [
            {
                **obj["status"]["containerStatuses"][0],
                "containerID": f"sim://{obj['metadata']['uid']}-{self._ips}",
                "restartCount": 1,
            }
        ]
        self.set_status(obj, {"containerStatuses": statuses}, [("Ready", "False")])

    def _state(self) -> object:
        """Equal to what it was when no pod would act otherwise than then, but for time."""
        engines = tuple(
            (e.table and e.table.version, e.linked_once, e.draining, e.frozen)
            for e in self.world.engines.by_ip.values()
        )
        return (
            self._versions(PODS, DEPLOYMENTS),
            engines,
            frozenset(self.world.crashing),
            frozenset(self.world.broken_nodes),
        )

    def _pod(self, pod: Object) -> None:
        meta = pod["metadata"]
        if names.LABEL_ROLE in meta.get("labels", {}):
            self.world.ever.add(meta["name"])
        if pod["spec"].get("nodeName") in self.world.broken_nodes:
            return  # no node agent to act
        if "deletionTimestamp" in meta or pod.get("status", {}).get("phase") != "Running":
            self._waiting.append(pod)
        if "deletionTimestamp" in meta:
            if self._is_draining(pod):
                self.probe(pod)
            elif self._after(meta["uid"] + "-end", 0.5):
                self._forget(pod)
                self.world.api.end_pod(meta["namespace"], meta["name"])
        elif not pod["spec"].get("nodeName"):
            self.schedule(pod)
        elif pod.get("status", {}).get("phase") in ("Failed", "Succeeded"):
            return  # for good
        elif pod.get("status", {}).get("phase") != "Running":
            if self._after(meta["uid"], self.world.rng.uniform(*self.world.start_seconds)):
                self.start(pod)
        else:
            self.probe(pod)

    def _is_draining(self, pod: Object) -> bool:
        """A deleted engine goes on with what it has begun, for the grace period at most."""
        engine = self.world.engines.by_ip.get(pod.get("status", {}).get("podIP", ""))
        if engine is None or not engine.busy:
            return False
        engine.draining = True
        grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
        return not self._after(pod["metadata"]["uid"] + "-grace", grace)

    def schedule(self, pod: Object) -> None:
        """The scheduler binds a pod to its pinned node, or says why not."""
        node = pinned_node(pod) or "anywhere"
        why = self.world.unfit(node, pod)
        found = self.world.get(NODES, node, "")
        if why is None and found is not None:
            why = refusal_of(pod, found, self._pods_on(node))
        if why is not None:
            if pod["metadata"]["name"] not in self.world.refused:
                self.world.refused.add(pod["metadata"]["name"])
                said = f"0/{len(self.world.seen(NODES))} nodes are available: 1 {why}."
                refusal = [("PodScheduled", "False")]
                self.set_status(pod, {"phase": "Pending"}, refusal, UNSCHEDULABLE, said)
            return
        self.world.refused.discard(pod["metadata"]["name"])
        store = self.world.api.store(PODS)
        known = self._bound_at == store.version
        bound = copy(pod)
        bound["spec"]["nodeName"] = node
        self.world.api.commit(store, key_of(pod), "MODIFIED", pod, bound)
        self.set_status(pod, {"phase": "Pending"}, [("PodScheduled", "True")])
        if known:
            self._bound.setdefault(node, []).append(key_of(pod))
            self._bound_at = store.version

    def _pods_on(self, node: str) -> list[Object]:
        """Pods bound to a node."""
        pods = self.world.api.store(PODS)
        if self._bound_at != pods.version:
            self._bound, self._bound_at = {}, pods.version
            for key, pod in pods.objects.items():
                self._bound.setdefault(pod["spec"].get("nodeName") or "", []).append(key)
        return [pods.objects[key] for key in self._bound.get(node, ())]

    def start(self, pod: Object) -> None:
        """The kubelet starts the containers of a bound pod."""
        meta = pod["metadata"]
        self._ips += 1
        ip = f"127.1.{self._ips // 250}.{self._ips % 250 + 1}"
        name = pod["spec"]["containers"][0]["name"]
        if names.LABEL_ROLE in meta.get("labels", {}):
            broken = pod["spec"]["containers"][0].get("image") in self.world.broken_images
            self.world.engines.by_ip[ip] = SimulatedEngine(meta["name"], frozen=broken)
            self.world.ran.add(meta["name"])
        statuses = [
            {
                "name": name,
                "containerID": f"sim://{meta['uid']}-{self._ips}",
                "ready": False,
                "restartCount": 0,
                "started": False,
                "state": {"running": {"startedAt": stamp()}},
            }
        ]
        self.set_status(
            pod,
            {"phase": "Running", "podIP": ip, "containerStatuses": statuses},
            [("PodScheduled", "True"), ("Ready", "False")],
        )

    def probe(self, pod: Object) -> None:
        """The kubelet looks whether a started pod is ready, or has crashed."""
        meta = pod["metadata"]
        engine = self.world.engines.by_ip.get(pod["status"].get("podIP", ""))
        if meta["name"] in self.world.crashing:
            self._forget(pod)
            self.set_status(pod, {"phase": "Failed", "reason": "Evicted"}, [("Ready", "False")])
            self.world.crashing.discard(meta["name"])
            return
        if pod["status"]["phase"] == "Failed":
            return
        if engine is None or not engine.frozen:
            self._startup_probe(pod)
        up = engine is None or self.world.engines.ready(engine)
        held = {c["type"]: c["status"] for c in pod["status"].get("conditions", ())}
        gates = [g["conditionType"] for g in pod["spec"].get("readinessGates", ())]
        ready = "True" if up and all(held.get(g) == "True" for g in gates) else "False"
        if held.get("Ready") != ready:
            self.set_status(pod, {}, [("Ready", ready)])

    def _startup_probe(self, pod: Object) -> None:
        """The process answers: its container has started."""
        statuses = pod["status"].get("containerStatuses") or ()
        if any(status.get("started") is False for status in statuses):
            told = [{**status, "started": True} for status in statuses]
            self.set_status(pod, {"containerStatuses": told}, [])

    def set_status(
        self,
        pod: Object,
        status: Object,
        conditions: list[tuple[str, str]],
        reason: str = "",
        message: str = "",
    ) -> None:
        """Write fields of a pod's status, and conditions as (type, status)."""
        body = {
            "status": {
                **status,
                "conditions": [
                    {
                        "type": kind,
                        "status": value,
                        "reason": reason,
                        "message": message,
                        "lastTransitionTime": stamp(),
                    }
                    for kind, value in conditions
                ],
            }
        }
        meta = pod["metadata"]
        self.world.api.handle(
            KubeRequest(
                "patch", PODS, meta["namespace"], meta["name"], "status",
                body=body, patch="strategic",
            )
        )  # fmt: skip

    def _forget(self, pod: Object) -> None:
        self.world.engines.by_ip.pop(pod.get("status", {}).get("podIP", ""), None)

    def _deployment(self, deployment: Object) -> None:
        meta, spec = deployment["metadata"], deployment["spec"]
        for n in range(spec["replicas"]):
            name = f"{meta['name']}-{n}"
            pod = self.world.api.store(PODS).objects.get(ObjectKey(meta["namespace"], name))
            annotations = spec["template"]["metadata"].get("annotations")
            if pod is not None and pod["metadata"].get("annotations") != annotations:
                # A rollout, one after the other; of the template only its annotations change here.
                self.world.delete_pod(name, meta["namespace"])
                return
            if pod is None:
                owner = {
                    "apiVersion": "apps/v1", "kind": "Deployment", "name": meta["name"],
                    "uid": meta["uid"], "controller": True,
                }  # fmt: skip
                template = spec["template"]
                self.world.create(
                    PODS,
                    {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "metadata": {
                            **copy(template["metadata"]),
                            "name": name,
                            "namespace": meta["namespace"],
                            "ownerReferences": [owner],
                        },
                        "spec": copy(template["spec"]),
                    },
                )

    def _budgets(self) -> None:
        """The disruption controller looks at every PodDisruptionBudget.

        Not where what it counts is as it was, but for budgets that say something of a time.
        """
        budgets, groups = self.world.seen(POD_DISRUPTION_BUDGETS), self.world.seen(SCENARIO_GROUPS)
        replicas = tuple(group.get("spec", {}).get("replicas") for group in groups)
        counted = (self._versions(PODS, POD_DISRUPTION_BUDGETS, DEPLOYMENTS), replicas)
        same, self._counted = counted == self._counted, counted
        pods = None if same else PodIndex(self.world.seen(PODS))
        for budget in budgets:
            if "selector" not in budget.get("spec", {}):
                continue  # it selects nothing
            known = budget.get("status", {})
            if same and not (known.get("disruptedPods") or known.get("conditions")):
                continue
            pods = pods or PodIndex(self.world.seen(PODS))
            status = status_of(budget, pods.perhaps(budget), self._scale, now(), stamp())
            if status != known:
                self.world.api.budget_status(budget, status)

    def _versions(self, *kinds: Resource) -> tuple[int, ...]:
        return tuple(self.world.api.store(kind).version for kind in kinds)

    def _scale(self, owner: JsonMap, namespace: str) -> int | None:
        """Replicas of a pod's controller, by its scale subresource."""
        kinds = {"Deployment": DEPLOYMENTS, "ScenarioGroup": SCENARIO_GROUPS}
        kind = kinds.get(owner["kind"])
        if kind is None:
            return None
        found = self.world.api.store(kind).objects.get(ObjectKey(namespace, owner["name"]))
        replicas = (found or {}).get("spec", {}).get("replicas")
        return replicas if isinstance(replicas, int) else None

    def _after(self, key: str, seconds: float) -> bool:
        """True once `seconds` passed since this was first asked of `key`."""
        moment = asyncio.get_running_loop().time()
        due = self._due.setdefault(key, moment + seconds)
        return moment >= due
