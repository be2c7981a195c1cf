"""Traffic from a pod of the cluster to a gateway's Service: its name, its address, kube-proxy.

What a client inside the cluster sees when gateways come and go. Needs a cluster that routes
Services. The load is open-loop (`pdserve.cli.load`), so nothing slows down with the service. It
begins when its own pod has a network: a client that has none yet says nothing about the gateways.
"""

from __future__ import annotations

import json
from typing import Any

from tests.support import scenarios as s
from tests.support.installed import image, make_namespace
from tests.support.traffic import KEY, MODEL

from pdserve.wire.calls import PATH_HEALTH

NAMESPACE = "clients"
REACH = """
import sys, time, urllib.request
while True:
    try:
        urllib.request.urlopen(sys.argv[1], timeout=1).close()
        break
    except OSError as error:
        print(error, flush=True)
        time.sleep(0.2)
"""
"""Ends at the first answer; says why there was none."""


class ServiceTraffic:
    """`with ServiceTraffic(cluster, url) as traffic: ...`; the pod goes at the end."""

    def __init__(self, cluster: s.Cluster, url: str, *, rate: float = 4.0, tokens: int = 8) -> None:
        self._cluster = cluster
        self._reach = ["-c", REACH, url + PATH_HEALTH]
        self._args = [
            "-m", "pdserve.cli.load", "--url", url, "--model", MODEL, "--rate", str(rate),
            "--seconds", "3600", "--max-tokens", str(tokens), "--api-key", KEY,
        ]  # fmt: skip
        self._last: list[dict[str, Any]] = []

    def __enter__(self) -> ServiceTraffic:
        make_namespace(self._cluster, NAMESPACE)
        s.wait_account(self._cluster.kubectl, NAMESPACE)
        self._cluster.apply(_pod(self._reach, self._args), namespace=NAMESPACE)
        return self

    def __exit__(self, *_: object) -> None:
        self.outcomes()
        self._cluster.kubectl("delete", "pod", "load", "-n", NAMESPACE, "--now")

    def outcomes(self) -> list[dict[str, Any]]:
        """Every request that ended so far, as `pdserve.cli.load.Sample`."""
        lines = [line for line in self._logs("load").splitlines() if line.startswith("{")]
        self._last = [json.loads(line) for line in lines] or self._last
        return self._last

    def completed(self) -> int:
        """Requests that ended well so far."""
        return sum(o["status"] == 200 and not o["error"] for o in self.outcomes())

    def wait_more(self, requests: int) -> None:
        """Until so many more requests than now ended well."""
        now = self.completed()
        s.until(
            f"{requests} more requests end well",
            lambda: self.completed() >= now + requests,
            instead=lambda: {"reach": self._logs("reach")[-2000:], "last": self._last[-5:]},
        )

    def _logs(self, container: str) -> str:
        args = ("logs", "load", "-n", NAMESPACE, "-c", container)
        return self._cluster.kubectl(*args, check=False)

    @property
    def outcomes_at_end(self) -> list[dict[str, Any]]:
        """`outcomes` when they were last looked at, at the latest when the pod went."""
        return self._last

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Requests that did not end well, streaming or not."""
        return [o for o in self._last if o["status"] != 200 or o["error"]]

    @property
    def lost(self) -> list[dict[str, Any]]:
        """Requests that failed before anything of their answer came."""
        return [o for o in self.failed if not o["started_streaming"]]


def _pod(reach: list[str], load: list[str]) -> s.Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "load"},
        "spec": {
            "initContainers": [_python("reach", reach)],
            "containers": [_python("load", load)],
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        },
    }


def _python(name: str, args: list[str]) -> s.Json:
    return {
        "name": name,
        "image": image("gateway"),
        "command": ["python3"],
        "args": args,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
