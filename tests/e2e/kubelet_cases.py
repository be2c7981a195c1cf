"""Small pods that show what a kubelet says and does, each with the moment at which to compare.

The same pods run on real kubelets and on process nodes (`test_kubelet_conformance`). A case says
what to wait for before something is done to the pod (`ready`), what that is (`act`), and which of
the statuses seen afterwards counts: one for which `until` holds, or the last one of a pod that
was deleted.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Check = Callable[[Json], Any]

WAITS = "trap 'exit 0' TERM; sleep 1000 & wait"
HEEDS = "trap 'exit {0}' TERM; touch /tmp/heeds; sleep 1000 & wait"
"""To be ended when `HEEDING` holds: before its trap is set, a first process ignores SIGTERM."""
DEAF = "trap '' TERM; sleep 1000 & wait; sleep 1000"
NEVER = {"restartPolicy": "Never"}
GRACE = {"terminationGracePeriodSeconds": 20}
"""For what ends by itself when asked: among so many pods a shell may come to its trap late."""
SCRATCH = {"volumes": [{"name": "tmp", "emptyDir": {}}]}
SCRATCH_MOUNT = [{"name": "tmp", "mountPath": "/tmp"}]
HEEDING = {"exec": {"command": ["test", "-e", "/tmp/heeds"]}, "periodSeconds": 1}
GATES = ("example.test/A", "example.test/B")


@dataclass(frozen=True)
class Case:
    """One pod and when to look at it."""

    pod: Json
    until: Check | None
    """None: until it is gone."""
    act: str = ""
    """`kill` its container, `delete` it, or set gate A `True` or `False`."""

    @property
    def name(self) -> str:
        """The pod's."""
        return str(self.pod["metadata"]["name"])


# --- what to wait for ------------------------------------------------------------------------


def condition(pod: Json, kind: str) -> Json:
    """A condition of a pod, `{}` when it has none of that type."""
    found = pod.get("status", {}).get("conditions", ())
    return next((c for c in found if c["type"] == kind), {})


def container(pod: Json, field: str = "containerStatuses") -> Json:
    """Status of the first container, `{}` before there is one."""
    return next(iter(pod.get("status", {}).get(field, ())), {})


def ready(pod: Json) -> bool:
    """Condition Ready."""
    return bool(condition(pod, "Ready").get("status") == "True")


def running(pod: Json) -> bool:
    """The first container runs."""
    return "running" in container(pod).get("state", {})


def ended(pod: Json) -> bool:
    """Its last status: no container runs, and what they shared is taken down."""
    over = pod["status"].get("phase") in ("Succeeded", "Failed")
    return over and condition(pod, "PodReadyToStartContainers").get("status") == "False"


def waits_for(reason: str) -> Check:
    """The first container waits for this reason, and was never restarted."""

    def check(pod: Json) -> bool:
        found = container(pod)
        waiting = found.get("state", {}).get("waiting", {})
        return bool(waiting.get("reason") == reason and found["restartCount"] == 0)

    return check


def backs_off(field: str = "containerStatuses") -> Check:
    """The first container of that field was restarted, once or more, and waits to be again."""

    def check(pod: Json) -> bool:
        found = container(pod, field)
        waiting = found.get("state", {}).get("waiting", {})
        return bool(waiting.get("reason") == "CrashLoopBackOff" and found["restartCount"] >= 1)

    return check


def again(pod: Json) -> bool:
    """Restarted, once or more, started and ready.

    A kubelet may call the new container ready, for a moment, as its predecessor was; and may never
    tell how that one ended, but does of a later one.
    """
    found = container(pod)
    settled = found.get("started") and "terminated" in found["lastState"]
    return ready(pod) and bool(found["restartCount"] >= 1 and settled)


# --- pods --------------------------------------------------------------------------------------


def sh(script: str) -> list[str]:
    """A command line for a shell script."""
    return ["sh", "-c", script]


def pod(name: str, command: list[str], spec: Mapping[str, Any] | None = None, **main: Any) -> Json:
    """A pod of one container; `spec` are fields of the pod, `main` of the container."""
    first = {"name": "main", "image": "", "command": command, **main}
    fields = {"terminationGracePeriodSeconds": 2, **(spec or {}), "containers": [first]}
    meta = {"name": name, "labels": {"case": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": fields}


def init(*scripts: str) -> list[Json]:
    """Init containers `init0`, `init1`..."""
    return [
        {"name": f"init{i}", "image": "", "command": sh(script)} for i, script in enumerate(scripts)
    ]


def gates(*names: str) -> Json:
    """Readiness gates."""
    return {"readinessGates": [{"conditionType": name} for name in names]}


def exec_probe(*command: str, **more: Any) -> Json:
    """A probe every second."""
    return {"exec": {"command": list(command)}, "periodSeconds": 1, **more}


def _from(kind: str, name: str, key: str) -> Json:
    return {"name": "X", "valueFrom": {kind: {"name": name, "key": key}}}


def _heeding(name: str, exit_code: int, **main: Any) -> Json:
    return pod(
        name,
        sh(HEEDS.format(exit_code)),
        {**GRACE, **SCRATCH},
        volumeMounts=SCRATCH_MOUNT,
        readinessProbe=HEEDING,
        **main,
    )


def _beside(pod_: Json, script: str) -> Json:
    pod_["spec"]["containers"].append({"name": "side", "image": "", "command": sh(script)})
    return pod_


OBJECTS: list[Json] = [
    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
     "data": {"colour": "red", "size": "3"}},
    {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "credentials"},
     "stringData": {"token": "s3"}},
]  # fmt: skip

LOOK = """
    import json, os, stat
    def mode(path, status=os.lstat):
        return oct(stat.S_IMODE(status(path).st_mode))
    def look(root):
        found = {}
        for folder, folders, files in os.walk(root):
            for name in folders + files:
                path = os.path.join(folder, name)
                shown = os.path.relpath(path, root)
                if shown.startswith("..") and not shown.startswith("..data"):
                    continue
                linked = os.path.islink(path)
                found[shown] = "link to " + mode(path, os.stat) if linked else mode(path)
        return found
    roots = sorted("/v/" + name for name in os.listdir("/v"))
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    said = {
        "cwd": os.getcwd(),
        "pid": os.getpid(),
        "stdin": os.read(0, 1).decode(),
        "env": dict(os.environ),
        "files": {root: look(root) for root in [*roots, account] if os.path.isdir(root)},
        "emptyDir": mode("/v/empty"),
        "read_only": {root: bool(os.statvfs(root).f_flag & os.ST_RDONLY) for root in roots},
        "text": {path: open(path).read() for path in (
            "/v/down/labels", "/v/down/cpu", "/v/down/name", "/v/one", account + "/namespace")},
    }
    print(json.dumps(said))
"""


def _sees() -> Json:
    config, secret = {"name": "settings"}, {"secretName": "credentials"}
    item = {"key": "colour", "path": "deep/er", "mode": 0o600}
    token = {"serviceAccountToken": {"path": "token", "audience": "x"}}
    cpu = {"containerName": "main", "resource": "requests.cpu", "divisor": "1m"}
    down = [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
        {"path": "cpu", "resourceFieldRef": cpu},
    ]
    volumes: dict[str, Json] = {
        "cm": {"configMap": config},
        "secret": {"secret": secret},
        "items": {"configMap": {**config, "items": [item]}},
        "projected": {"projected": {"sources": [{"configMap": config}, token]}},
        "down": {"downwardAPI": {"items": down}},
        "empty": {"emptyDir": {}},
    }
    fields = {
        "SA": "spec.serviceAccountName", "NS": "metadata.namespace",
        "NONE": "metadata.annotations['no']", "CASE": "metadata.labels['case']",
    }  # fmt: skip
    return pod(
        "sees",
        ["python3", "-c", textwrap.dedent(LOOK)],
        {**NEVER, "volumes": [{"name": name, **volume} for name, volume in volumes.items()]},
        workingDir="/",
        resources={"requests": {"cpu": "20m"}},
        volumeMounts=[
            *({"name": name, "mountPath": f"/v/{name}"} for name in volumes),
            {"name": "cm", "mountPath": "/v/one", "subPath": "colour"},
        ],
        env=[
            {"name": "A", "value": "$(B) $(HOME) $(NOTHING) $$(A)"},
            {"name": "B", "value": "b"},
            {"name": "C", "value": "$(B)$(B)"},
            {"name": "CPU", "valueFrom": {
                "resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
            *({"name": n, "valueFrom": {"fieldRef": {"fieldPath": p}}} for n, p in fields.items()),
        ],
    )  # fmt: skip


CASES = [
    Case(pod("plain", sh(WAITS), {"initContainers": init("exit 0")}), ready),
    Case(pod("succeeds", sh("exit 0"), NEVER), ended),
    Case(pod("fails", sh("exit 7"), NEVER), ended),
    Case(
        pod("on-failure", sh("test -e /tmp/x && exit 0; touch /tmp/x; exit 5"),
            {"restartPolicy": "OnFailure", **SCRATCH}, volumeMounts=SCRATCH_MOUNT),
        ended,
    ),
    Case(_beside(pod("one-of-two-ends", sh(WAITS), NEVER), "exit 3"),
         lambda p: running(p) and "terminated" in p["status"]["containerStatuses"][1]["state"]),
    # Programs that do not start, or not for long.
    Case(pod("absent", ["/no/such"], NEVER), ended),
    Case(pod("absent-in-path", ["no-such"], NEVER), ended),
    Case(pod("not-executable", ["/etc/passwd"], NEVER), ended),
    Case(pod("absent-again", ["/no/such"]), backs_off()),
    Case(pod("crashes", sh("exit 3")), backs_off()),
    Case(pod("completes-again", sh("exit 0")), backs_off()),
    Case(pod("init-fails", sh(WAITS), {**NEVER, "initContainers": init("exit 4", "exit 0")}),
         ended),
    Case(pod("init-crashes", sh(WAITS), {"initContainers": init("exit 4")}),
         backs_off("initContainerStatuses")),
    Case(pod("working-directory", sh("test $(pwd) = /made/up"), NEVER, workingDir="/made/up"),
         ended),
    # What is missing.
    Case(pod("no-secret", sh(WAITS), env=[_from("secretKeyRef", "later", "x")]),
         waits_for("CreateContainerConfigError")),
    Case(pod("no-key", sh(WAITS), env=[_from("configMapKeyRef", "settings", "x")]),
         waits_for("CreateContainerConfigError")),
    Case(pod("no-image", sh(WAITS), image="pdserve/absent:1", imagePullPolicy="Never"),
         waits_for("ErrImageNeverPull")),
    # Probes, hooks and gates.
    Case(pod("starting", sh(WAITS), startupProbe=exec_probe("false", failureThreshold=600)),
         running),
    Case(pod("not-ready", sh(WAITS), readinessProbe=exec_probe("false")),
         lambda p: running(p) and container(p)["started"]),
    Case(pod("probed", sh(WAITS), startupProbe=exec_probe("true", failureThreshold=60),
             readinessProbe=exec_probe("true")), ready),
    Case(pod("not-alive", sh(HEEDS.format(9)), {**GRACE, **SCRATCH}, volumeMounts=SCRATCH_MOUNT,
             startupProbe={**HEEDING, "failureThreshold": 600},
             livenessProbe=exec_probe("false", initialDelaySeconds=4, failureThreshold=2)), again),
    Case(pod("not-alive-and-deaf", sh(DEAF),
             livenessProbe=exec_probe("false", initialDelaySeconds=4, failureThreshold=2)), again),
    Case(pod("hook-fails", sh(HEEDS.format(0)), {**NEVER, **GRACE, **SCRATCH},
             volumeMounts=SCRATCH_MOUNT, lifecycle={"postStart": {"exec": {"command": sh(
                 "until test -e /tmp/heeds; do sleep 0.1; done; exit 3")}}}), ended),
    # Longer than the grace period of its pod, which does not count for it.
    Case(pod("hook-takes-long", sh(WAITS),
             lifecycle={"postStart": {"exec": {"command": ["sleep", "4"]}}}), ready),
    Case(pod("gated", sh(WAITS), gates(*GATES)),
         lambda p: "but False" in condition(p, "Ready").get("message", ""), act="False"),
    Case(pod("gate-opens", sh(WAITS), gates(GATES[0])), ready, act="True"),
    # Last words.
    Case(pod("message", sh("echo why > /dev/termination-log; exit 2"), NEVER), ended),
    Case(pod("message-elsewhere", sh("echo why > /tmp/why"), {**NEVER, **SCRATCH},
             volumeMounts=SCRATCH_MOUNT, terminationMessagePath="/tmp/why"), ended),
    Case(pod("message-from-log", sh("echo one; echo two; exit 2"), NEVER,
             terminationMessagePolicy="FallbackToLogsOnError"), ended),
    # Ends.
    # Counted from before its start: when they are over, its trap must be set.
    Case(pod("deadline", sh(WAITS), {**GRACE, "activeDeadlineSeconds": 30}), ended),
    Case(pod("killed", sh(WAITS)), again, act="kill"),
    Case(_heeding("deleted", 0), None, act="delete"),
    Case(_heeding("deleted-with-hook", 0,
                  lifecycle={"preStop": {"exec": {"command": ["sleep", "1"]}}}),
         None, act="delete"),
    Case(pod("deleted-and-deaf", sh(DEAF)), None, act="delete"),
    Case(_heeding("deleted-and-fails", 6), None, act="delete"),
    # What it sees.
    Case(pod("host-network", sh(WAITS), {"hostNetwork": True}), ready),
    Case(_sees(), ended),
]  # fmt: skip
