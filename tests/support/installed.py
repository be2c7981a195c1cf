"""A cluster with pdserve installed as a user would: Prometheus, the chart by Helm, a RoCEDomain.

`ProcessCluster` is what `tests.support.scenarios` ask of a cluster, on process nodes. The periods
of the ratio loop are short so that its decisions can be waited for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support import scenarios as s
from tests.support.cluster import ClusterAccess
from tests.support.traffic import KEY, MODEL, SEARCH

from pdserve.local import binaries
from pdserve.wire import names

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CHART = ROOT / "charts" / "pdserve"
OPERATOR_NAMESPACE = "pdserve-system"
MONITORING = "monitoring"
NAMESPACE = "shop"
SERVICE = "shop"
RESOURCE = "huawei.com/Ascend910"


class ProcessCluster:
    """`scenarios.Cluster` on process nodes."""

    def __init__(self, access: ClusterAccess) -> None:
        self._access = access
        self._admin = access.admin
        self.kubeconfig = access.kubeconfig
        self.kubectl = access.kubectl
        self.apply = access.apply
        self.get = access.get
        self.cut = access.admin.cut
        self.restore = access.admin.restore
        self.device = access.admin.device
        self.kill = access.admin.kill

    def text(self, path: str) -> str:
        """GET of an API path that answers text."""
        return self._access.kubectl("get", "--raw", path)

    def url(self, pod: s.Json, port: int = names.PORT_HTTP) -> str:
        """Addresses of pods are this machine's own."""
        return f"http://{pod['status']['podIP']}:{port}"

    @contextmanager
    def frozen(self, namespace: str, pod: str) -> Iterator[None]:
        """The pod's processes stand still."""
        self._admin.freeze(namespace, pod)
        try:
            yield
        finally:
            self._admin.unfreeze(namespace, pod)

    @contextmanager
    def api_frozen(self) -> Iterator[None]:
        """The API server stands still."""
        pid = int(self._admin.status()["processes"]["kube-apiserver"]["pid"])
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True)
class Installed:
    """What `installed` gives."""

    cluster: ProcessCluster
    prometheus: str
    """Its URL."""

    def operator(self) -> s.Json:
        """The ready operator pod."""
        return self._one(OPERATOR_NAMESPACE, "app.kubernetes.io/name=pdserve")

    def prometheus_pod(self) -> s.Json:
        """The ready Prometheus pod."""
        return self._one(MONITORING, "app=prometheus")

    def _one(self, namespace: str, selector: str) -> s.Json:
        path = f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}"

        def ready() -> s.Json | None:
            found = (self.cluster.get(path) or {}).get("items", [])
            stay = [p for p in found if s.is_ready(p) and not s.leaving(p)]
            return stay[0] if len(stay) == 1 else None

        pod: s.Json = s.until(f"one ready pod {selector} in {namespace}", ready)
        return pod


def install(cluster: ProcessCluster) -> Installed:
    """Prometheus, the RoCEDomain of the demo, and the chart; returns when the operator is ready."""
    cluster.kubectl("apply", "-f", str(EXAMPLES / "local" / "prometheus.yaml"))
    before = Installed(cluster, "")
    url = cluster.url(before.prometheus_pod(), 9090)
    values = {
        "images.tag": "dev",
        "operator.replicas": "1",
        "prometheus.url": url,
        "ratio.controlPeriodSeconds": "4",
        "ratio.fastPeriodSeconds": "1",
        "operator.extraArgs": "{--metrics-window=6}",
    }
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    helm = [
        str(binaries.helm()), "upgrade", "--install", "pdserve", str(CHART),
        "--namespace", OPERATOR_NAMESPACE, "--create-namespace", "--wait", "--timeout", "90s",
    ]  # fmt: skip
    done = subprocess.run(
        [*helm, *settings],
        env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cluster.kubectl("apply", "-f", str(EXAMPLES / "demo-rocedomain.yaml"))
    return Installed(cluster, url)


def pdservice(namespace: str, name: str, *scenarios: s.Json, **spec: Any) -> s.Json:
    """A PDService of the reference engine at full speed; `spec` sets further fields."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "PDService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"name": MODEL},
            "engine": {"type": "Reference", "image": "pdserve/engine:dev"},
            "prefill": role(slots=4),
            "decode": role(slots=16),
            "fabric": {"domainRef": {"name": "demo"}},
            "scenarios": list(scenarios),
            "recovery": {"drainSeconds": 10, "nodeSuspectSeconds": 5},
            **spec,
        },
    }


def role(slots: int, devices: int = 1) -> s.Json:
    """A role of a PDService."""
    return {
        "instance": {"devicesPerNode": devices, "resource": RESOURCE},
        "maxConcurrency": slots,
        "startupDeadlineSeconds": 60,
    }


def scenario(name: str, ratio: s.Json, **fields: Any) -> s.Json:
    """A scenario whose SLO is wide: on a busy machine tests are about faults, not about speed."""
    return {
        "name": name,
        "slo": {"ttft": "30s", "handoff": "30s", "tpot": "5s", "attainmentPercent": 90},
        "groups": {"min": 1, "max": 3},
        "ratio": ratio,
        "expected": {"promptTokens": 40, "outputTokens": 12, "requestsPerSecond": 2},
        **fields,
    }


def ratio(mode: str, most: int = 3) -> s.Json:
    """A ratio from 1P1D to `most` of each."""
    return {
        "mode": mode,
        "prefill": {"min": 1, "max": most},
        "decode": {"min": 1, "max": most},
    }


def fixed(groups: int, prefill: int, decode: int) -> s.Json:
    """A ratio of fixed counts."""
    counts = {"groups": groups, "prefill": prefill, "decode": decode}
    return {**ratio("Fixed"), "fixed": counts}


def shop() -> s.Json:
    """Two scenarios of fixed size: `search` 1P1D, `chat` 2P2D; two gateways that want a key."""
    return pdservice(
        NAMESPACE,
        SERVICE,
        scenario("search", fixed(1, 1, 1), match={"headers": SEARCH}),
        scenario("chat", fixed(1, 2, 2)),
        budget=[{"resource": RESOURCE, "devices": 16}],
        gateway={"replicas": 2, "auth": {"secretRef": {"name": "keys"}}},
    )


@pytest.fixture(scope="session")
def installed(cluster: ClusterAccess) -> Installed:
    """pdserve and Prometheus in the shared cluster."""
    return install(ProcessCluster(cluster))


@pytest.fixture(scope="session")
def shop_service(installed: Installed) -> Mapping[str, float]:
    """PDService shop/shop, Ready; `{"ready_seconds": ...}`. Every test leaves it Ready."""
    cluster = installed.cluster
    make_namespace(cluster, NAMESPACE)
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "keys", "namespace": NAMESPACE},
            "stringData": {"team": KEY},
        },
        shop(),
        namespace=NAMESPACE,
    )
    return {"ready_seconds": s.wait_service(cluster, NAMESPACE, SERVICE)}


def make_namespace(cluster: s.Cluster, name: str) -> None:
    """A namespace that may exist already."""
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


def fetch(url: str, timeout: float = 10.0) -> str:
    """A page of a pod, e.g. its metrics."""
    with urllib.request.urlopen(url, timeout=timeout) as reply:
        return str(reply.read().decode())
