"""The operator and its gateways use what they are granted, all of it and nothing else.

A cluster of its own whose API server keeps an audit log; every namespace enforces Pod Security
`restricted`. The tests build on each other: install, a whole life, upgrade, uninstall, again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
from tests.support import audit
from tests.support import scenarios as s
from tests.support.chart import CHART, helm
from tests.support.cluster import FAST_CONTROL_PLANE, running_cluster
from tests.support.installed import EXAMPLES, LEASE, OPERATOR_NAMESPACE, fixed
from tests.support.process_cluster import ProcessCluster
from tests.support.whole_life import finalized, leftovers, life, live_through

from localcluster.controlplane import AUDIT_LOG
from pdserve.controllers import rbac
from pdserve.wire import names

pytestmark = pytest.mark.cluster

NAMESPACE = "rights"
SERVICE = "life"
CHAT = names.scenario_group_name(SERVICE, "chat")
OPERATOR = f"system:serviceaccount:{OPERATOR_NAMESPACE}:pdserve-operator"
LEASE_PATH = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases/{LEASE}"
RARE = [audit.Right(*right) for right in rbac.RARE]
Record = Callable[[str, object], None]


@dataclass
class Site:
    """The cluster, and what its API server noted."""

    cluster: ProcessCluster
    log: Path

    def audited(self) -> list[str]:
        return self.log.read_text().splitlines(keepends=True)

    def helm(self, *args: str) -> str:
        done = helm(
            *args, "--namespace", OPERATOR_NAMESPACE, kubeconfig=self.cluster.kubeconfig
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def operators(self) -> dict[str, bool]:
        """Operator pods that stay -> whether they are Ready."""
        path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods?labelSelector="
        found = self.cluster.get(f"{path}app.kubernetes.io/component=operator") or {}
        return {s.name_of(p): s.is_ready(p) for p in found["items"] if not s.leaving(p)}

    def lease(self) -> s.Json:
        """What the Lease says; `{}` while there is none."""
        return dict((self.cluster.get(LEASE_PATH) or {}).get("spec", {}))

    def leader(self) -> str:
        """Name of the pod that holds the Lease; "" if none does."""
        return holder(self.lease())

    def wait_leader(self) -> str:
        """Name of the pod that holds the Lease, once one does."""
        found: str = s.until("an operator leads", self.leader)
        return found


def moment(stamp: str) -> datetime:
    """A time that Kubernetes wrote."""
    return datetime.fromisoformat(stamp)


def holder(lease: s.Json) -> str:
    """Name of the pod that holds a Lease; "" if none does."""
    return str(lease.get("holderIdentity") or "").rpartition("_")[0]


def identities(site: Site) -> dict[str, s.Identity]:
    """Pods that nothing planned concerns: not those of the removed scenario."""
    found = s.identities(site.cluster, NAMESPACE)
    removed = names.scenario_group_name(SERVICE, "search")
    return {name: identity for name, identity in found.items() if not name.startswith(removed)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """pdserve with two operators, the RoCEDomain `demo`, and a namespace, all restricted."""
    state = tmp_path_factory.mktemp("rights") / "state"
    with running_cluster(
        state, control_plane=replace(FAST_CONTROL_PLANE, audit=True), name="rights"
    ) as access:
        site = Site(ProcessCluster(access), state / AUDIT_LOG)
        for namespace in (NAMESPACE, OPERATOR_NAMESPACE):
            labels = {"pod-security.kubernetes.io/enforce": "restricted"}
            meta = {"name": namespace, "labels": labels}
            site.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
        site.helm("install", "pdserve", str(CHART), "--wait", "--timeout", "180s")
        site.cluster.kubectl("apply", "-f", str(EXAMPLES / "demo-rocedomain.yaml"))
        yield site


@pytest.fixture(scope="module")
def lived(site: Site) -> Site:
    """After the whole life of PDService rights/life, and the loss of the Lease."""
    live_through(site.cluster, NAMESPACE, SERVICE)
    # A user deletes it: it is made again.
    site.cluster.kubectl("delete", "lease", LEASE, "-n", OPERATOR_NAMESPACE)
    site.wait_leader()
    return site


def test_a_standby_is_ready_and_takes_over_when_the_leader_stops(
    site: Site, record_property: Record
) -> None:
    assert list(site.operators().values()) == [True, True], "one leads, the other is Ready too"
    leader = site.wait_leader()
    held = lease = site.lease()

    def taken_over() -> bool:
        nonlocal held, lease
        lease = site.lease()
        if holder(lease) == leader:
            held = lease
        return holder(lease) not in ("", leader)

    with s.stopwatch() as seconds:
        site.cluster.kubectl(
            "delete", "pod", leader, "-n", OPERATOR_NAMESPACE, "--wait=false"
        )  # fmt: skip
        s.until("the other leads", taken_over)
        record_property("takeover_seconds", round(seconds(), 1))
    gap = moment(lease["acquireTime"]) - moment(held["renewTime"])
    assert gap.total_seconds() < held["leaseDurationSeconds"], "it was not given up"


def test_the_operator_uses_every_right_it_has_and_asks_for_no_other(
    lived: Site, record_property: Record
) -> None:
    roles = audit.roles_of(lived.cluster.get, OPERATOR)
    assert {role.kind for role in roles} == {"ClusterRole", "Role"}
    assert len(roles) == 3
    found = audit.compare(lived.audited(), OPERATOR, roles, RARE)
    record_property("operator_rights_used", found.used)
    record_property("operator_requests", found.requests)
    assert found.refused == []
    assert found.beyond == set()
    assert found.unused == set()


def test_a_gateway_reads_its_own_route_table_and_nothing_else(lived: Site) -> None:
    account = f"system:serviceaccount:{NAMESPACE}:{SERVICE}-gateway"
    roles = audit.roles_of(lived.cluster.get, account)
    ((role, (rights, limited)),) = roles.items()
    assert role == audit.Role("Role", f"{SERVICE}-gateway", NAMESPACE)
    found = audit.compare(lived.audited(), account, roles)
    assert (found.refused, found.beyond, found.unused) == ([], set(), set())
    assert {(r.group, r.resource) for r in rights} == {("", "configmaps")}
    assert limited == {names.routes_configmap_name(SERVICE)}
    for request in audit.parse(lived.audited(), account):
        assert request.right is not None, request.uri
        assert (request.namespace, {request.name}) == (NAMESPACE, limited)


def test_instances_never_talk_to_the_api_server(lived: Site) -> None:
    account = f"system:serviceaccount:{NAMESPACE}:default"
    assert list(audit.parse(lived.audited(), account)) == []


def test_an_upgrade_of_the_chart_has_one_leader_and_touches_no_instance(
    lived: Site, record_property: Record
) -> None:
    before = identities(lived)
    old, gap, longest, fewest = set(lived.operators()), 0.0, 0.0, 2
    lived.helm(
        "upgrade", "pdserve", str(CHART), "--reset-then-reuse-values",
        "--set", "operator.podAnnotations.rollout=again",
    )  # fmt: skip
    last = time.monotonic()
    while old & set(lived.operators()) or lived.leader() in {*old, ""}:
        now = time.monotonic()
        gap = 0.0 if lived.leader() else gap + now - last
        longest, last = max(longest, gap), now
        fewest = min(fewest, sum(lived.operators().values()))
        assert gap < 10, "no operator leads"
        time.sleep(0.05)
    record_property("leaderless_seconds", round(longest, 1))
    assert fewest >= 2, "two operators are Ready at any time"
    after = identities(lived)
    assert s.difference(before, after) == s.Difference(set(), set(), set())


def test_uninstalled_it_leaves_what_serves_serving_and_nothing_stuck(lived: Site) -> None:
    cluster = lived.cluster
    assert finalized(cluster, NAMESPACE) == []
    before = identities(lived)
    said = lived.helm("uninstall", "pdserve")
    assert "pdservices.pdserve.io" in said, "kept kinds are named"
    s.until("nothing of it is left", lambda: not leftovers(cluster, OPERATOR_NAMESPACE))
    for kind in ("clusterroles", "clusterrolebindings"):
        assert "pdserve-operator" not in cluster.kubectl("get", kind, "-o", "name")
    assert "pdservices.pdserve.io" in cluster.kubectl("get", "crd", "-o", "name")
    assert s.difference(before, identities(lived)) == s.Difference(set(), set(), set())
    assert all(map(s.is_ready, s.pods(cluster, NAMESPACE, scenario="chat")))


def test_installed_again_for_one_namespace_it_takes_over_and_is_refused_nothing(
    lived: Site,
) -> None:
    """Kinds, services and pods of before; now with a Role instead of a ClusterRole."""
    cluster, before = lived.cluster, identities(lived)
    seen = len(lived.audited())
    lived.helm(
        "install", "pdserve", str(CHART), "--wait", "--timeout", "180s",
        "--set", f"operator.watchNamespace={NAMESPACE},operator.replicas=1",
    )  # fmt: skip
    lived.wait_leader()
    # It acts: one more instance, and none of the others is touched.
    chat = fixed(1, 1, 2)
    grown = life(NAMESPACE, SERVICE, chat, search=False, gateway={"replicas": 2})
    cluster.apply(grown, namespace=NAMESPACE)
    s.until(
        "it has grown", lambda: len(s.pods(cluster, NAMESPACE, scenario="chat", role="decode")) == 2
    )
    s.wait_settled(cluster, NAMESPACE, CHAT)
    change = s.difference(before, identities(lived))
    assert (change.gone, len(change.new), change.restarted) == (set(), 1, set())
    roles = audit.roles_of(cluster.get, OPERATOR)
    found = audit.compare(lived.audited()[seen:], OPERATOR, roles)
    assert (found.refused, found.beyond) == ([], set())


def test_a_deleted_service_leaves_nothing_even_without_an_operator(lived: Site) -> None:
    lived.helm("uninstall", "pdserve")
    s.until("no operator is left but such as are leaving", lambda: not lived.operators())
    lived.cluster.kubectl("delete", "pds", "--all", "-n", NAMESPACE, "--wait=false")
    namespaces = (NAMESPACE, OPERATOR_NAMESPACE)
    left = partial(leftovers, lived.cluster, *namespaces)
    s.until("nothing is left", lambda: not left(), instead=left)
