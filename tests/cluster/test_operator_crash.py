"""Killed at any point of a group's set-up, or idle: the operator continues, and adds nothing.

The installed operator is put to rest here; the tests run their own processes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest
from tests.support import scenarios as s
from tests.support.groups_at_rest import check_groups
from tests.support.installed import (
    OPERATOR_NAMESPACE,
    Installed,
    fixed,
    make_namespace,
    pdservice,
    scenario,
)
from tests.support.operator_process import Operator, OperatorForge, forge

from pdserve.wire import names

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

SEED = 20260729
KILLS = 50
KILLS_PER_ROUND = 13
SCENARIOS = ("one", "two", "three", "four")
NAMESPACE = "crash"
KINDS = ("PDService", "ScenarioGroup", "RoCEDomain")


@pytest.fixture(scope="module")
def operators(
    installed: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorForge]:
    """Starts operators; the installed one rests meanwhile."""
    cluster = installed.cluster
    deployment = ("deployment/pdserve-operator", "-n", OPERATOR_NAMESPACE)
    cluster.kubectl("scale", *deployment, "--replicas=0")
    path = (
        f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods?labelSelector=app.kubernetes.io/name=pdserve"
    )
    s.until("the installed operator rests", lambda: not (cluster.get(path) or {})["items"])
    make_namespace(cluster, NAMESPACE)
    try:
        with forge(cluster.kubeconfig, tmp_path_factory.mktemp("operators")) as made:
            yield made
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
        cluster.kubectl("scale", *deployment, "--replicas=1")
        installed.operator()


def deploy(cluster: s.Cluster, name: str) -> None:
    """Four scenarios: pairs, and one with a second prefill instance."""
    found = [
        scenario(each, fixed(1, 2 if each == "two" else 1, 1), match={"headers": {"x-for": each}})
        for each in SCENARIOS
    ]
    cluster.apply(pdservice(NAMESPACE, name, *found), namespace=NAMESPACE)


def check_nothing_extra(cluster: s.Cluster, name: str) -> None:
    """Exactly the wanted pods, peer tables and objects; each controlled by a live owner."""
    wanted = 0
    for each in SCENARIOS:
        wanted += len(check_groups(cluster, NAMESPACE, names.scenario_group_name(name, each)))
    assert wanted == 2 * len(SCENARIOS) + 1
    found = s.pods(cluster, NAMESPACE, service=name)
    assert len(found) == wanted, "duplicates"
    slots = [s.name_of(pod).rpartition("-")[0] for pod in found]
    assert len(set(slots)) == len(slots), f"two pods in one slot: {sorted(slots)}"
    selector = f"{names.LABEL_SERVICE}={name}"
    tables = cluster.get(f"/api/v1/namespaces/{NAMESPACE}/configmaps?labelSelector={selector}")
    components = [
        c["metadata"]["labels"][names.LABEL_COMPONENT] for c in (tables or {"items": []})["items"]
    ]
    assert components.count("peer-table") == len(SCENARIOS)
    assert components.count("route-table") == 1
    assert s.routed(cluster, NAMESPACE, name) == {s.name_of(pod) for pod in found}


def run_to(operator: Operator, writes: int, seconds: float, done: Callable[[], bool]) -> bool:
    """Let it work until it wrote so often, or so long after its first write; False if all was
    done before."""
    deadline = None
    limit = time.monotonic() + s.READY_SECONDS
    while True:
        wrote = operator.writes()
        if wrote and deadline is None:
            deadline = time.monotonic() + seconds
        if wrote >= writes or (deadline is not None and time.monotonic() >= deadline):
            return not done()
        if done():
            return False
        assert time.monotonic() < limit, f"nothing happens any more:\n{operator.tail()}"


@pytest.mark.timeout(600)
def test_killed_at_50_points_of_the_set_up_it_always_ends_ready(
    installed: Installed, operators: OperatorForge, record_property: Callable[[str, object], None]
) -> None:
    cluster, rng = installed.cluster, random.Random(SEED)
    kills, rounds, name = 0, 0, ""
    while kills < KILLS:
        assert rounds < 3 * KILLS // KILLS_PER_ROUND, "set-ups end before they can be broken"
        if name:
            cluster.kubectl("delete", "pds", name, "-n", NAMESPACE, "--wait=false")
        rounds += 1
        name = f"c{rounds}"
        deploy(cluster, name)

        def done(name: str = name) -> bool:
            return s.is_ready(s.service(cluster, NAMESPACE, name))

        flags = (f"--namespace={NAMESPACE}",)
        for _ in range(KILLS_PER_ROUND):
            operator = operators.start(*flags)
            broken = run_to(operator, rng.randint(1, 12), rng.uniform(0.0, 1.2), done)
            operator.kill()
            if not broken:
                break
            kills += 1
        last = operators.start(*flags)
        s.wait_service(cluster, NAMESPACE, name)
        for each in SCENARIOS:
            s.wait_settled(cluster, NAMESPACE, names.scenario_group_name(name, each))
        check_nothing_extra(cluster, name)
        last.kill()
    record_property("kills", kills)
    record_property("rounds", rounds)


def resource_versions(cluster: s.Cluster) -> dict[str, str]:
    """Of every object the operator makes or watches for the namespace."""
    kinds = (
        "pds,psg,pods,configmaps,secrets,services,deployments,serviceaccounts,roles,rolebindings,"
        "events"
    )
    columns = "custom-columns=K:.kind,N:.metadata.name,V:.metadata.resourceVersion"
    lines = cluster.kubectl("get", kinds, "-n", NAMESPACE, "-o", columns, "--no-headers")
    lines += cluster.kubectl("get", "rdom", "-o", columns, "--no-headers")
    rows = [line.split() for line in lines.splitlines()]
    return {f"{kind}/{name}": version for kind, name, version in rows}


def test_an_unchanged_object_costs_no_write(
    installed: Installed, operators: OperatorForge, record_property: Callable[[str, object], None]
) -> None:
    cluster, group = installed.cluster, names.scenario_group_name("idle", "chat")
    cluster.kubectl("delete", "pds", "--all", "-n", NAMESPACE, "--wait=false")
    cluster.apply(
        pdservice(NAMESPACE, "idle", scenario("chat", fixed(1, 1, 1))), namespace=NAMESPACE
    )
    flags = (f"--namespace={NAMESPACE}", f"--prometheus-url={installed.prometheus}")
    first = operators.start(*flags)
    s.wait_service(cluster, NAMESPACE, "idle")
    s.wait_settled(cluster, NAMESPACE, group)
    # Also none that is leaving: a gateway takes seconds to, and its end would look like a write.
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    s.until("only its pods are left", lambda: len((cluster.get(pods) or {})["items"]) == 3)
    first.kill()
    operator = operators.start(*flags, "--resync=1")

    def looks(times: int) -> None:
        """Wait until it looked at everything so often from now on."""
        before = operator.reconciles()

        def looked() -> bool:
            now = operator.reconciles()
            return all(now.get(kind, 0) >= before.get(kind, 0) + times for kind in KINDS)

        s.until(f"{times} resyncs", looked, instead=operator.tail)

    def first_tick() -> list[object]:
        """What the ratio loop has to say about an idle service with fixed counts."""
        service = s.service(cluster, NAMESPACE, "idle")
        (shown,) = (service or {})["status"]["scenarios"]
        newest = (s.decisions(cluster, NAMESPACE, group)[-1], shown["lastDecision"])
        return [s.condition(service, "SLOMet")["message"], *(d["outcome"] for d in newest)]

    # A new process does not know how the SLO is met until its own first tick. That may come late,
    # and what it decides later still: a conflict with another write costs a period of the loop.
    looks(1)
    said = ["chat: no requests were offered", "Held", "Held"]
    s.until("its first tick is reported", lambda: first_tick() == said, 150, first_tick)
    looks(3)
    before, wrote, seen = resource_versions(cluster), operator.writes(), operator.reconciles()
    looks(4)
    reconciled = sum(operator.reconciles().values()) - sum(seen.values())
    assert operator.writes() - wrote == 0, operator.tail()
    assert resource_versions(cluster) == before
    record_property("reconciles_without_a_write", reconciled)
    operator.kill()
