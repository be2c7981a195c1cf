"""The operator against a real kube-apiserver, for API tests.

There is no kubelet and no scheduler: `Kubelets` binds and runs pods by patching them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tests.support.rest import Rest

from localcluster.controlplane import ControlPlane
from pdserve.controllers.core import Core
from pdserve.controllers.ratio.ratio_loop import NoSource
from pdserve.controllers.shared.caches import OURS
from pdserve.controllers.shared.instance_calls import EngineApi
from pdserve.controllers.shared.tokens import Tokens
from pdserve.dst.world_engines import Engines, SimulatedEngine
from pdserve.dst.world_service import NPU
from pdserve.exposition import Registry
from pdserve.kube.client import KubeClient
from pdserve.kube.connect import api_client, connect
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import PODS, Object
from pdserve.kube.transport import HttpTransport
from pdserve.ratio.types import LoopSettings
from pdserve.telemetry.source import MetricsSource
from pdserve.terms.times import rfc3339
from pdserve.wire import names
from pdserve.wire.pin import pinned_node


class Recording:
    """The real transport, noting what is asked."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.requests: list[KubeRequest] = []
        self.unanswered = 0

    @property
    def writes(self) -> list[KubeRequest]:
        return [r for r in self.requests if r.verb not in ("get", "list", "watch")]

    async def send(self, request: KubeRequest) -> Object:
        self.requests.append(request)
        self.unanswered += 1
        try:
            answer: Object = await self.inner.send(request)
        finally:
            self.unanswered -= 1
        return answer

    def stream(self, request: KubeRequest) -> AsyncIterator[Object]:
        self.requests.append(request)
        found: AsyncIterator[Object] = self.inner.stream(request)
        return found

    async def close(self) -> None:
        await self.inner.close()


class Kubelets:
    """Binds and runs pods by patching them, as scheduler and kubelets would."""

    def __init__(
        self, rest: Rest, client: KubeClient, engines: Engines, namespaces: Iterable[str]
    ) -> None:
        self.rest, self.client, self.engines = rest, client, engines
        self.namespaces = tuple(namespaces)
        self.started = 0

    async def run(self) -> None:
        while True:
            for namespace in self.namespaces:
                for pod in (await self.client.list(PODS, namespace, label_selector=OURS)).items:
                    await self._pod(namespace, pod)
            await asyncio.sleep(0.1)

    async def _pod(self, namespace: str, pod: Object) -> None:
        name = pod["metadata"]["name"]
        status = pod.get("status", {})
        if "deletionTimestamp" in pod["metadata"]:
            await self.client.delete(PODS, name, namespace=namespace, grace=0)
        elif not pod["spec"].get("nodeName"):
            binding = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": name},
                "target": {"apiVersion": "v1", "kind": "Node", "name": pinned_node(pod)},
            }
            path = f"/api/v1/namespaces/{namespace}/pods/{name}/binding"
            answer = await asyncio.to_thread(self.rest.call, "POST", path, binding)
            assert answer.code == 201, answer.body
        elif status.get("phase") != "Running":
            self.started += 1
            ip = f"127.9.{self.started // 250}.{self.started % 250 + 1}"
            self.engines.by_ip[ip] = SimulatedEngine(name)
            running = {
                "name": "engine", "image": "x", "imageID": "", "ready": True, "restartCount": 0,
                "containerID": f"test://{pod['metadata']['uid']}",
                "state": {"running": {"startedAt": rfc3339(time.time())}},
            }  # fmt: skip
            await self._patch(
                namespace,
                name,
                {
                    "phase": "Running",
                    "podIP": ip,
                    "podIPs": [{"ip": ip}],
                    "containerStatuses": [running],
                },
            )
        else:
            await self._ready(pod, namespace, name, status)

    async def _ready(self, pod: Object, namespace: str, name: str, status: Object) -> None:
        held = {c["type"]: c["status"] for c in status.get("conditions", ())}
        up = self.engines.ready(self.engines.by_ip[status["podIP"]])
        gates = [g["conditionType"] for g in pod["spec"].get("readinessGates", ())]
        ready = "True" if up and all(held.get(g) == "True" for g in gates) else "False"
        if held.get("Ready") != ready:
            stamp = rfc3339(time.time())
            ready_now = {"type": "Ready", "status": ready, "lastTransitionTime": stamp}
            await self._patch(namespace, name, {"conditions": [ready_now]})

    async def _patch(self, namespace: str, name: str, status: Object) -> None:
        await self.client.patch_status(PODS, name, status, namespace=namespace, strategic=True)


def namespace_objects(rest: Rest, namespace: str) -> None:
    """A namespace in which pods can be made: there is no controller that makes its account."""
    for path, meta in (
        ("/api/v1/namespaces", {"name": namespace}),
        (f"/api/v1/namespaces/{namespace}/serviceaccounts", {"name": "default"}),
    ):
        answer = rest.create(path, {"metadata": meta})
        assert answer.code == 201, answer.body


def cluster_objects(rest: Rest, domain: str, prefix: str, leaves: Iterable[str] = "ab") -> None:
    """A RoCEDomain of one level, and a node with 8 NPUs in each leaf."""
    spec = {
        "nodeSelector": {"matchLabels": {domain: "yes"}},
        "levels": [{"name": "leaf", "nodeLabel": "fabric/leaf", "hopCost": 10}],
    }
    body = {"apiVersion": names.API_VERSION, "kind": "RoCEDomain"}
    answer = rest.create(
        "/apis/pdserve.io/v1alpha1/rocedomains",
        {**body, "metadata": {"name": domain}, "spec": spec},
    )
    assert answer.code == 201, answer.body
    for leaf in leaves:
        node(rest, f"{prefix}-{leaf}", {domain: "yes", "fabric/leaf": leaf})


def node(rest: Rest, name: str, labels: dict[str, str], devices: str = "8") -> None:
    """A Ready node with NPUs."""
    answer = rest.create("/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
    assert answer.code == 201, answer.body
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": rfc3339(time.time())}
    amounts = {NPU: devices}
    status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
    answer = rest.patch(f"/api/v1/nodes/{name}/status", {"status": status}, "merge")
    assert answer.code == 200, answer.body
    # The server taints new nodes; the node lifecycle controller would lift that.
    answer = rest.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, "merge")
    assert answer.code == 200, answer.body


@dataclass(slots=True)
class Operating:
    """The operator that runs, and what a test looks at it with."""

    client: KubeClient
    """The administrator's."""
    recording: Recording
    engines: Engines
    registry: Registry
    task: asyncio.Task[None]


@asynccontextmanager
async def operating(
    plane: ControlPlane,
    rest: Rest,
    namespaces: Iterable[str],
    *,
    watched: str | None = None,
    engines_of: Callable[[EngineApi], EngineApi] = lambda engines: engines,
    source: MetricsSource | None = None,
) -> AsyncIterator[Operating]:
    """The real operator of `watched` (None: the whole cluster), with kubelets of `namespaces`."""
    admin = await connect(plane.kubeconfig)
    recording = Recording(HttpTransport(await api_client(plane.kubeconfig), Registry()))
    engines, registry = Engines(), Registry()
    core = Core(
        KubeClient(recording),
        namespace=watched,
        gateway_image="pdserve/gateway:test",
        operator_namespace="pdserve-system",
        registry=registry,
        now=time.time,
        rng=random.Random(1),
    )

    async def make_engines(_tokens: Tokens) -> EngineApi:
        return engines_of(engines)

    async def everything() -> None:
        settings = LoopSettings(fast_period=1.0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Kubelets(rest, admin, engines, namespaces).run())
            tasks.create_task(core.follow())
            tasks.create_task(core.act(make_engines, source or NoSource(), settings))

    task = asyncio.create_task(everything())
    try:
        yield Operating(admin, recording, engines, registry, task)
    finally:
        assert not task.done() or task.exception() is None
        task.cancel()
        with suppress(BaseException):
            await task
        await admin.close()
        await recording.close()


async def until(check: Any, what: str, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := await check()):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.1)
    return found
