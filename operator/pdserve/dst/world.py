"""A cluster in memory around the real operator: API model, scheduler, kubelet, engines, GC.

Time is virtual (`pdserve.dst.virtual_time`), all chance comes from one seed. Only what the
operator reads is modelled: pods are bound to their pinned nodes, start, link as their peer tables
say, become Ready by readiness gate and engine, and end when deleted; gateway pods become Ready.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from pdserve.api import KINDS
from pdserve.api.crd import crd_manifest
from pdserve.controllers.core import Core
from pdserve.controllers.ratio.ratio_loop import NoSource
from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.controllers.shared.instance_calls import EngineApi
from pdserve.controllers.shared.tokens import Tokens
from pdserve.dst.api_fields import copy
from pdserve.dst.api_kinds import StoredKind, kind_of_crd
from pdserve.dst.api_net import FakeTransport, Faults
from pdserve.dst.api_server import FakeApi
from pdserve.dst.machinery import Machinery
from pdserve.dst.moments import now, stamp
from pdserve.dst.recorder import Recorder
from pdserve.dst.route_tables import routed_ids, table_in
from pdserve.dst.world_engines import Engines
from pdserve.dst.world_fabric import domain_object, node_object
from pdserve.dst.world_service import NPU, NS
from pdserve.engines.pod_profile import Rights
from pdserve.exposition import Registry
from pdserve.frozen import Memo
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import (
    CONFIGMAPS,
    EVENTS,
    NODES,
    PODS,
    Object,
    ObjectKey,
    Resource,
)
from pdserve.ratio.types import LoopSettings
from pdserve.telemetry.source import MetricsSource
from pdserve.terms.json import JsonObject
from pdserve.wire import names

CPU = "64"
"""Of a node, as its kubelet states it."""
STEP = 0.1


@functools.cache
def _our_kinds() -> tuple[StoredKind, ...]:
    """Made once: it takes longer than many a simulated life."""
    return tuple(kind_of_crd(crd_manifest(kind)) for kind in KINDS)


@dataclass(slots=True)
class World:
    """See the module."""

    seed: int = 0
    namespaces: tuple[str, ...] = (NS,)
    start_seconds: tuple[float, float] = (0.2, 1.5)
    step: float = STEP
    """Seconds between two looks of scheduler, kubelets and controllers."""
    delay: Callable[[KubeRequest], float] = lambda _request: 0.0
    """Seconds that a request of the operator waits, e.g. for a slow admission webhook."""
    unfit: Callable[[str, Object], str | None] = lambda _node, _pod: None
    """Why the scheduler does not bind a pod to a node, beside what `scheduling` knows."""
    rights: Rights = field(default_factory=Rights)
    """What the operators let templates ask for."""
    api: FakeApi = field(init=False)
    engines: Engines = field(init=False)
    machinery: Machinery = field(init=False)
    rng: random.Random = field(init=False)
    operator_rng: random.Random = field(init=False)
    """What operators draw jitter from."""
    recorders: list[Recorder] = field(default_factory=list)
    cores: list[Core] = field(default_factory=list)
    ever: set[str] = field(default_factory=set)
    """Names of all instance pods that ever were."""
    ran: set[str] = field(default_factory=set)
    """Names of all instance pods whose container ever started."""
    refused: set[str] = field(default_factory=set)
    """Names of pods that the scheduler has found no room for so far: they never ran."""
    clock_error: float = 0.0
    """Seconds by which the operators' wall clock is ahead of the API server's."""
    broken_nodes: set[str] = field(default_factory=set)
    broken_images: set[str] = field(default_factory=set)
    """Engines of these images start, but never answer."""
    on_write: Callable[[KubeRequest, Object | None, Object], None] | None = None
    """Called with each write of an operator that took effect: request, object before, answer."""
    crashing: set[str] = field(default_factory=set)
    _tables: Memo[JsonObject] = field(default_factory=lambda: Memo(most=64))
    ready_since: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.api = FakeApi(*_our_kinds(), namespaces=self.namespaces)
        self.engines = Engines()
        self.machinery = Machinery(self)
        self.rng = random.Random(self.seed)
        self.operator_rng = random.Random(self.seed)

    # --- users ----------------------------------------------------------------------------

    def nodes(self, leaves: Iterable[str], per_leaf: int, devices: int = 8) -> None:
        """Make `per_leaf` nodes `<leaf>-<n>` of `devices` NPUs in each leaf, labelled for it."""
        for leaf in leaves:
            for n in range(per_leaf):
                self.node(leaf, f"{leaf}-{n}", devices)

    def node(self, leaf: str, name: str, devices: int, **more: str) -> None:
        """One node with `devices` NPUs, labelled for `domain`; `more`: other amounts of it."""
        amounts = {"cpu": CPU, "memory": "512Gi", "pods": "110", NPU: str(devices), **more}
        self.create(NODES, node_object(name, leaf))
        self.ready_since[name] = stamp()
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp()}
        status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
        self.patch(NODES, "", name, {"status": status}, subresource="status")

    def domain(self, name: str = "az1") -> None:
        """A RoCEDomain of two levels, leaf and node."""
        self.create(ROCE_DOMAINS, domain_object(name))

    def create(self, resource: Resource, obj: Object) -> Object:
        """POST an object as a user would."""
        namespace = obj["metadata"].get("namespace")
        return self.api.handle(KubeRequest("create", resource, namespace, body=obj))

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: object,
        *,
        subresource: str | None = None,
    ) -> Object:
        """Merge-patch an object as a user would."""
        return self.api.handle(
            KubeRequest("patch", resource, namespace, name, subresource, body=body, patch="merge")
        )

    def get(self, resource: Resource, name: str, namespace: str = NS) -> Object | None:
        """A copy of the object, free to be changed."""
        found = self.api.store(resource).objects.get(ObjectKey(namespace, name))
        return None if found is None else copy(found)

    def existing(self, resource: Resource, name: str, namespace: str = NS) -> Object:
        """A copy of the object, free to be changed.

        Raises:
            LookupError: there is no such object.
        """
        found = self.get(resource, name, namespace)
        if found is None:
            raise LookupError(f"no {resource.plural} {namespace}/{name}")
        return found

    def seen(self, resource: Resource) -> list[Object]:
        """All objects of a kind, not copied: not to be changed."""
        objects = self.api.store(resource).objects
        return [objects[key] for key in sorted(objects)]

    def instances(self) -> list[Object]:
        """All pods that carry a role, not copied."""
        return [p for p in self.seen(PODS) if names.LABEL_ROLE in p["metadata"].get("labels", {})]

    def condition(
        self, resource: Resource, name: str, kind: str, namespace: str = NS
    ) -> JsonObject:
        """One condition of an object; empty where there is none."""
        obj = self.get(resource, name, namespace) or {}
        for found in obj.get("status", {}).get("conditions", ()):
            if found["type"] == kind:
                return dict(found)
        return {}

    def events(self, reason: str) -> list[str]:
        """Messages of all Events with one reason."""
        return [e["message"] for e in self.api.objects(EVENTS) if e["reason"] == reason]

    def routes(self, service: str = "shop", namespace: str = NS) -> JsonObject:
        """The route table of a service as JSON; empty where there is none to be read."""
        key = ObjectKey(namespace, names.routes_configmap_name(service))
        found = self.api.store(CONFIGMAPS).objects.get(key)
        return {} if found is None else self._tables.of(lambda: table_in(found), found)

    def routed(self, service: str = "shop", namespace: str = NS) -> set[str]:
        """Names of all instances in the route table."""
        return set(routed_ids(self.routes(service, namespace)))

    def service_ready(self, name: str = "shop", namespace: str = NS) -> bool:
        """Whether Ready is True for the current generation."""
        found = self.get(PDSERVICES, name, namespace)
        if found is None:
            return False
        ready = self.condition(PDSERVICES, name, "Ready", namespace)
        current = ready.get("observedGeneration") == found["metadata"]["generation"]
        return ready.get("status") == "True" and current

    def lose_node(self, node: str) -> None:
        """The node is cut off: its pods go on in silence, its Ready condition turns Unknown."""
        self.broken_nodes.add(node)
        body = {
            "status": {
                "conditions": [
                    {"type": "Ready", "status": "Unknown", "lastTransitionTime": stamp()}
                ]
            }
        }
        self.patch(NODES, "", node, body, subresource="status")

    def step_clock(self, seconds: float) -> None:
        """Step the operators' wall clock by `seconds`; steps add up."""
        self.clock_error += seconds

    def delete_pod(self, pod: str, namespace: str = NS) -> None:
        """A user deletes the pod."""
        self.api.handle(KubeRequest("delete", PODS, namespace, pod))

    def cordon(self, node: str, *, closed: bool = True) -> None:
        """A user closes a node to new pods, or opens it again."""
        self.patch(NODES, "", node, {"spec": {"unschedulable": closed}})

    def evict(self, pod: str, namespace: str = NS) -> bool:
        """A user asks for a pod's eviction; False when its budget refuses it now (429)."""
        try:
            self.api.handle(KubeRequest("create", PODS, namespace, pod, "eviction"))
        except KubeError as error:
            if error.status != 429:
                raise
            return False
        return True

    async def drain(self, node: str, seconds: float = 600.0) -> float:
        """A user drains a node as `kubectl drain` does; the seconds it took.

        Each pod is asked for again every 5 s while that is refused. TimeoutError when instances
        are left there after `seconds`.
        """
        began = asyncio.get_running_loop().time()
        self.cordon(node)
        async with asyncio.timeout(seconds):
            while here := [p for p in self.instances() if p["spec"].get("nodeName") == node]:
                for meta in (p["metadata"] for p in here):
                    if "deletionTimestamp" not in meta:
                        self.evict(meta["name"], meta["namespace"])
                await asyncio.sleep(5)
        return asyncio.get_running_loop().time() - began

    def kill(self, pod: str) -> None:
        """End the pod's process for good."""
        self.crashing.add(pod)

    # --- the machinery ---------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Scheduler, kubelets, deployments and garbage collection run inside."""
        task = asyncio.create_task(self.machinery.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def until(
        self, check: Callable[[], object], seconds: float = 120.0, what: str = ""
    ) -> float:
        """Wait until `check()` is true; returns how many virtual seconds that took.

        Raises:
            AssertionError: it was not within `seconds`; the message has `what` and a dump.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        while not check():
            if loop.time() - started >= seconds:
                raise AssertionError(f"not within {seconds} s: {what}\n{self.dump()}")
            await asyncio.sleep(STEP)
        return loop.time() - started

    def dump(self) -> str:
        """Conditions and pods as text, for a failure."""
        lines = []
        for resource in (PDSERVICES, SCENARIO_GROUPS):
            for obj in self.seen(resource):
                lines += [
                    f"{obj['kind']} {obj['metadata']['name']} {c['type']}={c['status']} "
                    f"{c['reason']}: {c['message']}"
                    for c in obj.get("status", {}).get("conditions", ())
                ]
        for pod in self.instances():
            conditions = {
                c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", ())
            }
            lines.append(
                f"pod {pod['metadata']['name']} on {pod['spec'].get('nodeName')} {conditions} "
                f"{'terminating' if 'deletionTimestamp' in pod['metadata'] else ''}"
            )
        return "\n".join(lines)

    # --- the operator ----------------------------------------------------------------------

    @asynccontextmanager
    async def operator(
        self,
        faults: Faults | None = None,
        source: MetricsSource | None = None,
        settings: LoopSettings | None = None,
        namespace: str | None = None,
        left: Mapping[str, str] | None = None,
    ) -> AsyncIterator[asyncio.Task[None]]:
        """The real operator; the task ends with the exception of a crash."""
        task = asyncio.create_task(
            self.operate(faults, source, settings, namespace=namespace, left=left)
        )
        try:
            yield task
        finally:
            task.cancel()
            with suppress(BaseException):
                await task

    async def operate(
        self,
        faults: Faults | None = None,
        source: MetricsSource | None = None,
        settings: LoopSettings | None = None,
        log_line: Callable[[str], None] = lambda _line: None,
        namespace: str | None = None,
        left: Mapping[str, str] | None = None,
    ) -> None:
        """Run the real operator until it is cancelled or fails.

        `left`: what it leaves to others, as `Core.leave` has it.
        """
        transport = FakeTransport(self.api, faults or Faults(), self.on_write)
        recorder = Recorder(transport, self.delay)
        self.recorders.append(recorder)
        core = Core(
            KubeClient(recorder),
            namespace=namespace,
            gateway_image="pdserve/gateway:test",
            operator_namespace="pdserve-system",
            registry=Registry(),
            now=lambda: now() + self.clock_error,
            rng=self.operator_rng,
            rights=self.rights,
        )

        core.leave(left or {})
        self.cores.append(core)

        async def engines(_tokens: Tokens) -> EngineApi:
            return self.engines

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(core.follow())
            tasks.create_task(
                core.act(engines, source or NoSource(), settings or LoopSettings(), log_line)
            )
