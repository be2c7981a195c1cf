"""Pods on process nodes start, see what they should, and restart as under a kubelet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.cluster import ClusterAccess, condition, container, eventually, is_ready
from tests.support.pods import IMAGE, POD_IP, SERVER, fetch, pod, python

pytestmark = pytest.mark.cluster


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
    assert condition(ended, "Ready")["reason"] == ("PodFailed" if exit_code else "PodCompleted")
    assert container(ended)["restartCount"] == 0


def test_a_program_that_is_not_there_never_runs(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    run(pod("absent", "/no/such", restartPolicy="Never"), pod("absent-again", "no-such"))
    ended = cluster.wait_pod("absent", lambda p: p["status"]["phase"] == "Failed")
    state = container(ended)["state"]["terminated"]
    assert (state["exitCode"], state["reason"]) == (128, "StartError")
    assert state["message"] == 'exec: "/no/such": stat /no/such: no such file or directory'
    assert state["startedAt"] == "1970-01-01T00:00:00Z"
    again = cluster.wait_pod("absent-again", lambda p: container(p).get("restartCount"))
    assert container(again)["lastState"]["terminated"]["reason"] == "StartError"
    assert not any(c["ready"] for c in again["status"]["containerStatuses"])


@pytest.mark.parametrize(
    ("name", "script", "fields", "message"),
    [
        ("tells", "echo why > /dev/termination-log; exit 2", {}, "why\n"),
        (
            "logs",
            "echo one; exit 2",
            {"terminationMessagePolicy": "FallbackToLogsOnError"},
            "one\n",
        ),
        ("silent", "echo one; exit 2", {}, None),
        ("well", "echo a > /last; exit 0", {"terminationMessagePath": "/last"}, "a\n"),
    ],
)
def test_the_last_word_of_a_container(
    cluster: ClusterAccess,
    run: Callable[..., str],
    name: str,
    script: str,
    fields: dict[str, str],
    message: str | None,
) -> None:
    run(pod(name, "sh", "-c", script, restartPolicy="Never", **fields))
    ended = cluster.wait_pod(name, lambda p: p["status"]["phase"] in ("Succeeded", "Failed"))
    assert container(ended)["state"]["terminated"].get("message") == message


def test_a_working_directory_is_made_where_there_is_none(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    run(
        pod(
            "there", "sh", "-c", "pwd; touch here", restartPolicy="Never", workingDir="/made/up",
        ),
        pod(
            "inside", "sh", "-c", "pwd; touch here", restartPolicy="Never", workingDir="/v/made",
            volumeMounts=[{"name": "v", "mountPath": "/v"}],
            volumes=[{"name": "v", "emptyDir": {}}],
        ),
    )  # fmt: skip
    for name, where in (("there", "/made/up"), ("inside", "/v/made")):
        cluster.wait_pod(name, lambda p: p["status"]["phase"] == "Succeeded")
        assert cluster.kubectl("logs", name) == f"{where}\n"
    assert not Path("/made").exists(), "not on the machine"


def test_a_crashing_container_is_restarted_with_growing_back_off(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    run(pod("crashes", "sh", "-c", "echo run; exit 3"))
    first = cluster.wait_pod("crashes", lambda p: container(p).get("restartCount", 0) >= 1)
    seen = container(first)["restartCount"]
    assert container(first)["lastState"]["terminated"]["exitCode"] == 3
    # The first restart is immediate, later ones wait: 2 s, 4 s with the tests' settings.
    loop = cluster.wait_pod(
        "crashes",
        lambda p: container(p)["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff",
    )
    assert loop["status"]["phase"] == "Running"
    assert "back-off" in container(loop)["state"]["waiting"]["message"]
    later = cluster.wait_pod("crashes", lambda p: container(p)["restartCount"] > seen)
    ids = {container(p)["containerID"] for p in (first, later)}
    assert len(ids) == 2
    # While the next run is prepared, the last one's log is the only one.
    eventually(
        "the log of the run before",
        lambda: cluster.kubectl("logs", "crashes", "--previous", check=False) == "run\n",
    )


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
            "cat /etc/app/colour /etc/app/one /secret/token /info/labels /scratch/made;"
            "id -u; echo $COMBINED $colour $ASCEND_VISIBLE_DEVICES $CORES $(POD_NAME) $$$$; pwd;"
            "touch /etc/app/new 2>&1; echo end; exec sleep 1000",
            workingDir="/scratch",
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
                {"name": "scratch", "mountPath": "/scratch"},
            ],
            volumes=[
                {"name": "config", "projected": {"sources": [
                    {"configMap": {"name": "settings", "items": [{"key": "colour",
                                                                  "path": "colour"}]}}]}},
                {"name": "one", "configMap": {"name": "settings"}},
                {"name": "secret", "secret": {"secretName": "credentials"}},
                {"name": "info", "downwardAPI": {"items": [
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                {"name": "scratch", "emptyDir": {}},
            ],
            initContainers=[{
                "name": "init", "image": IMAGE,
                "command": ["sh", "-c", "echo made > /scratch/made"],
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            }],
        ),
    )  # fmt: skip
    cluster.wait_pod("sees", is_ready)
    log = cluster.wait_log("sees", "\nend\n")
    assert log.startswith('redreds3crettest="sees"made\n0\n')
    assert "red/s3cret/$(ABSENT)/$(TOKEN) red 0,1 2 sees 1\n/scratch\n" in log
    assert "/etc/app/new" in log and "Read-only file system" in log


def test_a_mounted_config_map_follows_its_object(
    cluster: ClusterAccess, run: Callable[..., str]
) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "live"}}
    follow = """
        import pathlib, time
        seen, data = None, pathlib.Path("/live/..data")
        while True:
            time.sleep(0.02)
            folder = data.resolve()
            try:
                now = sorted((p.name, p.read_text()) for p in folder.iterdir())
            except OSError:
                continue  # replaced and deleted meanwhile
            if now != seen and data.resolve() == folder:
                print(now, flush=True)
                seen = now
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
    cluster.wait_log("follows", "\n")
    cluster.apply({**config, "data": {"a": "2", "c": "2"}})
    log = cluster.wait_log("follows", "'2'), ('c'")
    # All at once: nothing is seen in between.
    assert log.splitlines() == ["[('a', '1'), ('b', '1')]", "[('a', '2'), ('c', '2')]"]


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
    assert cluster.wait_log("patient", "\n") == "got it\n"


def test_an_unknown_image_cannot_be_pulled(cluster: ClusterAccess, run: Callable[..., str]) -> None:
    unknown = pod("foreign", "sleep", "1")
    unknown["spec"]["containers"][0]["image"] = "nginx:1.29"
    run(unknown)
    seen = cluster.wait_pod(
        "foreign",
        lambda p: container(p).get("state", {}).get("waiting", {}).get("reason") == "ErrImagePull",
    )
    waiting = container(seen)["state"]["waiting"]
    assert "nginx:1.29" in waiting["message"]
    assert "pdserve/engine" in waiting["message"]


def test_probes(cluster: ClusterAccess, run: Callable[..., str]) -> None:
    """Startup gates the rest, readiness follows the program, failing liveness restarts it."""
    # What the program answers decides, not how soon.
    probe = {"periodSeconds": 1, "timeoutSeconds": 30}
    run(
        pod(
            "probed",
            *python(SERVER),
            env=[POD_IP],
            ports=[{"name": "http", "containerPort": 8000}],
            startupProbe={"tcpSocket": {"port": "http"}, "failureThreshold": 600, **probe},
            readinessProbe={"exec": {"command": ["sh", "-c", "test -e /tmp/ready"]}, **probe},
            livenessProbe={
                "httpGet": {"path": "/health", "port": "http"}, "failureThreshold": 1, **probe,
            },
            volumeMounts=[{"name": "tmp", "mountPath": "/tmp"}],
            volumes=[{"name": "tmp", "emptyDir": {}}],
            terminationGracePeriodSeconds=30,
        )
    )  # fmt: skip
    started = cluster.wait_pod("probed", lambda p: container(p).get("started"))
    assert not container(started)["ready"]
    assert condition(started, "Ready")["reason"] == "ContainersNotReady"
    pods = cluster.admin.status()["pods"]["default/probed"]
    Path("/proc", str(pods["pids"]["main"]), "root", "tmp", "ready").touch()
    ready = cluster.wait_pod("probed", is_ready)
    fetch(ready, "/break")
    again = cluster.wait_pod("probed", lambda p: container(p)["restartCount"] == 1)
    # SIGTERM first: the program had the chance to end by itself.
    assert container(again)["lastState"]["terminated"]["exitCode"] == 0
