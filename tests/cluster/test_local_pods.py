"""Pods on process nodes live as they would under a kubelet."""

from __future__ import annotations

import json
import textwrap
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.cluster import (
    ClusterAccess,
    Json,
    condition,
    container,
    eventually,
    is_ready,
)

from pdserve.local import processes

pytestmark = pytest.mark.cluster

IMAGE = "registry.example/pdserve/engine:test"
SERVER = """
    import http.server, os, signal, sys, threading
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/break":
                broken.set()
            self.send_response(500 if broken.is_set() and self.path == "/health" else 200)
            self.end_headers()
            self.wfile.write(os.environ.get("SAY", "").encode())
        def log_message(self, *a): pass
    broken = threading.Event()
    signal.signal(signal.SIGTERM, lambda *a: (print("asked to end", flush=True), os._exit(0)))
    http.server.ThreadingHTTPServer((os.environ["POD_IP"], 8000), Handler).serve_forever()
"""
POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def pod(name: str, *command: str, **main: Any) -> Json:
    spec_fields = {
        key: main.pop(key)
        for key in (
            "restartPolicy",
            "terminationGracePeriodSeconds",
            "volumes",
            "initContainers",
            "readinessGates",
            "nodeName",
            "automountServiceAccountToken",
        )
        if key in main
    }
    spec_fields.setdefault("terminationGracePeriodSeconds", 1)
    first = {"name": "main", "image": IMAGE, "command": list(command), **main}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"test": name}},
        "spec": {"containers": [first], **spec_fields},
    }


def python(source: str) -> tuple[str, ...]:
    return ("python", "-c", textwrap.dedent(source))


@pytest.fixture
def run(cluster: ClusterAccess) -> Iterator[Callable[..., str]]:
    """Apply pods and other objects; everything is deleted afterwards."""
    applied: list[Json] = []

    def apply(*objects: Json) -> str:
        applied.extend(objects)
        cluster.apply(*objects)
        return str(objects[-1]["metadata"]["name"])

    yield apply
    for obj in applied:
        cluster.kubectl(
            "delete", obj["kind"], obj["metadata"]["name"],
            "--wait=false", "--ignore-not-found", "--grace-period=0", "--force",
        )  # fmt: skip


def fetch(pod: Json, path: str = "/") -> str:
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8000{path}", timeout=5) as reply:
        return str(reply.read().decode())


@pytest.mark.parametrize(
    ("name", "policy", "script", "phase", "exit_code"),
    [
        ("succeeds", "Never", "exit 0", "Succeeded", 0),
        ("fails", "Never", "exit 7", "Failed", 7),
        ("succeeds-on-failure", "OnFailure", "exit 0", "Succeeded", 0),
        ("cannot-run", "Never", "exec /no/such/program", "Failed", 127),
    ],
)
def test_a_pod_that_ends(
    cluster: ClusterAccess,
    run: Callable[..., str],
    name: str,
    policy: str,
    script: str,
    phase: str,
    exit_code: int,
) -> None:
    run(pod(name, "sh", "-c", script, restartPolicy=policy))
    ended = cluster.wait_pod(name, lambda p: p["status"]["phase"] == phase)
    state = container(ended)["state"]["terminated"]
    assert state["exitCode"] == exit_code
    assert state["reason"] == ("Completed" if exit_code == 0 else "Error")
    assert condition(ended, "Ready")["reason"] == "PodCompleted"
    assert container(ended)["restartCount"] == 0


def test_a_crashing_container_is_restarted_with_growing_back_off(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    run(pod("crashes", "sh", "-c", "echo run; exit 3"))
    first = cluster.wait_pod("crashes", lambda p: container(p).get("restartCount", 0) >= 1)
    assert container(first)["lastState"]["terminated"]["exitCode"] == 3
    # The first restart is immediate, later ones wait: 2 s, 4 s with the tests' settings.
    loop = cluster.wait_pod(
        "crashes",
        lambda p: container(p)["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff",
    )
    assert loop["status"]["phase"] == "Running"
    assert "back-off" in container(loop)["state"]["waiting"]["message"]
    second = cluster.wait_pod("crashes", lambda p: container(p)["restartCount"] >= 2)
    ids = {container(p)["containerID"] for p in (first, second)}
    assert len(ids) == 2
    assert cluster.kubectl("logs", "crashes", "--previous") == "run\n"


def test_a_killed_container_says_so_and_comes_back_under_a_new_id(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    run(pod("killed", *python(SERVER), env=[POD_IP]))
    before = cluster.wait_pod("killed", is_ready)
    cluster.admin.kill("default", "killed")
    after = cluster.wait_pod("killed", lambda p: container(p)["restartCount"] == 1 and is_ready(p))
    assert container(after)["containerID"] != container(before)["containerID"]
    last = container(after)["lastState"]["terminated"]
    assert last["exitCode"] == 137
    assert after["status"]["podIP"] == before["status"]["podIP"]
    assert last["containerID"] == container(before)["containerID"]


def test_environment_and_volumes(cluster: ClusterAccess, run: Callable[..., str]) -> None:
    run(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
         "data": {"colour": "red", "1st": "x"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "credentials"},
         "stringData": {"token": "s3cret"}},
        pod(
            "sees",
            "sh", "-c",
            "cat /etc/app/colour /etc/app/one /secret/token /info/labels /work/made;"
            "id -u; echo $COMBINED $colour $ASCEND_VISIBLE_DEVICES $CORES $(POD_NAME) $$$$; pwd;"
            "touch /etc/app/new 2>&1; exec sleep 1000",
            workingDir="/work",
            envFrom=[{"configMapRef": {"name": "settings"}}],
            env=[
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "TOKEN",
                 "valueFrom": {"secretKeyRef": {"name": "credentials", "key": "token"}}},
                {"name": "ABSENT", "valueFrom": {
                    "configMapKeyRef": {"name": "nowhere", "key": "k", "optional": True}}},
                {"name": "CORES", "valueFrom": {
                    "resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "COMBINED", "value": "$(colour)/$(TOKEN)/$(ABSENT)/$$(TOKEN)"},
            ],
            resources={"limits": {"cpu": "1500m", "huawei.com/Ascend910": "2"}},
            volumeMounts=[
                {"name": "config", "mountPath": "/etc/app"},
                {"name": "one", "mountPath": "/etc/app/one", "subPath": "colour"},
                {"name": "secret", "mountPath": "/secret"},
                {"name": "info", "mountPath": "/info"},
                {"name": "work", "mountPath": "/work"},
            ],
            volumes=[
                {"name": "config", "projected": {"sources": [
                    {"configMap": {"name": "settings", "items": [{"key": "colour",
                                                                  "path": "colour"}]}}]}},
                {"name": "one", "configMap": {"name": "settings"}},
                {"name": "secret", "secret": {"secretName": "credentials"}},
                {"name": "info", "downwardAPI": {"items": [
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                {"name": "work", "emptyDir": {}},
            ],
            initContainers=[{
                "name": "init", "image": IMAGE, "command": ["sh", "-c", "echo made > /work/made"],
                "volumeMounts": [{"name": "work", "mountPath": "/work"}],
            }],
        ),
    )  # fmt: skip
    cluster.wait_pod("sees", is_ready)
    log = eventually(
        "the whole log",
        lambda: (text := cluster.kubectl("logs", "sees")) and "/etc/app/new" in text and text,
    )
    assert log.startswith('redreds3crettest="sees"made\n0\n')
    assert "red/s3cret/$(ABSENT)/$(TOKEN) red 0,1 2 sees 1\n/work\n" in log
    assert "Read-only file system" in log


def test_a_mounted_config_map_follows_its_object(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "live"}}
    follow = """
        import pathlib, time
        seen, live = None, pathlib.Path("/live")
        while True:
            now = sorted((p.name, p.read_text()) for p in live.resolve().glob("..data/*"))
            if now != seen:
                print(now, flush=True)
                seen = now
            time.sleep(0.02)
    """
    run(
        {**config, "data": {"a": "1", "b": "1"}},
        pod(
            "follows",
            *python(follow),
            volumeMounts=[{"name": "live", "mountPath": "/live"}],
            volumes=[{"name": "live", "configMap": {"name": "live"}}],
        ),
    )
    cluster.wait_pod("follows", is_ready)
    cluster.apply({**config, "data": {"a": "2", "c": "2"}})
    eventually("the new content", lambda: "'2'), ('c'" in cluster.kubectl("logs", "follows"))
    lines = cluster.kubectl("logs", "follows").splitlines()
    assert lines[0] == "[('a', '1'), ('b', '1')]"
    assert lines[-1] == "[('a', '2'), ('c', '2')]"


def test_what_is_missing_is_named_and_waited_for(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    env = [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "later", "key": "x"}}}]
    run(pod("patient", "sh", "-c", "echo got $X; exec sleep 1000", env=env))
    waits = cluster.wait_pod(
        "patient",
        lambda p: (
            container(p).get("state", {}).get("waiting", {}).get("reason")
            == "CreateContainerConfigError"
        ),
    )
    assert container(waits)["state"]["waiting"]["message"] == 'secret "later" not found'
    assert waits["status"]["phase"] == "Pending"
    run(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "later"},
            "stringData": {"x": "it"},
        }
    )
    cluster.wait_pod("patient", is_ready)
    assert cluster.kubectl("logs", "patient") == "got it\n"


def test_an_unknown_image_cannot_be_pulled(cluster: ClusterAccess, run: Callable[..., str]) -> None:
    unknown = pod("stranger", "sleep", "1")
    unknown["spec"]["containers"][0]["image"] = "nginx:1.29"
    run(unknown)
    seen = cluster.wait_pod(
        "stranger",
        lambda p: container(p).get("state", {}).get("waiting", {}).get("reason") == "ErrImagePull",
    )
    waiting = container(seen)["state"]["waiting"]
    assert "nginx:1.29" in waiting["message"]
    assert "pdserve/engine" in waiting["message"]


def test_probes(cluster: ClusterAccess, run: Callable[..., str]) -> None:
    """Startup gates the rest, readiness follows the program, failing liveness restarts it."""
    probe = {"periodSeconds": 1, "timeoutSeconds": 2}
    run(
        pod(
            "probed",
            *python(SERVER),
            env=[POD_IP],
            ports=[{"name": "http", "containerPort": 8000}],
            startupProbe={"tcpSocket": {"port": "http"}, "failureThreshold": 30, **probe},
            readinessProbe={"exec": {"command": ["sh", "-c", "test -e /tmp/ready"]}, **probe},
            livenessProbe={
                "httpGet": {"path": "/health", "port": "http"}, "failureThreshold": 1, **probe,
            },
            volumeMounts=[{"name": "tmp", "mountPath": "/tmp"}],
            volumes=[{"name": "tmp", "emptyDir": {}}],
        )
    )  # fmt: skip
    started = cluster.wait_pod("probed", lambda p: container(p).get("started"))
    assert not container(started)["ready"]
    assert condition(started, "Ready")["reason"] == "ContainersNotReady"
    pods = cluster.admin.status()["pods"]["default/probed"]
    Path(f"/proc/{pods['pids']['main']}/root/tmp/ready").touch()
    ready = cluster.wait_pod("probed", is_ready)
    fetch(ready, "/break")
    again = cluster.wait_pod("probed", lambda p: container(p)["restartCount"] == 1)
    # SIGTERM first: the program had the chance to end by itself.
    assert container(again)["lastState"]["terminated"]["exitCode"] == 0


def test_readiness_gates_hold_back_ready_until_somebody_sets_them(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    gate = "example.test/Linked"
    run(pod("gated", "sleep", "1000", readinessGates=[{"conditionType": gate}]))
    held = cluster.wait_pod(
        "gated", lambda p: condition(p, "ContainersReady").get("status") == "True"
    )
    assert condition(held, "Ready")["reason"] == "ReadinessGatesNotReady"
    assert gate in condition(held, "Ready")["message"]
    cluster.kubectl(
        "patch", "pod", "gated", "--subresource=status", "-p",
        json.dumps({"status": {"conditions": [{"type": gate, "status": "True"}]}}),
    )  # fmt: skip
    ready = cluster.wait_pod("gated", is_ready)
    assert condition(ready, gate)["status"] == "True"
    # After a restart the gate's condition stands, as under a kubelet, and the pod is ready again.
    cluster.admin.kill("default", "gated")
    cluster.wait_pod("gated", lambda p: container(p)["restartCount"] == 1 and is_ready(p))


def test_deletion_runs_pre_stop_then_terminates_within_the_grace(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    hook = {"exec": {"command": ["sh", "-c", "echo hook > /proc/1/fd/1; sleep 0.5"]}}
    run(
        pod(
            "drained",
            *python(SERVER),
            env=[POD_IP],
            lifecycle={"preStop": hook},
            terminationGracePeriodSeconds=20,
        )
    )
    cluster.wait_pod("drained", is_ready)
    log = cluster.admin.status()["pods"]["default/drained"]["logs"] + "/main/0.log"
    cluster.kubectl("delete", "pod", "drained", "--wait=false")
    eventually("the pod is gone", lambda: cluster.pod("drained") is None, seconds=10.0)
    assert Path(log).read_text().splitlines() == ["hook", "asked to end"]


def test_a_program_that_ignores_sigterm_is_killed_when_the_grace_ends(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    run(pod("stubborn", "sleep", "1000", terminationGracePeriodSeconds=2))
    cluster.wait_pod("stubborn", is_ready)
    pids = cluster.admin.status()["pods"]["default/stubborn"]["pids"]
    cluster.kubectl("delete", "pod", "stubborn", "--wait=false")
    going = cluster.wait_pod("stubborn", lambda p: p["metadata"].get("deletionTimestamp"))
    assert container(going)["state"].get("running")
    eventually("the pod is gone", lambda: cluster.pod("stubborn") is None, seconds=10.0)
    assert not processes.is_alive(pids["main"])


def test_a_force_deleted_pod_is_ended_at_once(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    run(pod("forced", "sh", "-c", "sleep 1000 & exec sleep 1000", terminationGracePeriodSeconds=60))
    cluster.wait_pod("forced", is_ready)
    pid = cluster.admin.status()["pods"]["default/forced"]["pids"]["main"]
    cluster.kubectl("delete", "pod", "forced", "--grace-period=0", "--force")
    eventually("its processes are gone", lambda: not processes.is_alive(pid))


def test_a_failing_init_container_fails_the_pod(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    init = {"name": "init", "image": IMAGE, "command": ["sh", "-c", "exit 4"]}
    run(pod("uninitialised", "sleep", "1000", restartPolicy="Never", initContainers=[init]))
    failed = cluster.wait_pod("uninitialised", lambda p: p["status"]["phase"] == "Failed")
    assert container(failed, "init")["state"]["terminated"]["exitCode"] == 4
    assert container(failed)["state"]["waiting"]["reason"] == "PodInitializing"
    assert condition(failed, "Initialized")["status"] == "False"


def test_a_pod_talks_to_the_api_server_as_its_service_account(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    ask = """
        import asyncio
        from pdserve.kube.connect import connect, pod_namespace
        from pdserve.kube.errors import KubeError
        from pdserve.kube.resource import CONFIGMAPS, SECRETS
        async def main():
            client = await connect()
            found = await client.get(CONFIGMAPS, "kube-root-ca.crt", pod_namespace())
            print(found["metadata"]["name"], flush=True)
            try:
                await client.list(SECRETS, pod_namespace())
            except KubeError as error:
                print(error.status, error.message, flush=True)
        asyncio.run(main())
    """
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}],
    }  # fmt: skip
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
    }  # fmt: skip
    run(role, binding, pod("asks", *python(ask), restartPolicy="Never"))
    cluster.wait_pod("asks", lambda p: p["status"]["phase"] in ("Succeeded", "Failed"))
    log = cluster.kubectl("logs", "asks")
    assert log.splitlines()[0] == "kube-root-ca.crt", log
    assert "403" in log
    assert "system:serviceaccount:default:default" in log


def test_logs_tail_follow_and_refuse_strangers(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    script = "for i in 1 2 3; do echo line $i; done; sleep 1; echo last"
    run(pod("talks", "sh", "-c", script, restartPolicy="Never"))
    cluster.wait_pod("talks", lambda p: container(p).get("state", {}).get("running"))
    assert cluster.kubectl("logs", "talks", "--tail=1", "--follow").splitlines()[-1] == "last"
    assert cluster.kubectl("logs", "talks", "--tail=2") == "line 3\nlast\n"
    refused = cluster.kubectl("logs", "talks", "--since=1m", check=False)
    assert "sinceSeconds: not supported" in refused


def test_devices_are_given_out_once_and_shortage_is_said(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    """Pods put on a node past the scheduler, as `nodeName` does, still cannot share a device."""
    want = {"limits": {"huawei.com/Ascend910": "5"}}
    node = "pdserve-worker8"
    show = ("sh", "-c", "echo $ASCEND_VISIBLE_DEVICES; exec sleep 1000")
    run(pod("takes", *show, resources=want, nodeName=node))
    cluster.wait_pod("takes", is_ready)
    assert cluster.kubectl("logs", "takes") == "0,1,2,3,4\n"
    run(pod("too-much", *show, resources=want, nodeName=node))
    rejected = cluster.wait_pod("too-much", lambda p: p["status"]["phase"] == "Failed")
    assert rejected["status"]["reason"] == "UnexpectedAdmissionError"
    assert "Requested: 5, Available: 3" in rejected["status"]["message"]


def test_a_frozen_container_is_silent_and_then_goes_on(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    run(pod("icy", *python(SERVER), env=[POD_IP, {"name": "SAY", "value": "still here"}]))
    icy = cluster.wait_pod("icy", is_ready)
    eventually("it serves", lambda: _tries(icy))
    cluster.admin.freeze("default", "icy")
    with pytest.raises((TimeoutError, urllib.error.URLError)):
        urllib.request.urlopen(f"http://{icy['status']['podIP']}:8000/", timeout=0.5)
    cluster.admin.unfreeze("default", "icy")
    assert fetch(icy) == "still here"
    assert container(cluster.pod("icy") or {})["restartCount"] == 0


def _tries(pod: Json) -> bool:
    try:
        return fetch(pod) == "still here"
    except OSError:
        return False
