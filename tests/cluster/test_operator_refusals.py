"""What cannot be done is said where people look, names what is missing, and harms nothing."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping

import pytest
from tests.support import scenarios as s
from tests.support.installed import (
    MONITORING,
    Installed,
    fixed,
    make_namespace,
    pdservice,
    ratio,
    role,
    scenario,
)
from tests.support.installed import NAMESPACE as SHOP
from tests.support.traffic import Traffic

from pdserve.wire import names

pytestmark = pytest.mark.cluster

NAMESPACE = "refusals"
FROZEN_SECONDS = 4.0
"""How long the API server hangs: less than what a node's heartbeat may take."""


@pytest.fixture(scope="module")
def site(installed: Installed) -> Iterator[s.Cluster]:
    """The cluster, with a namespace for the objects that are refused."""
    make_namespace(installed.cluster, NAMESPACE)
    yield installed.cluster
    installed.cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture
def name(site: s.Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A service name of the test's own; the service is deleted afterwards."""
    made = f"r{abs(hash(request.node.name)) % 10**6}"
    yield made
    site.kubectl("delete", "pds", made, "-n", NAMESPACE, "--wait=false", "--ignore-not-found")


def wait_false(site: s.Cluster, name: str, scenario_name: str, kind: str, reason: str) -> s.Json:
    """The condition of a ScenarioGroup once it is False for that reason.

    It may be False for another before: a new group has no counts yet.
    """
    group_name = names.scenario_group_name(name, scenario_name)

    def found() -> s.Json | None:
        now = s.condition(s.group(site, NAMESPACE, group_name), kind)
        return now if (now.get("status"), now.get("reason")) == ("False", reason) else None

    answer: s.Json = s.until(f"{group_name}: {kind} False, {reason}", found)
    return answer


def test_too_few_devices(site: s.Cluster, name: str) -> None:
    """A P/D group is placed whole or not at all; told is what is missing and what would fit."""
    whole = role(slots=4, devices=8)
    six = {**ratio("Fixed", most=6), "fixed": {"groups": 1, "prefill": 6, "decode": 6}}
    service = pdservice(NAMESPACE, name, scenario("big", six), prefill=whole, decode=whole)
    site.apply(service, namespace=NAMESPACE)
    placed = wait_false(site, name, "big", "Placed", "NoFit")
    assert "6P6D" in placed["message"], placed["message"]
    assert "huawei.com/Ascend910" in placed["message"]
    assert "largest" in placed["message"], placed["message"]
    assert s.pods(site, NAMESPACE, service=name) == []
    degraded = s.until(
        "the service says so too",
        lambda: s.condition(s.service(site, NAMESPACE, name), "Degraded").get("reason") == "NoFit",
    )
    assert degraded


def test_unknown_roce_domain(site: s.Cluster, name: str) -> None:
    service = pdservice(NAMESPACE, name, scenario("chat", fixed(1, 1, 1)))
    service["spec"]["fabric"] = {"domainRef": {"name": "nowhere"}}
    site.apply(service, namespace=NAMESPACE)
    ready = wait_false(site, name, "chat", "Ready", "UnknownDomain")
    assert "no RoCEDomain 'nowhere'" in ready["message"]
    assert "fabric.domainRef.name" in ready["message"]
    assert s.pods(site, NAMESPACE, service=name) == []


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("groups", {"min": 3, "max": 2}, "min must be at most max"),
        (
            "ratio",
            {**ratio("Fixed"), "fixed": {"groups": 1, "prefill": 9, "decode": 1}},
            "fixed.prefill must be within ratio.prefill.min and ratio.prefill.max",
        ),
    ],
)
def test_contradictory_bounds_are_refused_with_their_field(
    site: s.Cluster, name: str, field: str, value: Mapping[str, object], says: str
) -> None:
    chat = {**scenario("chat", fixed(1, 1, 1)), field: value}
    service = pdservice(NAMESPACE, name, chat)
    said = site.kubectl("apply", "-f", "-", stdin=json.dumps(service), check=False)
    assert f"spec.scenarios[0].{field}" in said and says in said, said
    assert s.service(site, NAMESPACE, name) is None


@pytest.mark.invariant(9)
def test_a_foreign_object_is_left_alone(site: s.Cluster, name: str) -> None:
    """A ConfigMap of the very name the route table needs, made by another user."""
    foreign = names.routes_configmap_name(name)
    site.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": foreign, "namespace": NAMESPACE},
            "data": {"mine": "yes"},
        },
        namespace=NAMESPACE,
    )
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{foreign}"
    before = site.get(path)
    site.apply(pdservice(NAMESPACE, name, scenario("chat", fixed(1, 1, 1))), namespace=NAMESPACE)

    def refused() -> s.Json | None:
        found = s.condition(s.service(site, NAMESPACE, name), "Degraded")
        return found if found.get("reason") == "ObjectRefused" else None

    said = s.until("Degraded says whose name is taken", refused)
    assert foreign in said["message"]
    group_name = names.scenario_group_name(name, "chat")
    s.wait_settled(site, NAMESPACE, group_name)  # the rest goes on
    site.kubectl("delete", "pds", name, "-n", NAMESPACE, "--wait=false")
    s.until("the service is gone", lambda: s.group(site, NAMESPACE, group_name) is None)
    s.until("its instances are gone", lambda: not s.pods(site, NAMESPACE, service=name))
    s.until("its gateway is gone", lambda: not s.gateways(site, NAMESPACE, name, every=True))
    assert site.get(path) == before, "a foreign object was touched"


@pytest.mark.invariant(6)
def test_without_prometheus_nothing_scales_and_the_status_says_why(
    site: s.Cluster, installed: Installed, name: str
) -> None:
    """Prometheus hangs: connections stay open and silent. Then it comes back."""
    site.apply(pdservice(NAMESPACE, name, scenario("chat", ratio("Auto"))), namespace=NAMESPACE)
    s.wait_service(site, NAMESPACE, name)
    group_name = names.scenario_group_name(name, "chat")
    wanted = s.counts(site, NAMESPACE, group_name)
    (gateway,) = s.wait_gateways(site, NAMESPACE, name, 1)
    before = s.identities(site, NAMESPACE)

    def newest(reason: str) -> bool:
        found = s.decisions(site, NAMESPACE, group_name)
        return bool(found) and found[-1]["reason"] == reason

    def measured() -> bool:
        found = s.condition(s.service(site, NAMESPACE, name), "SLOMet")
        return found.get("status") != "Unknown"

    with Traffic([site.url(gateway)], workers=1) as traffic:
        s.until("it is measured", measured, 40)
        with site.frozen(MONITORING, s.name_of(installed.prometheus_pod())):
            s.until("a decision says that data are missing", lambda: newest("HoldNoData"), 40)
            s.until("SLOMet is Unknown", lambda: not measured(), 40)
            said = s.condition(s.service(site, NAMESPACE, name), "SLOMet")
            assert "chat" in said["message"]
            assert s.counts(site, NAMESPACE, group_name) == wanted
            assert s.decisions(site, NAMESPACE, group_name)[-1]["outcome"] == "Held"
            served = traffic.completed
            s.until("requests are served", lambda: traffic.completed > served)
        s.until("it is measured again", measured, 60)
    assert traffic.lost == []
    assert s.difference(before, s.identities(site, NAMESPACE)) == s.Difference(set(), set(), set())


def test_a_silent_api_server_stops_no_request(
    site: s.Cluster, installed: Installed, shop_service: Mapping[str, float]
) -> None:
    """The API server hangs for a while: traffic goes on, the operator lives, and acts again."""
    s.wait_service(site, SHOP, SHOP)
    urls = [site.url(pod) for pod in s.wait_gateways(site, SHOP, SHOP, 2)]
    operator, before = installed.operator(), s.identities(site, SHOP)
    with Traffic(urls) as traffic:
        s.until("requests are being served", lambda: traffic.completed >= 4)
        with site.api_frozen(), s.stopwatch() as seconds:
            served = traffic.completed
            s.until(
                "requests are served meanwhile",
                lambda: seconds() >= FROZEN_SECONDS and traffic.completed >= served + 20,
            )
            # Nothing else may be asked of the API server here.
            for url in urls:
                with urllib.request.urlopen(f"{url}/readyz", timeout=5) as reply:
                    assert reply.status == 200
    assert traffic.lost == []
    assert all(not o.error for o in traffic.outcomes)
    after = installed.operator()
    assert after["metadata"]["uid"] == operator["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0 or (
        after["status"]["containerStatuses"] == operator["status"]["containerStatuses"]
    )
    assert s.difference(before, s.identities(site, SHOP)) == s.Difference(set(), set(), set())
    # It still acts: a deleted instance is made again.
    victim = s.name_of(s.pods(site, SHOP, role="decode", scenario="chat")[0])
    site.kubectl("delete", "pod", victim, "-n", SHOP, "--force", "--grace-period=0")
    s.wait_substituted(site, SHOP, names.scenario_group_name(SHOP, "chat"), before, {victim})
