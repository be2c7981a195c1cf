"""`pdserve local`: a Kubernetes cluster on this machine, for trying things out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pdserve.local import programs
from pdserve.local.agent.host import AgentSettings
from pdserve.local.cluster import DEFAULT_NAME, LocalCluster
from pdserve.local.config import load_config
from pdserve.local.controlplane import ControlPlaneSettings
from pdserve.local.errors import LocalError
from pdserve.local.paths import checkout
from pdserve.local.plan import ClusterPlan

CONFIG = "kind-config.yaml"
RESOURCE = "huawei.com/Ascend910"
DEVICES = 8

_EXAMPLES = """examples:
  pdserve local programs
  pdserve local up
  pdserve local up --name second --config examples/local/nodes-8.yaml
  export KUBECONFIG=$(pdserve local status --kubeconfig)
  pdserve local down
"""


def add_parser(commands: Any) -> None:
    """Add `local` to the command line; its `run` returns the exit status."""
    parser = commands.add_parser(
        "local",
        help="a Kubernetes cluster on this machine, without root and without containers",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    up = actions.add_parser("up", help="start a cluster; does nothing if it runs")
    up.add_argument(
        "--nodes",
        choices=["process"],
        default="process",
        help="process: pods are processes of this machine (default)",
    )
    up.add_argument(
        "--config",
        type=Path,
        help=f"nodes and labels, in kind's format (default: {CONFIG} here or in the checkout)",
    )
    up.add_argument(
        "--resource", default=RESOURCE, help="extended resource of devices (default %(default)s)"
    )
    up.add_argument("--devices", type=int, default=DEVICES, help="devices per node")
    up.add_argument(
        "--node-grace",
        type=float,
        default=ControlPlaneSettings().node_grace,
        help="seconds of silence until a node is NotReady (default %(default)s)",
    )
    find = actions.add_parser(
        "programs", help="find or build what clusters run (Kubernetes, Helm, Prometheus)"
    )
    find.set_defaults(run=_programs)
    status = actions.add_parser("status", help="what runs, where, and how to reach it")
    status.add_argument("--kubeconfig", action="store_true", help="print only the kubeconfig path")
    down = actions.add_parser("down", help="end a cluster and remove all it left")
    for action, run in ((up, _up), (status, _status), (down, _down)):
        action.add_argument(
            "--name", default=DEFAULT_NAME, help="which cluster (default %(default)s)"
        )
        action.add_argument("--state-dir", type=Path, help="where it keeps its state")
        action.set_defaults(run=_guarded(run))


def _guarded(run: Any) -> Any:
    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return int(run(arguments, LocalCluster(arguments.name, arguments.state_dir)))
        except LocalError as error:
            print(f"pdserve local: {error}", file=sys.stderr)
            return 1

    return guarded


def _up(arguments: argparse.Namespace, cluster: LocalCluster) -> int:
    config = load_config(
        arguments.config or _default_config(),
        resource=arguments.resource,
        devices=arguments.devices,
    )
    # A Lease is renewed five times within the grace, as between kubelet and Kubernetes' default.
    agent = AgentSettings(lease_period=arguments.node_grace / 5)
    plane = ControlPlaneSettings(
        node_grace=arguments.node_grace, node_check=min(5.0, arguments.node_grace / 5)
    )
    plan = ClusterPlan(cluster.name, config, plane, agent)
    cluster.up(plan, lambda line: print(line, file=sys.stderr))
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    return 0


def _programs(_: argparse.Namespace) -> int:
    return programs.main()


def _down(_: argparse.Namespace, cluster: LocalCluster) -> int:
    ended = cluster.down()
    print(f"cluster {cluster.name!r}: {'ended' if ended else 'there was none'}", file=sys.stderr)
    return 0


def _status(arguments: argparse.Namespace, cluster: LocalCluster) -> int:
    status = cluster.status()
    if not status.running or status.details is None:
        print(f"cluster {cluster.name!r} is not running", file=sys.stderr)
        if status.problem:
            print(status.problem, file=sys.stderr)
        return 1
    if arguments.kubeconfig:
        print(status.kubeconfig)
        return 0
    print(f"cluster {cluster.name!r} at {status.server}")
    print(f"  export KUBECONFIG={status.kubeconfig}")
    print(f"  logs: {cluster.log.parent}")
    for name, process in status.details["processes"].items():
        print(f"  {name:24} pid {process['pid']:<8} {process['rss'] >> 20:5} MiB")
    pods = status.details["pods"].values()
    for name, node in status.details["nodes"].items():
        count = sum(pod["node"] == name for pod in pods)
        state = "" if node["connected"] else ", cut off"
        bad = f", unhealthy devices {node['unhealthy']}" if node["unhealthy"] else ""
        print(f"  {name:24} {node['ip']:16} {count} pods{state}{bad}")
    if status.details["without_namespaces"]:
        print(f"  pods run without namespaces: {status.details['without_namespaces']}")
    return 0


def _default_config() -> Path:
    here = Path(CONFIG)
    root = checkout()
    if here.is_file() or root is None:
        return here
    return root / CONFIG
