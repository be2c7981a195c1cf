"""The operator against a real kube-apiserver: what the in-memory model cannot know.

Server defaults (an idle reconcile must still write nothing), CRD pruning, admission of the pods
and of the RBAC objects. There is no kubelet: this test binds and runs the pods by patching them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from tests.support.rest import Rest

from pdserve.api import rfc3339
from pdserve.controllers.app import Core
from pdserve.controllers.caches import PDSERVICES, ROCE_DOMAINS
from pdserve.controllers.linker import EngineApi
from pdserve.controllers.ratio_loop import NoSource
from pdserve.controllers.tokens import Tokens
from pdserve.dst.world_engines import Engine, Engines
from pdserve.dst.world_service import NPU, service
from pdserve.exposition import Registry
from pdserve.kube.client import KubeClient, Request
from pdserve.kube.connect import connect
from pdserve.kube.resource import NODES, PODS, Object
from pdserve.local.controlplane import ControlPlane
from pdserve.ratio.types import LoopSettings
from pdserve.topology.nodes import pinned_node
from pdserve.wire import names

pytestmark = [pytest.mark.api, pytest.mark.timeout(240)]
NS = "operator"


class Recording:
    """The real transport, noting what is asked."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.requests: list[Request] = []
        self.unanswered = 0

    @property
    def writes(self) -> list[Request]:
        return [r for r in self.requests if r.verb not in ("get", "list", "watch")]

    async def send(self, request: Request) -> Object:
        self.requests.append(request)
        self.unanswered += 1
        try:
            answer: Object = await self.inner.send(request)
        finally:
            self.unanswered -= 1
        return answer

    def stream(self, request: Request) -> AsyncIterator[Object]:
        self.requests.append(request)
        found: AsyncIterator[Object] = self.inner.stream(request)
        return found

    async def close(self) -> None:
        await self.inner.close()


class Kubelets:
    """Binds and runs pods by patching them, as scheduler and kubelets would."""

    def __init__(self, rest: Rest, client: KubeClient, engines: Engines) -> None:
        self.rest, self.client, self.engines = rest, client, engines
        self.started = 0

    async def run(self) -> None:
        while True:
            for pod in (await self.client.list(PODS, NS)).items:
                await self._pod(pod)
            await asyncio.sleep(0.1)

    async def _pod(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        status = pod.get("status", {})
        if "deletionTimestamp" in pod["metadata"]:
            await self.client.delete(PODS, name, namespace=NS, grace=0)
        elif not pod["spec"].get("nodeName"):
            binding = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": name},
                "target": {"apiVersion": "v1", "kind": "Node", "name": pinned_node(pod)},
            }
            path = f"/api/v1/namespaces/{NS}/pods/{name}/binding"
            answer = await asyncio.to_thread(self.rest.call, "POST", path, binding)
            assert answer.code == 201, answer.body
        elif status.get("phase") != "Running":
            self.started += 1
            ip = f"127.9.0.{self.started}"
            self.engines.by_ip[ip] = Engine(name, ip)
            running = {
                "name": "engine", "image": "x", "imageID": "", "ready": True, "restartCount": 0,
                "containerID": f"test://{pod['metadata']['uid']}",
                "state": {"running": {"startedAt": rfc3339(time.time())}},
            }  # fmt: skip
            await self._patch(
                name,
                {
                    "phase": "Running",
                    "podIP": ip,
                    "podIPs": [{"ip": ip}],
                    "containerStatuses": [running],
                },
            )
        else:
            await self._ready(pod, name, status)

    async def _ready(self, pod: Object, name: str, status: Object) -> None:
        held = {c["type"]: c["status"] for c in status.get("conditions", ())}
        up = self.engines.ready(self.engines.by_ip[status["podIP"]])
        gates = [g["conditionType"] for g in pod["spec"].get("readinessGates", ())]
        ready = "True" if up and all(held.get(g) == "True" for g in gates) else "False"
        if held.get("Ready") != ready:
            stamp = rfc3339(time.time())
            ready_now = {"type": "Ready", "status": ready, "lastTransitionTime": stamp}
            await self._patch(name, {"conditions": [ready_now]})

    async def _patch(self, name: str, status: Object) -> None:
        await self.client.patch_status(PODS, name, status, namespace=NS, strategic=True)


def cluster_objects(rest: Rest) -> None:
    for path, obj in (
        ("/api/v1/namespaces", {"metadata": {"name": NS}}),
        (
            f"/api/v1/namespaces/{NS}/serviceaccounts",
            {"metadata": {"name": "default", "namespace": NS}},
        ),
        (
            "/apis/pdserve.io/v1alpha1/rocedomains",
            {
                "apiVersion": names.API_VERSION,
                "kind": "RoCEDomain",
                "metadata": {"name": "operator-test"},
                "spec": {
                    "nodeSelector": {"matchLabels": {"operator-test": "yes"}},
                    "levels": [{"name": "leaf", "nodeLabel": "fabric/leaf", "hopCost": 10}],
                },
            },
        ),
    ):
        answer = rest.create(path, obj)
        assert answer.code == 201, answer.body
    for leaf in ("a", "b"):
        meta = {"name": f"op-{leaf}", "labels": {"operator-test": "yes", "fabric/leaf": leaf}}
        answer = rest.create("/api/v1/nodes", {"metadata": meta})
        assert answer.code == 201, answer.body
        status = {
            "status": {
                "capacity": {NPU: "8"},
                "allocatable": {NPU: "8"},
                "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": rfc3339(time.time())}
                ],
            }
        }
        answer = rest.patch(f"/api/v1/nodes/op-{leaf}/status", status, "merge")
        assert answer.code == 200, answer.body
        # The server taints new nodes; the node lifecycle controller would lift that.
        answer = rest.patch(f"/api/v1/nodes/op-{leaf}", {"spec": {"taints": None}}, "merge")
        assert answer.code == 200, answer.body


@pytest.fixture(scope="module")
def prepared(rest: Rest) -> Rest:
    cluster_objects(rest)
    return rest


@asynccontextmanager
async def running(plane: ControlPlane, rest: Rest) -> AsyncIterator[tuple[KubeClient, Recording]]:
    admin = await connect(plane.kubeconfig)
    recording = Recording((await connect(plane.kubeconfig))._transport)
    engines = Engines()
    core = Core(
        KubeClient(recording),
        namespace=NS,
        gateway_image="pdserve/gateway:test",
        operator_namespace="pdserve-system",
        registry=Registry(),
        now=time.time,
        rng=random.Random(1),
    )

    async def make_engines(_tokens: Tokens) -> EngineApi:
        return engines

    async def everything() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Kubelets(rest, admin, engines).run())
            tasks.create_task(core.follow())
            tasks.create_task(core.act(make_engines, NoSource(), LoopSettings(fast_period=1.0)))

    task = asyncio.create_task(everything())
    try:
        yield admin, recording
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


async def settled(recording: Recording) -> None:
    """Nothing was written in further ratio ticks and the domain's gathering delay.

    40 looks of 0.1 s, not the clock: a process that stood still for 4 s was not quiet.
    """
    deadline = time.monotonic() + 60
    looks, wrote = 0, -1
    while looks < 40:
        quiet = len(recording.writes) == wrote and not recording.unanswered
        looks, wrote = (looks + 1 if quiet else 0), len(recording.writes)
        assert time.monotonic() < deadline, recording.writes[-5:]
        await asyncio.sleep(0.1)


async def test_apply_to_ready_then_silence(control_plane: ControlPlane, prepared: Rest) -> None:
    wanted = service(scenarios=("chat", "search"), devices=2)
    wanted["metadata"]["namespace"] = NS
    wanted["spec"]["fabric"]["domainRef"]["name"] = "operator-test"
    wanted["spec"]["gateway"] = {"auth": {"secretRef": {"name": "keys"}}}
    async with running(control_plane, prepared) as (client, recording):
        await client.create(PDSERVICES, wanted)

        async def linked() -> bool:
            live = await client.get(PDSERVICES, "shop", NS)
            conditions = {c["type"]: c for c in live.get("status", {}).get("conditions", ())}
            # No Deployment controller here: all but the gateway's pods gets ready.
            return bool(conditions.get("Ready", {}).get("reason") == "GatewayNotReady")

        await until(linked, "every scenario ready")
        await settled(recording)
        summary = (await client.get(PDSERVICES, "shop", NS))["status"]["summary"]
        assert summary["prefill"] == summary["decode"] == "2/2"
        domain = await client.get(ROCE_DOMAINS, "operator-test")
        assert domain["status"]["nodes"]["ready"] == 2
        recording.requests.clear()
        node = await client.get(NODES, "op-a")
        node["metadata"]["labels"]["wake"] = "everyone"
        await client.update(NODES, node)  # every object is looked at again
        service_now = await client.get(PDSERVICES, "shop", NS)
        service_now["metadata"]["annotations"] = {"wake": "up"}
        await client.update(PDSERVICES, service_now)
        await asyncio.sleep(2)
        assert recording.writes == []
