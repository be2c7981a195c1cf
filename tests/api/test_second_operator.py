"""Two operators that would act on the same objects: the second does not, and says whose they are.

Real processes on a real API server, each with a Lease of its own, as two releases have.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.engines import fresh_host
from tests.support.rest import Rest

from localcluster.controlplane import ControlPlane
from pdserve.controllers.from_options import CLAIM
from pdserve.dst.world_service import service

pytestmark = [pytest.mark.api, pytest.mark.timeout(240)]
LIMIT = 90.0


class Operator:
    """One process; its log, its readiness page."""

    def __init__(self, process: subprocess.Popen[bytes], host: str, log: Path) -> None:
        self.process, self.host, self.log = process, host, log

    def readiness(self) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.host}:9090/readyz", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def until(check: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture
def start(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    with ExitStack() as stack:

        def make(release: str, *flags: str) -> Operator:
            host, log = fresh_host(), tmp_path / f"{release}-{uuid.uuid4().hex[:4]}.log"
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [
                        sys.executable, "-m", "pdserve.controllers",
                        f"--kubeconfig={control_plane.kubeconfig}", f"--bind={host}",
                        "--metrics-port=9090", f"--lease-namespace={release}",
                        f"--gateway-image=gateway:{release}", *flags,
                    ],
                    stdout=out, stderr=subprocess.STDOUT,
                )  # fmt: skip
            stack.callback(process.wait, 60)
            stack.callback(process.kill)
            return Operator(process, host, log)

        yield make


@pytest.fixture
def releases(rest: Rest) -> Iterator[tuple[str, str]]:
    """Two namespaces for operators; whatever they claimed is given up at the end."""
    made = tuple(f"release-{uuid.uuid4().hex[:6]}" for _ in range(2))
    for name in made:
        new_namespace(rest, name)
    yield made[0], made[1]
    rest.call("DELETE", f"/api/v1/namespaces/kube-system/configmaps/{CLAIM}")


def new_namespace(rest: Rest, name: str) -> None:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    assert rest.create("/api/v1/namespaces", body).code == 201


def new_service(rest: Rest, namespace: str) -> str:
    """Path of a new PDService."""
    new_namespace(rest, namespace)
    where = f"/apis/pdserve.io/v1alpha1/namespaces/{namespace}/pdservices"
    wanted = service()
    wanted["metadata"]["namespace"] = namespace
    assert rest.create(where, wanted).code == 201
    return f"{where}/shop"


def gateway(rest: Rest, namespace: str) -> dict[str, Any]:
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/shop-gateway"
    answer = rest.get(path)
    return answer.body if answer.code == 200 else {}


def says(operator: Operator, release: str) -> bool:
    """Whether its log has whose the objects are."""
    return f"belong to operator '{release}/pdserve-operator'" in operator.log.read_text()


def image(deployment: dict[str, Any]) -> str:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return str(container["image"])


def test_the_second_operator_of_all_namespaces_writes_nothing(
    rest: Rest, start: Callable[..., Operator], releases: tuple[str, str]
) -> None:
    first, second = releases
    namespace = f"shop-{uuid.uuid4().hex[:6]}"
    new_service(rest, namespace)
    start(first)
    until(lambda: gateway(rest, namespace), "the first acts")
    late = start(second)
    until(lambda: says(late, first), "it says whose the objects are")
    until(lambda: f"{first}/pdserve-operator" in late.readiness()[1], "on its page too")
    assert late.readiness()[0] == 503
    before = gateway(rest, namespace)
    time.sleep(5)  # two that act undo each other's work many times a second
    after = gateway(rest, namespace)
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert image(after) == f"gateway:{first}"
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{second}/leases"
    assert rest.get(leases).body["items"] == [], "it does not lead"
    claim = rest.get(f"/api/v1/namespaces/kube-system/configmaps/{CLAIM}").body
    assert claim["data"]["holder"] == f"{first}/pdserve-operator"


def test_operators_of_two_namespaces_act_side_by_side(
    rest: Rest, start: Callable[..., Operator], releases: tuple[str, str]
) -> None:
    made = [f"team-{uuid.uuid4().hex[:6]}" for _ in range(2)]
    for namespace in made:
        new_service(rest, namespace)
    for release, namespace in zip(releases, made, strict=True):
        start(release, f"--namespace={namespace}")
    for release, namespace in zip(releases, made, strict=True):
        until(lambda namespace=namespace: gateway(rest, namespace), f"{namespace} is served")  # type: ignore[misc]  # a default argument
        assert image(gateway(rest, namespace)) == f"gateway:{release}"
    # A second one for the same namespace does not.
    late = start(releases[0], f"--namespace={made[1]}", "--lease-name=other")
    until(lambda: says(late, releases[1]), "it says whose the objects are")


def test_of_one_of_all_namespaces_and_one_of_a_namespace_the_first_acts(
    rest: Rest, start: Callable[..., Operator], releases: tuple[str, str]
) -> None:
    first, second = releases
    team, other = (f"team-{uuid.uuid4().hex[:6]}" for _ in range(2))
    new_service(rest, team)
    narrow = start(first, f"--namespace={team}")
    until(lambda: gateway(rest, team), "the first acts")
    wide = start(second)
    until(lambda: f"belong to operator '{first}/pdserve" in wide.log.read_text(), "it says whose")
    new_service(rest, other)
    until(lambda: gateway(rest, other), "it acts on the rest")
    assert image(gateway(rest, other)) == f"gateway:{second}"
    before = gateway(rest, team)
    time.sleep(5)
    assert gateway(rest, team)["metadata"]["generation"] == before["metadata"]["generation"]
    assert image(gateway(rest, team)) == f"gateway:{first}"
    # Started anew it goes on: its namespace was its own before.
    narrow.stop()
    again = start(first, f"--namespace={team}")
    until(lambda: "are this operator's" in again.log.read_text(), "it goes on")
    # One that comes later than the other does not act.
    late = start(first, f"--namespace={other}", "--lease-name=late")
    until(lambda: says(late, second), "it says whose the objects are")
    until(lambda: f"{second}/pdserve-operator" in late.readiness()[1], "on its page too")
    assert late.readiness()[0] == 503
    claims = f"/api/v1/namespaces/{other}/configmaps/{CLAIM}"
    assert rest.get(claims).code == 404, "it wrote nothing"


def test_a_stopped_leader_is_replaced_within_a_minute(
    rest: Rest, start: Callable[..., Operator], releases: tuple[str, str]
) -> None:
    """SIGSTOP: neither its Lease's thread nor anything else of it runs."""
    release, _ = releases
    path = f"/apis/coordination.k8s.io/v1/namespaces/{release}/leases/pdserve-operator"

    def holder() -> str:
        return str((rest.get(path).body.get("spec") or {}).get("holderIdentity") or "")

    leader = start(release)
    until(holder, "it leads")
    first = holder()
    standby = start(release)
    until(lambda: standby.readiness()[0] == 200, "a standby is ready")
    leader.process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    until(lambda: holder() not in ("", first), "another leads")
    assert time.monotonic() - stopped <= 60
    second = holder()
    # Awake again it finds the Lease taken, stands by, and does not take it back.
    leader.process.send_signal(signal.SIGCONT)
    until(lambda: says_it_stands_by(leader), "it stands by")
    assert holder() == second


def says_it_stands_by(operator: Operator) -> bool:
    """Whether its log names the lost Lease."""
    text = operator.log.read_text()
    return "could not be renewed in time" in text or "Renewal of lease" in text
