"""Pods on process nodes become ready, are asked, broken and ended as under a kubelet."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.cluster import ClusterAccess, Json, condition, container, eventually, is_ready
from tests.support.pods import IMAGE, POD_IP, SERVER, fetch, pod, python
from tests.support.scenarios import stopwatch

from localcluster import processes

pytestmark = pytest.mark.cluster


def test_readiness_gates_hold_back_ready_until_they_are_set(
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
            # It listens once its handler is set, without which a first process ignores SIGTERM.
            readinessProbe={"tcpSocket": {"port": 8000}, "periodSeconds": 1},
            lifecycle={"preStop": hook},
            terminationGracePeriodSeconds=600,
        )
    )
    cluster.wait_pod("drained", is_ready)
    log = cluster.admin.status()["pods"]["default/drained"]["logs"] + "/main/0.log"
    cluster.kubectl("delete", "pod", "drained", "--wait=false")
    eventually("the pod is gone", lambda: cluster.pod("drained") is None)
    assert Path(log).read_text().splitlines() == ["hook", "asked to end"]


def test_the_last_status_tells_how_it_ended_though_a_probe_was_in_flight(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    command = ("sh", "-c", "trap 'exit 0' TERM; touch /tmp/up; sleep 1000 & wait")
    probe = {"periodSeconds": 1, "failureThreshold": 60, "timeoutSeconds": 100}
    made = pod(
        "probed-to-the-end", *command,
        startupProbe={**probe, "exec": {"command": ["test", "-e", "/tmp/up"]}},
        readinessProbe={**probe, "exec": {"command": ["sleep", "100"]}},
        volumeMounts=[{"name": "tmp", "mountPath": "/tmp"}],
        volumes=[{"name": "tmp", "emptyDir": {}}],
    )  # fmt: skip
    # Holds the object for a look at what was said last.
    made["metadata"]["finalizers"] = ["example.test/look"]
    name = run(made)
    cluster.wait_pod(name, lambda p: container(p).get("started"))
    cluster.kubectl("delete", "pod", name, "--wait=false", "--grace-period=20")
    try:
        last = cluster.wait_pod(
            name, lambda p: p["metadata"].get("deletionGracePeriodSeconds") == 0
        )
        assert last["status"]["phase"] == "Succeeded"
        assert container(last)["state"]["terminated"]["exitCode"] == 0
    finally:
        cluster.kubectl("patch", "pod", name, "-p", '{"metadata": {"finalizers": null}}')


def test_a_program_that_ignores_sigterm_is_killed_when_the_grace_ends(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    grace = 5
    run(pod("stubborn", "sleep", "1000", terminationGracePeriodSeconds=grace))
    cluster.wait_pod("stubborn", is_ready)
    pid = cluster.admin.status()["pods"]["default/stubborn"]["pids"]["main"]
    with stopwatch() as seconds:
        cluster.kubectl("delete", "pod", "stubborn", "--wait=false")
        eventually(
            "it is killed, or the pod is gone",
            lambda: cluster.pod("stubborn") is None or not processes.is_alive(pid),
        )
        assert seconds() >= grace
        assert not processes.is_alive(pid)
    eventually("the pod is gone", lambda: cluster.pod("stubborn") is None)


def test_a_force_deleted_pod_is_ended_at_once(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    run(pod("forced", "sh", "-c", "sleep 1000 & exec sleep 1000", terminationGracePeriodSeconds=60))
    cluster.wait_pod("forced", is_ready)
    pid = cluster.admin.status()["pods"]["default/forced"]["pids"]["main"]
    cluster.kubectl("delete", "pod", "forced", "--grace-period=0", "--force")
    eventually("its processes are gone", lambda: not processes.is_alive(pid))


def test_a_shorter_grace_counts_from_when_it_is_asked_for(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    deaf = "trap '' TERM; sleep 1000 & wait; exec sleep 1000"
    run(pod("waits", "sh", "-c", deaf, terminationGracePeriodSeconds=600))
    cluster.wait_pod("waits", is_ready)
    cluster.kubectl("delete", "pod", "waits", "--wait=false")
    going = cluster.wait_pod("waits", lambda p: p["metadata"].get("deletionTimestamp"))
    assert container(going)["state"].get("running")
    cluster.kubectl("delete", "pod", "waits", "--wait=false", "--grace-period=1")
    eventually("the pod is gone", lambda: cluster.pod("waits") is None)


def test_a_pod_ends_when_its_time_is_over(cluster: ClusterAccess, run: Callable[..., str]) -> None:
    heeds = ("sh", "-c", "trap 'exit 4' TERM; sleep 1000 & wait")
    limited = pod("limited", *heeds, terminationGracePeriodSeconds=30)
    # Counted from before its start; when they are over, the trap must be set.
    limited["spec"]["activeDeadlineSeconds"] = 10
    run(limited)
    ended = cluster.wait_pod("limited", lambda p: container(p).get("state", {}).get("terminated"))
    assert (ended["status"]["phase"], ended["status"]["reason"]) == ("Failed", "DeadlineExceeded")
    assert container(ended)["state"]["terminated"]["exitCode"] == 4
    assert condition(ended, "Ready")["reason"] == "PodFailed"
    assert container(ended)["restartCount"] == 0


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


def test_logs_tail_follow_and_refuse_unknown_clients(
    cluster: ClusterAccess, run: Callable[..., str], tmp_path: Path
) -> None:
    go = tmp_path / "go"  # pods of process nodes see this machine's files
    until = f"until test -e {go}; do sleep 0.1; done"
    script = f"for i in 1 2 3; do echo line $i; done; {until}; echo last"
    run(pod("talks", "sh", "-c", script, restartPolicy="Never"))
    cluster.wait_pod("talks", lambda p: container(p).get("state", {}).get("running"))
    cluster.wait_log("talks", "line 3\n")
    with cluster.following("logs", "talks", "--tail=1", "--follow") as log:
        assert log.readline() == "line 3\n"
        go.touch()
        assert log.read() == "last\n"
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
    assert cluster.wait_log("takes", "\n") == "0,1,2,3,4\n"
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
