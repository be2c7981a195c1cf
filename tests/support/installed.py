"""A cluster with pdserve installed as a user would: Prometheus, the chart by Helm, a RoCEDomain.

The option `--nodes` says which cluster: process nodes (default), a kind cluster that is made for
the run, or the one that $KUBECONFIG leads to. The periods of the ratio loop are short so that its
decisions can be waited for.
"""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support import scenarios as s
from tests.support.process_cluster import ProcessCluster
from tests.support.real_cluster import real_cluster
from tests.support.traffic import KEY, MODEL, SEARCH

from localcluster import binaries
from pdserve import __version__
from pdserve.wire import names

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CHART = ROOT / "charts" / "pdserve"
OPERATOR_NAMESPACE = "pdserve-system"
RELEASE = "pdserve"
LEASE = "pdserve-operator"
MONITORING = "monitoring"
PROMETHEUS_SERVICE = "http://prometheus.monitoring:9090"
NAMESPACE = "shop"
SERVICE = "shop"
RESOURCE = "huawei.com/Ascend910"
CACHED_NAMESPACE = "weights-cached"
"""Whose pods use what process nodes keep of downloaded weights."""
IMAGE_TAG = __version__
"""Of the product's images, as the chart's default."""
REGISTRY = os.environ.get("REGISTRY", "")
"""Where a cluster of one's own (`--nodes kubeconfig`) pulls them from."""


@dataclass(frozen=True)
class Installed:
    """What `installed` gives."""

    cluster: s.Cluster
    prometheus: str
    """Its URL for pods."""

    def operator(self) -> s.Json:
        """The ready operator pod that leads."""
        lease = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases/{LEASE}"

        def leader() -> s.Json | None:
            holder = (self.cluster.get(lease) or {}).get("spec", {}).get("holderIdentity") or ""
            return next((p for p in self.operators() if s.name_of(p) == _pod_name(holder)), None)

        pod: s.Json = s.until("a ready operator leads", leader)
        return pod

    def operators(self) -> list[s.Json]:
        """Ready operator pods that stay: the leader and its standbys."""
        return self._ready(OPERATOR_NAMESPACE, "app.kubernetes.io/component=operator")

    def prometheus_pod(self) -> s.Json:
        """The ready Prometheus pod."""
        found: list[s.Json] = s.until(
            "Prometheus is ready", lambda: self._ready(MONITORING, "app=prometheus")
        )
        return found[0]

    def upgrade(self, **values: str) -> None:
        """`helm upgrade` with some values changed, and wait."""
        helm("upgrade", self.cluster, "--reset-then-reuse-values", *_settings(values))

    def _ready(self, namespace: str, selector: str) -> list[s.Json]:
        path = f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}"
        found = (self.cluster.get(path) or {}).get("items", [])
        return [p for p in found if s.is_ready(p) and not s.leaving(p)]


def _pod_name(holder: str) -> str:
    """Of a Lease's `holderIdentity`: the pod's name and a random suffix."""
    return holder.rpartition("_")[0]


def install(cluster: s.Cluster, values: Mapping[str, str] | None = None) -> Installed:
    """Prometheus, the RoCEDomain of the demo, and the chart; returns when the operator is ready.

    `values`: further ones of the chart, by path.
    """
    make_namespace(cluster, OPERATOR_NAMESPACE)
    real = cluster.nodes != "process"
    cluster.kubectl("apply", "-f", "-", stdin=_prometheus(at_its_node=not real))
    before = Installed(cluster, "")
    pod = before.prometheus_pod()
    # Process nodes route no Services, and have one operator: restarts are what is tested there.
    url = PROMETHEUS_SERVICE if real else cluster.url(pod, 9090)
    own = {
        "images.registry": REGISTRY,
        "operator.replicas": "2" if real else "1",
        "prometheus.url": url,
        "ratio.controlPeriodSeconds": "4",
        "ratio.fastPeriodSeconds": "1",
        "operator.extraArgs": "{--metrics-window=6}",
    }
    if not real:
        # Of all namespaces one: its tests look at what is kept there.
        weights_cache(cluster).mkdir(exist_ok=True)
        weights_cache(cluster).chmod(0o777)
        own["modelCache.hostPath"] = str(weights_cache(cluster))
        own["modelCache.namespaces"] = f"{{{CACHED_NAMESPACE}}}"
    helm("install", cluster, *_settings({**own, **(values or {})}))
    cluster.kubectl("apply", "-f", str(EXAMPLES / "demo-rocedomain.yaml"))
    return Installed(cluster, url)


def _prometheus(*, at_its_node: bool) -> str:
    """The example; `at_its_node`: its pod has the node's address.

    Process nodes have no addresses of Services, and a pod gets another one when its node restarts.
    """
    text = (EXAMPLES / "local" / "prometheus.yaml").read_text()
    objects: list[s.Json] = list(yaml.safe_load_all(text))
    if at_its_node:
        (workload,) = [o for o in objects if o["kind"] == "Deployment"]
        workload["spec"]["template"]["spec"]["hostNetwork"] = True
        (namespace,) = [o for o in objects if o["kind"] == "Namespace"]
        namespace["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "privileged"}
    return yaml.safe_dump_all(objects)


def weights_cache(cluster: s.Cluster) -> Path:
    """Directory that process nodes have for downloaded weights."""
    return Path(cluster.kubeconfig).parent.with_name("weights-cache")


def _settings(values: Mapping[str, str]) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def helm(action: str, cluster: s.Cluster, *args: str) -> str:
    """`helm install|upgrade|uninstall` of the release of the tests; waits for what it did."""
    chart = [] if action == "uninstall" else [str(CHART)]
    command = [
        str(binaries.helm()), action, RELEASE, *chart,
        "--namespace", OPERATOR_NAMESPACE, "--wait", "--timeout", "180s", *args,
    ]  # fmt: skip
    done = subprocess.run(
        command,
        env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def image(name: str) -> str:
    """Reference of `pdserve/NAME` as the cluster under test pulls it."""
    return f"{REGISTRY}/pdserve/{name}:{IMAGE_TAG}".removeprefix("/")


def pdservice(namespace: str, name: str, *scenarios: s.Json, **spec: Any) -> s.Json:
    """A PDService of the reference engine at full speed; `spec` sets further fields."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "PDService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"name": MODEL},
            "engine": {"type": "Reference", "image": image("engine")},
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
def cluster_under_test(request: pytest.FixtureRequest) -> Iterator[s.Cluster]:
    """The cluster that `--nodes` names."""
    nodes = request.config.getoption("--nodes")
    if nodes == "process":
        yield ProcessCluster(request.getfixturevalue("cluster"))
        return
    with real_cluster(nodes, request.config) as real:
        s.set_patience(real.patience)
        yield real


@pytest.fixture(scope="session")
def installed(cluster_under_test: s.Cluster) -> Installed:
    """pdserve and Prometheus in the cluster under test."""
    return install(cluster_under_test)


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
    """A namespace, which may exist already, that takes only pods of Pod Security `restricted`."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": name, "labels": labels}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


def fetch(url: str, timeout: float = 10.0) -> str:
    """A page of a pod, e.g. its metrics."""
    with urllib.request.urlopen(url, timeout=timeout) as reply:
        return str(reply.read().decode())
