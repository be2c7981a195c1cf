"""The cluster of `start.py`: eight process nodes, pdserve installed by its chart, two rivals in it.

`service` is what is measured: a PDService of two scenarios. `plain` is its yardstick: a Deployment
of as many aggregated engine pods, with the same image, devices and probes, so that what differs
is pdserve's own work (placement, links, gate, routes, gateway) and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from localcluster import binaries
from localcluster.agent.host import AgentSettings
from localcluster.cluster import LocalCluster
from localcluster.config import load_config
from localcluster.controlplane import ControlPlaneSettings
from localcluster.errors import Progress
from localcluster.plan import ClusterPlan
from pdserve import __version__
from pdserve.desired.objects import gateway_name
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import DEPLOYMENTS, PODS, Object, Resource
from pdserve.wire import names

NAMESPACE = "default"
PLAIN = "plain"
MODEL = "pdserve-tiny"
RESOURCE = "huawei.com/Ascend910"
PODS_EACH = 6
"""Engine pods of either rival: search 1P1D and chat 2P2D, or six aggregated ones."""
SERVICES = Resource(names.GROUP, names.VERSION, "pdservices", "PDService")
GROUPS = Resource(names.GROUP, names.VERSION, "scenariogroups", "ScenarioGroup")
LIMIT = 90.0
"""Seconds until something waited for is given up."""
_POLL = 0.03


class BenchError(Exception):
    """The bench cannot go on; the message says what was expected."""


def start_cluster(cluster: LocalCluster, root: Path, progress: Progress) -> None:
    """Control plane and nodes; they end with this process."""
    config = load_config(root / "examples" / "local" / "nodes-8.yaml", resource=RESOURCE, devices=8)
    plan = ClusterPlan(cluster.name, config, ControlPlaneSettings(), AgentSettings())
    cluster.up(plan, progress, owned=True)


def install(cluster: LocalCluster, root: Path) -> None:
    """The chart, and the RoCEDomain of the demo. Without Prometheus: the counts are fixed here."""
    kubectl = str(binaries.kube().path("kubectl"))
    _run(
        cluster, str(binaries.helm()), "install", "pdserve", str(root / "charts" / "pdserve"),
        "--namespace", "pdserve-system", "--create-namespace", "--wait", "--timeout", "90s",
        "--set", "operator.replicas=1",
    )  # fmt: skip
    _run(cluster, kubectl, "apply", "-f", str(root / "examples" / "demo-rocedomain.yaml"))


def _run(cluster: LocalCluster, *argv: str) -> None:
    env = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{Path(argv[0]).name} {argv[1]} failed: {done.stderr.strip()}")


async def until(what: str, check: Callable[[], Awaitable[Any]]) -> Any:
    """Poll until the answer is true; that answer.

    Raises:
        BenchError: the answer is not true within `LIMIT` seconds.
    """
    deadline = time.monotonic() + LIMIT
    while not (answer := await check()):
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {LIMIT:g} s")
        await asyncio.sleep(_POLL)
    return answer


def is_true(obj: Object, kind: str) -> bool:
    """Whether a condition of an object is True."""
    conditions = obj.get("status", {}).get("conditions") or ()
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def is_ready(pod: Object) -> bool:
    """Ready, and not on its way out."""
    return is_true(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")


def restarts(pod: Object) -> int:
    """Of its containers."""
    return sum(int(c["restartCount"]) for c in pod["status"].get("containerStatuses", ()))


class Rival:
    """One of the two: comes and goes as a whole, has pods, and says when it is whole."""

    def __init__(
        self, client: KubeClient, resource: Resource, body: Object, selectors: tuple[str, str],
        whole: str, parts: Sequence[tuple[Resource, str]] = (),
    ) -> None:  # fmt: skip
        """`selectors` of its engine pods and of all its pods; `whole`: a condition of it;
        `parts`: objects of its own that would make pods anew.
        """
        self._client = client
        self._resource = resource
        self._body = body
        self._engines, self._all = selectors
        self._whole = whole
        self._parts = parts
        self.name: str = body["metadata"]["name"]

    async def come(self) -> float:
        """Create it; seconds until it is whole."""
        began = time.monotonic()
        await self._client.create(self._resource, self._body)
        await until(f"{self._body['kind']} {self._whole}", self.is_whole)
        return time.monotonic() - began

    async def go(self) -> None:
        """Delete it with all its pods, without waiting for Kubernetes' garbage collector: that one
        learns of new kinds only every half minute.
        """
        for resource, name in ((self._resource, self.name), *self._parts):
            await self._delete(resource, name)
        for pod in await self._all_pods():
            await self._delete(PODS, pod["metadata"]["name"], grace=0)

        async def gone() -> bool:
            return not await self._all_pods()

        await until(f"pods of {self.name} gone", gone)

    async def _all_pods(self) -> list[Object]:
        return list((await self._client.list(PODS, NAMESPACE, label_selector=self._all)).items)

    async def _delete(self, resource: Resource, name: str, grace: int | None = None) -> None:
        try:
            await self._client.delete(resource, name, namespace=NAMESPACE, grace=grace)
        except KubeError as error:
            if not error.is_not_found:
                raise

    async def pods(self, *, every: bool = False, only: str = "") -> list[Object]:
        """Engine pods that stay (or every one), narrowed by another label selector, by name."""
        selector = ",".join(s for s in (self._engines, only) if s)
        found = (await self._client.list(PODS, NAMESPACE, label_selector=selector)).items
        chosen = [p for p in found if every or not p["metadata"].get("deletionTimestamp")]
        return sorted(chosen, key=lambda p: str(p["metadata"]["name"]))

    async def is_whole(self) -> bool:
        """It says that it is, of the spec it has now, and all its pods are Ready."""
        try:
            obj = await self._client.get(self._resource, self.name, NAMESPACE)
        except KubeError as error:
            if error.is_not_found:
                return False
            raise
        current = obj.get("status", {}).get("observedGeneration") == obj["metadata"]["generation"]
        if not current or not is_true(obj, self._whole):
            return False
        pods = await self.pods()
        return len(pods) == PODS_EACH and all(is_ready(p) for p in pods)

    async def delete_pod(self, only: str = "") -> float:
        """Force-delete one pod; seconds until the rival is whole with another in its place."""
        victim = (await self.pods(only=only))[0]["metadata"]
        began = time.monotonic()
        await self._client.delete(PODS, victim["name"], namespace=NAMESPACE, grace=0)

        async def replaced() -> bool:
            uids = {p["metadata"]["uid"] for p in await self.pods(every=True)}
            return victim["uid"] not in uids and await self.is_whole()

        await until(f"a pod in the place of {victim['name']}", replaced)
        return time.monotonic() - began

    async def kill_engine(self, cluster: LocalCluster, index: int) -> float:
        """SIGKILL the engine of its pod number `index`; seconds until it is whole again."""
        victim = (await self.pods())[index]
        name, before = victim["metadata"]["name"], restarts(victim)
        began = time.monotonic()
        await asyncio.to_thread(cluster.admin.kill, NAMESPACE, name)

        async def back() -> bool:
            pod = await self._client.get(PODS, name, NAMESPACE)
            return restarts(pod) > before and _linked_now(pod) and await self.is_whole()

        await until(f"{name} after its restart", back)
        return time.monotonic() - began


def _linked_now(pod: Object) -> bool:
    """Its links were verified for the container that runs; true for a pod that has no links."""
    if not pod["spec"].get("readinessGates"):
        return True
    running = {c.get("containerID") for c in pod["status"]["containerStatuses"]}
    return any(
        c["type"] == names.CONDITION_LINKED and c["status"] == "True" and c["message"] in running
        for c in pod["status"]["conditions"]
    )


def service(client: KubeClient, name: str) -> Rival:
    """The PDService. A name of its own each time: the last one's objects may still be going."""
    everything = f"{names.LABEL_SERVICE}={name}"
    selectors = (f"{everything},{names.LABEL_INSTANCE}", everything)
    groups = [(GROUPS, names.scenario_group_name(name, s)) for s in ("search", "chat")]
    parts = [*groups, (DEPLOYMENTS, gateway_name(name))]
    return Rival(client, SERVICES, _pdservice(name), selectors, "Ready", parts)


def plain(client: KubeClient) -> Rival:
    """The Deployment."""
    selector = f"app={PLAIN}"
    return Rival(client, DEPLOYMENTS, _deployment(), (selector, selector), "Available")


async def gateway_url(client: KubeClient, name: str) -> str:
    """Of a gateway of PDService `name`, which is Ready."""
    selector = f"{names.LABEL_SERVICE}={name},{names.LABEL_COMPONENT}=gateway"
    found = (await client.list(PODS, NAMESPACE, label_selector=selector)).items
    return pod_url(next(p for p in found if is_ready(p)))


def pod_url(pod: Object) -> str:
    """Addresses of pods are this machine's own."""
    return f"http://{pod['status']['podIP']}:{names.PORT_HTTP}"


def _pdservice(name: str) -> Object:
    def role(slots: int) -> Object:
        return {
            "instance": {"devicesPerNode": 1, "resource": RESOURCE},
            "maxConcurrency": slots,
            "startupDeadlineSeconds": 60,
        }

    def scenario(title: str, count: int, **more: Any) -> Object:
        bounds = {"min": 1, "max": count}
        return {
            "name": title,
            # Wide: these rows are about set-up and repair, not about an SLO on a busy machine.
            "slo": {"ttft": "30s", "handoff": "30s", "tpot": "5s", "attainmentPercent": 90},
            "groups": {"min": 1, "max": 1},
            "ratio": {
                "mode": "Fixed",
                "prefill": bounds,
                "decode": bounds,
                "fixed": {"groups": 1, "prefill": count, "decode": count},
            },
            "expected": {"promptTokens": 40, "outputTokens": 12, "requestsPerSecond": 2},
            **more,
        }

    search = {"match": {"headers": {"x-scenario": "search"}}}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "PDService",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"name": MODEL},
            "engine": {"type": "Reference", "image": f"pdserve/engine:{__version__}"},
            "prefill": role(4),
            "decode": role(16),
            "fabric": {"domainRef": {"name": "demo"}},
            "scenarios": [scenario("search", 1, **search), scenario("chat", 2)],
            "recovery": {"drainSeconds": 5, "nodeSuspectSeconds": 30},
        },
    }


def _deployment() -> Object:
    def probe(path: str, period: int, failures: int) -> Object:
        return {
            "httpGet": {"path": path, "port": names.PORT_HTTP},
            "periodSeconds": period,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
        }

    devices = {RESOURCE: "1"}
    engine = {
        "name": "engine",
        "image": f"pdserve/engine:{__version__}",
        "args": ["--role", "both", "--slots", "16", "--model-name", MODEL],
        "resources": {"limits": devices, "requests": dict(devices)},
        # As `engines.pods` has them.
        "startupProbe": probe("/health", 2, 30),
        "livenessProbe": probe("/health", 10, 3),
        "readinessProbe": probe("/readyz", 2, 2),
    }
    labels = {"app": PLAIN}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": PLAIN, "namespace": NAMESPACE},
        "spec": {
            "replicas": PODS_EACH,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 5, "containers": [engine]},
            },
        },
    }
