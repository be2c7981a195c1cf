"""What users of the cluster do on an ordinary day costs no instance and no request.

Counts edited by hand, a renamed model, a bad revision that meets a fault, nodes drained, an API
server that stands still: under load, and each with what may change and nothing else."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support import scenarios as s
from tests.support.following import Following
from tests.support.installed import (
    Installed,
    fixed,
    image,
    make_namespace,
    ratio,
)
from tests.support.service_in_use import GROUP, NAMESPACE, WAIT, Seen, Service

from pdserve.controllers.shared import event_reasons as reasons
from pdserve.wire import names

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
EDITS = 5
"""In each mode."""
SEED = 9
OTHER = "pdserve-renamed"
FROZEN_SECONDS = 20
"""Longer than a node may be silent here: its grace of 10 s and `nodeSuspectSeconds`."""
SPOT = "cloud.google.com/impending-node-termination"
SPOT_SECONDS = 30
LONG = 400
"""Tokens of a stream that outlives an ordinary step."""


@pytest.fixture(scope="module")
def service(installed: Installed) -> Iterator[Service]:
    cluster = installed.cluster
    make_namespace(cluster, NAMESPACE)
    made = Service(cluster)
    made.apply()
    made.wait()
    yield made
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def named_by_decisions(decisions: list[s.Json], since: int) -> tuple[int, int]:
    """Pods that applied decisions after the first `since` make, and that they delete."""
    made = deleted = 0
    for decision in decisions[since:]:
        if decision["outcome"] == "Applied":
            old, new = decision["from"], decision["to"]
            both = min(old["groups"], new["groups"])
            for each in ("prefill", "decode"):
                made += both * max(0, new[each] - old[each])
                made += max(0, new["groups"] - old["groups"]) * new[each]
                deleted += both * max(0, old[each] - new[each])
                deleted += max(0, old["groups"] - new["groups"]) * old[each]
    return made, deleted


def counted(cluster: s.Cluster) -> bool:
    """The ScenarioGroup asks for what the newest applied decision says."""
    applied = [d for d in s.decisions(cluster, NAMESPACE, GROUP) if d["outcome"] == "Applied"]
    wanted = tuple(applied[-1]["to"][each] for each in ("groups", "prefill", "decode"))
    return s.counts(cluster, NAMESPACE, GROUP) == wanted


@pytest.mark.parametrize("mode", ["Fixed", "Advise", "Auto"])
def test_counts_edited_by_hand_make_and_delete_only_what_decisions_name(
    service: Service, mode: str
) -> None:
    """0 groups are among the edits, which come at random times, also while one is undone."""
    cluster, rng = service.cluster, random.Random(f"{SEED} {mode}")
    service.set_ratio(fixed(1, 1, 2))
    if mode != "Fixed":
        service.set_ratio(ratio(mode))
    with service.traffic() as traffic:
        traffic.wait_more(5)
        before, known = service.instances(), len(s.decisions(cluster, NAMESPACE, GROUP))
        with Seen(service) as seen:
            there = set(seen.uids)
            for number in range(EDITS):
                edit = {"replicas": 0 if number == 0 else rng.randint(0, 3)}
                for each in rng.sample(("prefill", "decode"), rng.randint(0, 2)):
                    edit[each] = {"replicas": rng.randint(1, 3)}  # type: ignore[assignment]
                patch = json.dumps({"spec": edit})
                cluster.kubectl("patch", "psg", GROUP, "-n", NAMESPACE, "--type=merge", "-p", patch)
                traffic.wait_more(rng.randint(1, 6))
            s.until("counts are as decided", lambda: counted(cluster), WAIT)
            service.wait()
            traffic.wait_more(10)
        decided = s.decisions(cluster, NAMESPACE, GROUP)
    made, deleted = named_by_decisions(decided, known)
    change = s.difference(before, service.instances())
    assert s.events(cluster, NAMESPACE, reasons.HAND_EDIT), "the edits were seen"
    assert len(seen.uids - there) <= made, decided
    assert len(change.gone) <= deleted, decided
    assert change.restarted == set()
    assert traffic.errors == []


def test_a_renamed_model_is_served_under_its_old_name_until_the_new_one_is(
    service: Service,
) -> None:
    service.set_ratio(fixed(1, 1, 1))
    with service.traffic() as old, service.traffic(OTHER) as new:
        old.wait_more(10)
        service.spec["model"]["name"] = OTHER
        service.apply()
        new.wait_more(20)
        service.wait()
        new.wait_more(20)
    served = min(o.began for o in new.outcomes if not o.error)
    # Each gateway reads the new table for itself: from the first answer it gave on, it gives all.
    for url in {o.url for o in new.outcomes}:
        here = [o for o in new.outcomes if o.url == url]
        answered = min((o.first for o in here if o.first is not None), default=None)
        assert answered is not None, f"{url} never served the new name"
        lost = [o.error for o in here if o.began > answered and o.error]
        assert lost == [], f"the new name at {url}, once it was served there"
    lost = [o.error for o in old.outcomes if o.ended is not None and o.ended < served and o.error]
    assert lost == [], "the old name, until the new one was served"
    assert old.completed >= 10
    assert all("404" in error or "NotFound" in error for error in (*old.errors, *new.errors))


def test_a_bad_revision_and_a_fault_in_each_old_group_leave_them_whole(service: Service) -> None:
    """Lost instances come back at the revision of their P/D group, not at the bad one."""
    cluster = service.cluster
    service.set_ratio(fixed(2, 1, 1))
    before = service.instances()
    (revision,) = {_label(pod, names.LABEL_REVISION) for pod in s.pods(cluster, NAMESPACE)}
    with service.traffic() as traffic:
        service.spec["engine"]["image"] = "pdserve/no-such-engine:dev"
        service.apply()
        s.until(
            "a group of the bad revision",
            lambda: len(service.instances()) > len(before),
            WAIT,
        )
        victims = {
            s.name_of(pod)
            for role, index in (("decode", "0"), ("prefill", "1"))
            for pod in s.pods(cluster, NAMESPACE, role=role, group_index=index)
        }
        assert len(victims) == 2 and victims < before.keys()
        cluster.kubectl("delete", "pod", *victims, "-n", NAMESPACE, "--wait=false")

        def whole() -> set[str]:
            """What is routed, once that is as many as before and no victim."""
            routed = s.routed(cluster, NAMESPACE, NAMESPACE)
            return routed if len(routed) == len(before) and not victims & routed else set()

        routed = s.until("the old groups are whole again", whole, WAIT)
        found = {s.name_of(pod): pod for pod in s.pods(cluster, NAMESPACE)}
        assert {_label(found[name], names.LABEL_REVISION) for name in routed} == {revision}
        assert before.keys() - routed == victims
        traffic.wait_more(20)
        service.spec["engine"]["image"] = image("engine")
        service.apply()
        service.wait()
    assert traffic.errors == []


def _label(pod: s.Json, label: str) -> str:
    return str(pod["metadata"]["labels"][label])


def _drain(cluster: s.Cluster, node: str) -> float:
    """`kubectl drain` of the instances of this service, as others share the nodes; seconds."""
    began = time.monotonic()
    mine = f"{names.LABEL_SERVICE}={NAMESPACE},{names.LABEL_ROLE}"
    cluster.kubectl(
        "drain", node, f"--pod-selector={mine}", "--delete-emptydir-data", "--ignore-daemonsets",
        "--timeout=280s",
    )  # fmt: skip
    assert node not in {p["spec"].get("nodeName") for p in s.pods(cluster, NAMESPACE)}
    return time.monotonic() - began


def _nodes(cluster: s.Cluster) -> list[str]:
    """Every node, those with instances of this service first."""
    every = [s.name_of(n) for n in (cluster.get("/api/v1/nodes") or {})["items"]]
    used = {p["spec"].get("nodeName") for p in s.pods(cluster, NAMESPACE)}
    return sorted(every, key=lambda node: (node not in used, node))


def test_no_instance_is_evicted_from_an_open_node(service: Service) -> None:
    """The disruption controller has counted each group, and allows none."""
    cluster = service.cluster
    service.set_ratio(fixed(2, 1, 1))
    path = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets"

    def counted() -> bool:
        found = {
            s.name_of(b): b for b in (cluster.get(path) or {})["items"]
            if s.name_of(b).startswith(GROUP)
        }  # fmt: skip
        told = {n: b["status"] for n, b in found.items()}
        return found.keys() == {f"{GROUP}-0", f"{GROUP}-1"} and all(
            t["observedGeneration"] == found[n]["metadata"]["generation"]
            and (t["currentHealthy"], t["desiredHealthy"], t["disruptionsAllowed"]) == (2, 2, 0)
            for n, t in told.items()
        )

    s.until("both budgets are counted", counted, WAIT)
    for pod in s.pods(cluster, NAMESPACE):
        name = s.name_of(pod)
        eviction = {
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": name, "namespace": NAMESPACE},
        }  # fmt: skip
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction"
        said = cluster.kubectl(
            "create", "--raw", path, "-f", "-", stdin=json.dumps(eviction), check=False
        )
        assert "would violate the pod's disruption budget" in said


@pytest.mark.parametrize("groups", [1, 2])
def test_nodes_drained_in_turn_cut_no_stream(service: Service, groups: int) -> None:
    """Each node in turn, the next one at once: what is evicted serves on until its streams end."""
    cluster = service.cluster
    service.set_ratio(fixed(groups, 1, 1 + (groups == 1)))
    with service.traffic(tokens=LONG) as traffic:
        for node in _nodes(cluster):
            s.until("streams run", lambda: _running(traffic) == traffic.workers, WAIT)
            try:
                took = _drain(cluster, node)
                print(f"drained {node} in {took:.1f} s, {traffic.completed} requests")
            finally:
                cluster.kubectl("uncordon", node)
        traffic.wait_more(5)
    assert traffic.errors == []


def test_two_nodes_drained_at_once_cut_no_stream(service: Service) -> None:
    cluster = service.cluster
    service.set_ratio(fixed(2, 1, 1))
    with service.traffic(tokens=LONG) as traffic:
        s.until("streams run", lambda: _running(traffic) == traffic.workers, WAIT)
        both = _nodes(cluster)[:2]
        try:
            with ThreadPoolExecutor() as pool:
                print(list(pool.map(lambda node: _drain(cluster, node), both)))
            service.wait()
        finally:
            for node in both:
                cluster.kubectl("uncordon", node)
        traffic.wait_more(5)
    assert traffic.errors == []


def test_a_node_that_a_cloud_takes_back_costs_no_request(service: Service) -> None:
    """A notice of 30 s: its instances are followed by others and idle before its power fails."""
    cluster = service.cluster
    service.set_ratio(fixed(1, 1, 2))
    gateways = {p["spec"].get("nodeName") for p in s.gateways(cluster, NAMESPACE, NAMESPACE)}
    node = next(n for n in _nodes(cluster) if n not in gateways)
    on_it = {s.name_of(p) for p in _on(service, node)}
    assert on_it, "a node without a gateway has instances"
    with service.traffic() as traffic:
        traffic.wait_more(5)
        began = time.monotonic()
        cluster.kubectl("taint", "node", node, f"{SPOT}=:NoSchedule")
        try:
            s.until("no instance is there", lambda: not _on(service, node), SPOT_SECONDS)
            took = time.monotonic() - began
            print(f"{len(on_it)} instances left {node} in {took:.1f} s of {SPOT_SECONDS}")
            threading.Event().wait(SPOT_SECONDS - took)
            cluster.stop(node)
            traffic.wait_more(30)
        finally:
            cluster.start(node)
            cluster.kubectl("taint", "node", node, f"{SPOT}-")
    assert traffic.errors == []
    service.wait()
    assert not on_it & service.instances().keys()


def _on(service: Service, node: str) -> list[s.Json]:
    every = s.pods(service.cluster, NAMESPACE)
    return [p for p in every if p["spec"].get("nodeName") == node]


def _running(traffic: Following) -> int:
    """Streams of which something came, and not yet the end."""
    return sum(o.first is not None and o.ended is None for o in traffic.outcomes)


def test_an_api_server_that_stands_still_costs_no_instance(service: Service) -> None:
    cluster, before = service.cluster, service.instances()
    with service.traffic() as traffic, Seen(service) as seen:
        there = set(seen.uids)
        with cluster.api_frozen():
            threading.Event().wait(FROZEN_SECONDS)
            traffic.wait_more(10)

        def all_ready() -> bool:
            nodes = (cluster.get("/api/v1/nodes") or {})["items"]
            return all(s.condition(n, "Ready").get("status") == "True" for n in nodes)

        s.until("all nodes are heard again", all_ready, WAIT)
        service.wait()
        traffic.wait_more(20)
    assert seen.uids == there
    assert s.difference(before, service.instances()) == s.Difference(set(), set(), set())
    assert traffic.errors == []
