"""Process nodes report what real kubelets report: the same pods on both, statuses compared.

What is known to differ is listed here with its reason, and in docs/local.md; anything else that
differs fails. Run it after a change of the node agent or a Kubernetes version:

    pytest --nodes kind tests/e2e/test_kubelet_conformance.py
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.e2e.kubelet_cases import CASES, GATES, OBJECTS, Case, Json, again, condition, ready
from tests.support import scenarios as s
from tests.support.cluster import running_cluster
from tests.support.installed import image

from localcluster import binaries
from localcluster.agent.host import AgentSettings

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

NAMESPACE = "conformance"
SECONDS = 240.0
"""For all cases together, on both."""
REST = 3.0
"""Seconds to go on looking when every moment has come: a status may still be put right."""
CONFIG = """
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes: [{role: worker}, {role: worker}]
"""

NOT_PLAYED = {
    "resources": "limits are not enforced",
    "allocatedResources": "limits are not enforced",
    "user": "every container is the user that started the cluster",
    "volumeMounts": "whether read-only mounts are so recursively",
    "imageID": "images have no digest here",
    "qosClass": "set by the API server",
    "lastProbeTime": "always null",
}
"""Fields of a status that are left out of the comparison, and why."""
OWN_ENV = re.compile(r"PATH|PYTHON.*|KUBERNETES_.*|PDSERVE_BIND|PWD|OLDPWD|SHLVL|_")
"""Variables that come from the image, or from Services, which process nodes do not have."""


Kill = Callable[[str, str], None]
"""Kills the main process of a pod's container: `kill(namespace, pod)`."""


class Cluster(Protocol):
    """What is used of both."""

    @property
    def kubeconfig(self) -> Path: ...

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True) -> str: ...


@dataclass
class Watch:
    """Everything the API said of the pods, in order."""

    kubeconfig: Path
    events: list[tuple[str, Json]] = field(default_factory=list)

    def __enter__(self) -> Watch:
        kubectl = binaries.kube(programs=("kubectl",)).path("kubectl")
        self._process = subprocess.Popen(
            [kubectl, "--kubeconfig", self.kubeconfig, "get", "pods", "--namespace", NAMESPACE,
             "--watch", "--output-watch-events", "--output", "json"],
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            self.events.append((event["type"], event["object"]))

    def of(self, case: Case) -> list[tuple[str, Json]]:
        """Events of one pod."""
        events = list(self.events)
        return [(kind, pod) for kind, pod in events if pod["metadata"]["name"] == case.name]

    def moments(self, case: Case) -> dict[tuple[int, ...], Json]:
        """The pod when the moment to compare had come, the last so far at each number of restarts.

        Not the first: what the parts of a kubelet know comes together within a second or so.
        """
        found: dict[tuple[int, ...], Json] = {}
        for kind, pod in self.of(case):
            if (kind == "DELETED") if case.until is None else ("status" in pod and case.until(pod)):
                found[restarts(pod)] = pod
        return found


def restarts(pod: Json) -> tuple[int, ...]:
    """How often each container was started again."""
    fields = ("initContainerStatuses", "containerStatuses")
    return tuple(c["restartCount"] for f in fields for c in pod.get("status", {}).get(f, ()))


def meeting(case: Case, watches: Sequence[Watch]) -> tuple[int, ...] | None:
    """The fewest restarts at which every cluster showed the moment to compare.

    A kubelet with much to do may not report each back-off.
    """
    return min(set.intersection(*({*w.moments(case)} for w in watches)), default=None)


@dataclass(frozen=True)
class Played:
    """What one cluster showed: each pod at its moment (None: it never came on all), a log."""

    pods: dict[str, Json | None]
    fewest: dict[str, tuple[int, ...] | None]
    """The fewest restarts at which it showed the moment, whatever the others did."""
    last: dict[str, Json]
    logs: dict[str, str]


def play(clusters: Sequence[Cluster], kills: Sequence[Kill], cases: list[Case]) -> list[Played]:
    """Run all cases at once on all clusters, until each case can be compared."""
    objects = [*OBJECTS, *(_placed(case.pod) for case in cases)]
    listing = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    for cluster in clusters:
        _renew_namespace(cluster)
    with ExitStack() as stack:
        watches = [stack.enter_context(Watch(cluster.kubeconfig)) for cluster in clusters]
        for cluster in clusters:
            cluster.kubectl("create", "-n", NAMESPACE, "-f", "-", stdin=listing)
        deadline = time.monotonic() + SECONDS
        to_do = [(n, case) for n in range(len(clusters)) for case in cases if case.act]
        pending = cases
        while pending and time.monotonic() < deadline:
            for n, case in [(n, case) for n, case in to_do if _may_act(case, watches[n])]:
                _act(case, clusters[n], kills[n])
                to_do.remove((n, case))
            pending = [case for case in pending if meeting(case, watches) is None]
            time.sleep(0.1)
        time.sleep(REST)
        met = {case.name: meeting(case, watches) for case in cases}
        played = [
            Played(
                {
                    c.name: watch.moments(c)[at] if (at := met[c.name]) is not None else None
                    for c in cases
                },
                {c.name: min(watch.moments(c), default=None) for c in cases},
                {c.name: watch.of(c)[-1][1] for c in cases if watch.of(c)},
                {"sees": cluster.kubectl("logs", "-n", NAMESPACE, "sees", check=False)},
            )
            for cluster, watch in zip(clusters, watches, strict=True)
        ]
    for cluster in clusters:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    return played


def _renew_namespace(cluster: Cluster) -> None:
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    cluster.kubectl("create", "namespace", NAMESPACE)
    s.wait_account(cluster.kubectl, NAMESPACE)


def _placed(pod: Json) -> Json:
    made = copy.deepcopy(pod)
    for container in [*made["spec"].get("initContainers", ()), *made["spec"]["containers"]]:
        container["image"] = container["image"] or image("engine")
    return made


def _may_act(case: Case, watch: Watch) -> bool:
    events = watch.of(case)
    if not events:
        return False
    pod = events[-1][1]
    if case.act in ("True", "False"):
        return bool(condition(pod, "ContainersReady").get("status") == "True")
    return ready(pod)


def _act(case: Case, cluster: Cluster, kill: Kill) -> None:
    if case.act == "kill":
        kill(NAMESPACE, case.name)
    elif case.act == "delete":
        cluster.kubectl("delete", "pod", "-n", NAMESPACE, case.name, "--wait=false")
    else:
        gate = {"type": GATES[0], "status": case.act}
        cluster.kubectl(
            "patch", "pod", "-n", NAMESPACE, case.name, "--subresource=status",
            "--patch", json.dumps({"status": {"conditions": [gate]}}),
        )  # fmt: skip


@pytest.fixture(scope="module")
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Played, Played]]:
    """All cases on real kubelets, and on process nodes."""
    if request.config.getoption("--nodes") == "process":
        pytest.skip("needs real kubelets beside process nodes: pytest --nodes kind")
    real: s.Cluster = request.getfixturevalue("cluster_under_test")
    breakable = real.nodes == "kind"
    cases = [case for case in CASES if case.act != "kill" or breakable]
    directory = tmp_path_factory.mktemp("conformance")
    config = directory / "nodes.yaml"
    config.write_text(CONFIG)
    # The kubelet's own periods, not those that make other tests quick.
    ours = running_cluster(directory / "state", config, agent=AgentSettings(lease_period=2.0))
    with ours as process:
        one, two = play((real, process), (real.kill, process.admin.kill), cases)
        yield one, two


def told(value: Any, name: str = "") -> Any:
    """A status as far as it can be compared: one time, id or address stands for any other."""
    if isinstance(value, dict):
        return {k: told(v, k) for k, v in value.items() if k not in NOT_PLAYED}
    if isinstance(value, list):
        items = [told(item) for item in value]
        return sorted(items, key=lambda c: str(c["type"])) if name == "conditions" else items
    if not isinstance(value, str):
        return value
    if name in ("ip", "podIP", "hostIP"):
        return "ADDRESS"
    if name == "containerID":
        return f"{len(value.partition('://')[2])} characters"
    if re.fullmatch(r"\d{4}-\d\d-\d\dT[0-9:]+Z", value):
        # A run that never began is said to have begun at the epoch.
        return value if value.startswith("1970") else "TIME"
    return _worded(value)


def _worded(text: str) -> str:
    text = re.sub(r"\([0-9a-f-]{36}\)", "(UID)", text)
    text = re.sub(
        r".* unable to start container process: (error during container init: )?", "", text
    )
    # A process node goes on to say why.
    return re.sub(r"(with pull policy of Never): .*", r"\1", text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_statuses_are_those_of_a_kubelet(both: tuple[Played, Played], case: Case) -> None:
    real = both[0]
    if case.name not in real.pods:
        pytest.skip("containers of this cluster cannot be killed from here (kind's can)")
    assert real.pods[case.name] is not None, (
        "never came on both; last on a kubelet and here: "
        + json.dumps([played.last.get(case.name, {}).get("status") for played in both], indent=1)
    )
    wanted, found = (told((p.pods[case.name] or {})["status"]) for p in both)
    assert found == wanted
    if case.until is again:
        assert both[1].fewest[case.name] == (1,), "a process node reports the first restart"


def test_containers_see_the_same(both: tuple[Played, Played]) -> None:
    real, ours = (_seen(played.logs["sees"]) for played in both)
    assert ours == real


def _seen(log: str) -> Json:
    found: Json = json.loads(log)
    found["env"] = {k: v for k, v in found["env"].items() if not OWN_ENV.fullmatch(k)}
    return found
