"""Sets up the demo: a local cluster with Prometheus and pdserve, installed as a user would.

Everything goes through public interfaces: kubectl applies files, Helm installs the chart. What the
steps need later (client, addresses) is read from the API server.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_api_client import PrometheusConnect

from localcluster import binaries
from localcluster.agent.host import AgentSettings
from localcluster.cluster import LocalCluster
from localcluster.config import load_config
from localcluster.controlplane import ControlPlaneSettings
from localcluster.errors import Progress
from localcluster.paths import checkout
from localcluster.plan import ClusterPlan
from pdserve.kube.client import KubeClient
from pdserve.kube.resource import PODS, Object
from pdserve.terms.json import JsonMap
from pdserve.wire import names

NAMESPACE = "default"
SERVICE = "demo"
CHAT = f"{SERVICE}-chat"
"""ScenarioGroup of scenario chat."""
SEARCH = f"{SERVICE}-search"
"""ScenarioGroup of scenario search, the first of the PDService."""
RESOURCE = "huawei.com/Ascend910"
DEVICES_PER_NODE = 8
NODE_GRACE = 8.0
"""Seconds of silence until Kubernetes calls a node NotReady; 50 on a real cluster."""


class DemoError(Exception):
    """The demo cannot go on; the message says what was expected."""


@dataclass(frozen=True)
class Periods:
    """Loop periods in seconds: shorter than a real cluster's, so that minutes suffice."""

    control: float = 10.0
    fast: float = 5.0
    window: float = 20.0


@dataclass
class Stage:
    """A running cluster with pdserve in it."""

    cluster: LocalCluster
    root: Path
    kubectl_path: Path
    helm_path: Path
    client: KubeClient
    prometheus_url: str = ""
    gateway_url: str = ""

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl wrote to standard output.

        Raises:
            DemoError: it failed; the message has what it wrote to standard error.
        """
        return await run(
            self.kubectl_path, *arguments, kubeconfig=self.cluster.kubeconfig, stdin=stdin
        )

    async def pods(self, selector: str, namespace: str = NAMESPACE) -> list[Object]:
        """Pods by label selector, by name."""
        found = await self.client.list(PODS, namespace, label_selector=selector)
        return sorted(found.items, key=lambda p: str(p["metadata"]["name"]))

    async def gateway(self, service: str, namespace: str = NAMESPACE) -> str:
        """Address of a ready gateway of a PDService.

        Raises:
            DemoError: there is none.
        """
        pods = await self.pods(
            f"{names.LABEL_SERVICE}={service},{names.LABEL_COMPONENT}=gateway", namespace
        )
        ready = [p for p in pods if condition(p, "Ready") == "True"]
        if not ready:
            raise DemoError(f"no gateway pod of {service} is Ready though the PDService is")
        return f"http://{ready[0]['status']['podIP']}:{names.PORT_HTTP}"


def checkout_root() -> Path:
    """The checkout the demo takes chart and examples from.

    Raises:
        DemoError: pdserve is installed without one.
    """
    root = checkout()
    if root is None:
        raise DemoError("the demo needs a checkout of pdserve: it installs charts/ and examples/")
    return root


def start_cluster(cluster: LocalCluster, root: Path, progress: Progress, *, keep: bool) -> None:
    """Programs, then control plane and twelve process nodes.

    Unless `keep`, the cluster ends with this process, even if that is killed.
    """
    with binaries.Finder(progress) as finder:
        finder.kube()
        finder.helm()
        finder.prometheus()
    config = load_config(
        root / "examples" / "local" / "nodes-12.yaml", resource=RESOURCE, devices=DEVICES_PER_NODE
    )
    plan = ClusterPlan(
        cluster.name,
        config,
        ControlPlaneSettings(node_grace=NODE_GRACE, node_check=NODE_GRACE / 5),
        AgentSettings(lease_period=NODE_GRACE / 5),
    )
    cluster.up(plan, progress, owned=not keep)


async def install(stage: Stage, periods: Periods, progress: Progress) -> None:
    """Prometheus as a pod, then pdserve by its chart."""
    await stage.kubectl("apply", "-f", str(stage.root / "examples/local/prometheus.yaml"))
    await stage.kubectl(
        "-n", "monitoring", "rollout", "status", "deploy/prometheus", "--timeout=90s"
    )
    [prometheus, *_] = await stage.pods("app=prometheus", "monitoring")
    stage.prometheus_url = f"http://{prometheus['status']['podIP']}:9090"
    progress(f"Prometheus ready at {stage.prometheus_url}")
    values = {
        "operator.replicas": "1",
        "operator.logFormat": "text",
        "prometheus.url": stage.prometheus_url,
        "ratio.controlPeriodSeconds": f"{periods.control:g}",
        "ratio.fastPeriodSeconds": f"{periods.fast:g}",
        "operator.extraArgs[0]": f"--metrics-window={periods.window:g}",
    }
    sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    await run(
        stage.helm_path, "install", "pdserve", str(stage.root / "charts/pdserve"),
        "--namespace", "pdserve-system", "--create-namespace", "--wait", "--timeout", "90s", *sets,
        kubeconfig=stage.cluster.kubeconfig,
    )  # fmt: skip
    progress("operator ready (Helm release pdserve)")


async def pacing_validity(stage: Stage) -> str:
    """How many paced instances kept their profile's times in the last minutes, in words."""
    query = "min by (namespace, pod) (min_over_time(pdserve_engine_paced_valid[5m]))"
    ask = PrometheusConnect(url=stage.prometheus_url).custom_query
    rows = await asyncio.to_thread(ask, query, timeout=5)
    valid = sum(float(row["value"][1]) >= 1 for row in rows)
    return (
        f"{valid} of {len(rows)} instances kept the times of their device profile throughout"
        " (at most 1% of steps late, at most 70% of a core)"
    )


async def run(program: Path, *arguments: str, kubeconfig: Path, stdin: str | None = None) -> str:
    """Run a program to its end; its standard output.

    Raises:
        DemoError: it failed; with its standard error.
    """
    process = await asyncio.create_subprocess_exec(
        str(program), *arguments,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "KUBECONFIG": str(kubeconfig)},
    )  # fmt: skip
    try:
        out, error = await process.communicate(stdin.encode() if stdin is not None else None)
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        command = " ".join([program.name, *arguments[:4]])
        raise DemoError(f"{command} failed: {error.decode().strip()}")
    return out.decode()


async def until(condition: Callable[[], Any], seconds: float, what: str, every: float = 0.2) -> Any:
    """Ask `condition` (an async function) until its answer is true; returns that answer.

    Raises:
        DemoError: not within `seconds`; names `what`.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        answer = await condition()
        if answer:
            return answer
        if asyncio.get_running_loop().time() > deadline:
            raise DemoError(f"{what}: not within {seconds:g} s")
        await asyncio.sleep(every)


def condition(obj: JsonMap, kind: str) -> str:
    """Status of one condition: True, False, Unknown, or empty when absent."""
    conditions: Sequence[JsonMap] = obj.get("status", {}).get("conditions", ())
    return next((str(c["status"]) for c in conditions if c["type"] == kind), "")
