"""What `pdserve local status` prints, for both sorts of clusters."""

from __future__ import annotations

import dataclasses
import json
import sys

from localcluster.cluster import ClusterStatus, LocalCluster
from localcluster.kind import KindCluster, KindStatus
from pdserve.cli.columns import table
from pdserve.terms.json import JsonObject


def print_status(cluster: LocalCluster | KindCluster, *, as_json: bool) -> int:
    """Print the cluster's state, as text or JSON; returns 0, or 1 when the cluster does not run."""
    status = cluster.status()
    if as_json:
        sort = "kind" if isinstance(cluster, KindCluster) else "process"
        document = {"name": cluster.name, "nodesAre": sort, **dataclasses.asdict(status)}
        print(json.dumps(document, default=str, indent=2))
        return 0 if status.running else 1
    if not status.running:
        print(f"cluster {cluster.name!r} is not running", file=sys.stderr)
        if status.problem:
            print(status.problem, file=sys.stderr)
    if isinstance(status, KindStatus):
        _print_kind(cluster.name, status)
    elif status.running and status.details is not None:
        _print_process(cluster, status, status.details)
    return 0 if status.running else 1


def _print_kind(name: str, status: KindStatus) -> None:
    if status.running:
        print(f"cluster {name!r} at {status.server} (kind nodes, Kubernetes {status.version})")
        print(f"  export KUBECONFIG={status.kubeconfig}")
    rows = [
        (
            node.name, node.role, node.state, node.ip,
            str(status.pods.get(node.name, 0)), str(node.devices), node.unhealthy or "-",
        )
        for node in status.nodes
    ]  # fmt: skip
    head = ("NODE", "ROLE", "STATE", "IP", "PODS", "DEVICES", "UNHEALTHY")
    print(table(head, rows, indent="  "))


def _print_process(
    cluster: LocalCluster | KindCluster, status: ClusterStatus, details: JsonObject
) -> None:
    print(f"cluster {cluster.name!r} at {status.server} (process nodes)")
    print(f"  export KUBECONFIG={status.kubeconfig}")
    print(f"  logs: {cluster.state_dir / 'logs'}")
    for name, process in details["processes"].items():
        print(f"  {name:24} pid {process['pid']:<8} {process['rss'] >> 20:5} MiB")
    pods = details["pods"].values()
    for name, node in details["nodes"].items():
        count = sum(pod["node"] == name for pod in pods)
        state = ", stopped" if node["stopped"] else "" if node["connected"] else ", cut off"
        bad = f", unhealthy devices {node['unhealthy']}" if node["unhealthy"] else ""
        print(f"  {name:24} {node['ip']:16} {count} pods{state}{bad}")
    if details["without_namespaces"]:
        print(f"  pods run without namespaces: {details['without_namespaces']}")
