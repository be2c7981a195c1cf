"""What all nodes and pods of one agent share: the cluster, this machine and the settings."""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from localcluster import binaries
from localcluster.agent import backoff
from localcluster.agent.sandbox import Sandbox
from pdserve.kube.client import KubeClient


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What differs between agents; times in seconds."""

    lease_period: float = 10.0
    """How often a node renews its Lease; the control plane's node_grace must be several of it."""
    volume_refresh: float = 5.0
    """How soon a mounted ConfigMap or Secret shows a change (a kubelet: up to 60)."""
    restart_base: float = backoff.BASE_SECONDS
    namespaces: bool = True
    """False: run pods as plain processes even where namespaces work."""
    retry: float = 1.0
    """Pause before something missing is looked for again, or a status is sent again."""


@dataclass(frozen=True, slots=True)
class Host:
    """Shared by every `PodWorker`."""

    client: KubeClient
    session: aiohttp.ClientSession
    sandbox: Sandbox
    settings: AgentSettings
    directory: Path
    """Pods' directories are below; everything in it may be deleted when the agent ends."""
    logs: Path
    api_host: str
    api_port: int
    prometheus: Callable[[], Path] = binaries.prometheus

    def image_env(self, pod_name: str) -> dict[str, str]:
        """Variables every container has, as from its image and runtime."""
        here = str(Path(sys.executable).parent)
        return {
            "PATH": f"{here}:{os.environ.get('PATH', os.defpath)}",
            "HOME": "/tmp",  # noqa: S108 - a container's home must not be this user's
            "LANG": "C.UTF-8",
            "HOSTNAME": pod_name,
        }

    def service_env(self) -> dict[str, str]:
        """Variables of the one Service that every container can use: the API server."""
        return {
            "KUBERNETES_SERVICE_HOST": self.api_host,
            "KUBERNETES_SERVICE_PORT": str(self.api_port),
            "KUBERNETES_SERVICE_PORT_HTTPS": str(self.api_port),
        }


def timestamp() -> str:
    """Now as Kubernetes writes it: RFC 3339, UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_timestamp() -> str:
    """Now as a Lease writes it: RFC 3339, UTC, with microseconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def monotonic() -> float:
    """Seconds that never go back."""
    return time.monotonic()


def log_event(kind: str, **fields: object) -> None:
    """One line of the agent's own log, as JSON on standard output."""
    line: Mapping[str, object] = {"time": micro_timestamp(), "event": kind, **fields}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
