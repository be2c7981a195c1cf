"""Ways from this machine to pods of a real cluster: a `kubectl port-forward` per pod and port."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from threading import Lock, Thread

from localcluster import binaries

_SAID = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


class PortForwards:
    """Opens what is asked for, opens it again when it broke, and closes all at the end."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig
        self._open: dict[tuple[str, str, int], tuple[subprocess.Popen[str], int]] = {}
        self._lock = Lock()

    def port(self, namespace: str, pod: str, port: int) -> int:
        """A port on 127.0.0.1 that leads to the pod's port; fails with what kubectl said."""
        key = (namespace, pod, port)
        with self._lock:
            process, local = self._open.get(key, (None, 0))
            if process is None or process.poll() is not None:
                process, local = self._start(*key)
                self._open[key] = process, local
            return local

    def _start(self, namespace: str, pod: str, port: int) -> tuple[subprocess.Popen[str], int]:
        kubectl = binaries.kube(programs=("kubectl",)).path("kubectl")
        process = subprocess.Popen(
            [
                kubectl, "--kubeconfig", self._kubeconfig, "port-forward", "-n", namespace,
                f"pod/{pod}", f":{port}", "--address=127.0.0.1",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        assert process.stdout is not None
        said = process.stdout.readline()
        found = _SAID.search(said)
        if found is None:
            process.terminate()
            rest, _ = process.communicate(timeout=10)
            raise AssertionError(f"kubectl port-forward {namespace}/{pod} {port}: {said}{rest}")
        # It reports every connection and would block if nothing read that.
        Thread(target=process.stdout.read, daemon=True).start()
        return process, int(found[1])

    def close(self) -> None:
        """End all of them."""
        for process, _ in self._open.values():
            process.terminate()
        for process, _ in self._open.values():
            process.wait(timeout=10)
        self._open.clear()
