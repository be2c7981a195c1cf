"""`scenarios.Cluster` on process nodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support import scenarios as s
from tests.support.cluster import ClusterAccess

from pdserve.wire import names


class ProcessCluster:
    """Pods are processes of this machine, so their addresses are its own."""

    nodes = "process"
    patience = 1.0

    def __init__(self, access: ClusterAccess) -> None:
        self._access = access
        self._admin = access.admin
        self.kubeconfig = access.kubeconfig
        self.kubectl = access.kubectl
        self.apply = access.apply
        self.get = access.get
        self.cut = access.admin.cut
        self.restore = access.admin.restore
        self.stop = access.admin.stop
        self.start = access.admin.start
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
