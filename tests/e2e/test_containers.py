"""What runs in the containers: nothing privileged, nothing writable, no rights it does not need."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest
from tests.support import scenarios as s
from tests.support.installed import MONITORING, NAMESPACE, OPERATOR_NAMESPACE, SERVICE, Installed

pytestmark = pytest.mark.e2e

ENFORCE = "pod-security.kubernetes.io/enforce"


@pytest.mark.parametrize("namespace", [OPERATOR_NAMESPACE, NAMESPACE, MONITORING])
def test_pod_security_restricted_is_enforced(
    installed: Installed, shop_service: Mapping[str, float], namespace: str
) -> None:
    found = installed.cluster.get(f"/api/v1/namespaces/{namespace}") or {}
    assert found["metadata"]["labels"][ENFORCE] == "restricted"
    privileged = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "privileged"},
        "spec": {"containers": [{"name": "x", "image": "x"}]},
    }
    said = installed.cluster.kubectl(
        "create", "-n", namespace, "--dry-run=server", "-f", "-",
        stdin=json.dumps(privileged), check=False,
    )  # fmt: skip
    assert 'violates PodSecurity "restricted' in said


def inside(cluster: s.Cluster, pod: s.Json, code: str) -> str:
    """What Python code prints in a pod's first container."""
    where = ("-n", pod["metadata"]["namespace"], s.name_of(pod))
    container = pod["spec"]["containers"][0]["name"]
    return cluster.kubectl("exec", *where, "-c", container, "--", "python3", "-c", code).strip()


LOOK = """
import json, os, pathlib, tempfile
def writable(path):
    try:
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False
status = dict(l.split(":", 1) for l in open("/proc/self/status") if ":" in l)
print(json.dumps({
    "uid": os.getuid(),
    "capabilities": int(status["CapEff"], 16),
    "no_new_privileges": int(status["NoNewPrivs"]),
    "seccomp": int(status["Seccomp"]),
    "writable": [p for p in ("/", "/etc", "/usr", "/opt", "/var", "/home") if writable(p)],
    "token": os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount/token"),
}))
"""


def test_processes_are_confined(
    installed: Installed,
    shop_service: Mapping[str, float],
    record_property: Callable[[str, object], None],
) -> None:
    """As the kernel sees it, in an operator, a gateway and an instance."""
    cluster = installed.cluster
    s.wait_service(cluster, NAMESPACE, SERVICE)
    looked = {
        "operator": (installed.operator(), True),
        "gateway": (s.gateways(cluster, NAMESPACE, SERVICE)[0], True),
        "prefill": (s.pods(cluster, NAMESPACE, role="prefill")[0], False),
        "decode": (s.pods(cluster, NAMESPACE, role="decode")[0], False),
    }
    for name, (pod, token) in looked.items():
        found = json.loads(inside(cluster, pod, LOOK))
        assert found == {
            "uid": 65532,
            "capabilities": 0,
            "no_new_privileges": 1,
            "seccomp": 2,
            "writable": [],
            "token": token,
        }, name
    record_property("looked_at", list(looked))


def test_a_gateway_reads_one_configmap_and_nothing_else(
    installed: Installed, shop_service: Mapping[str, float]
) -> None:
    """By what the API server says to its account."""
    cluster = installed.cluster
    account = f"system:serviceaccount:{NAMESPACE}:{SERVICE}-gateway"

    def may(verb: str, what: str) -> bool:
        said = cluster.kubectl(
            "auth", "can-i", verb, what, "-n", NAMESPACE, f"--as={account}", check=False
        )
        return said.splitlines()[0] == "yes"

    assert all(may(verb, f"configmaps/{SERVICE}-routes") for verb in ("list", "watch"))
    refused = [
        ("get", "configmaps"), ("list", "configmaps"), ("watch", "configmaps/kube-root-ca.crt"),
        ("update", f"configmaps/{SERVICE}-routes"), ("get", "secrets"), ("list", "pods"),
        ("create", "pods"), ("get", "nodes"),
    ]  # fmt: skip
    assert [each for each in refused if may(*each)] == []
