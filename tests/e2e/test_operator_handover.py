"""The leading operator goes in the middle of a change: the standby ends it, and adds nothing."""

from __future__ import annotations

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
from tests.support.service_traffic import ServiceTraffic

from pdserve.wire import names

pytestmark = pytest.mark.e2e

NAMESPACE = SERVICE = "handover"
GROUP = names.scenario_group_name(SERVICE, "chat")


@pytest.fixture
def document(installed: Installed) -> Iterator[s.Json]:
    """PDService handover/handover, Ready."""
    cluster = installed.cluster
    make_namespace(cluster, NAMESPACE)
    made = pdservice(NAMESPACE, SERVICE, scenario("chat", fixed(1, 1, 1)))
    cluster.apply(made, namespace=NAMESPACE)
    s.wait_service(cluster, NAMESPACE, SERVICE)
    yield made
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.mark.invariant(2)
def test_the_leader_is_deleted_in_mid_change(
    installed: Installed, document: s.Json, record_property: Callable[[str, object], None]
) -> None:
    cluster = installed.cluster
    s.until("a leader and a standby", lambda: len(installed.operators()) == 2)
    before = {s.name_of(p): p["metadata"]["uid"] for p in s.pods(cluster, NAMESPACE)}
    with ServiceTraffic(cluster, f"http://{SERVICE}-gateway.{NAMESPACE}.svc") as traffic:
        traffic.wait_more(4)
        leader = s.name_of(installed.operator())
        document["spec"]["scenarios"][0]["ratio"] = fixed(1, 3, 3)
        cluster.apply(document, namespace=NAMESPACE)
        s.until("the change has begun", lambda: len(s.pods(cluster, NAMESPACE)) > len(before))
        assert not s.is_ready(s.group(cluster, NAMESPACE, GROUP)), "the change is over already"
        with s.stopwatch() as seconds:
            cluster.kubectl("delete", "pod", leader, "-n", OPERATOR_NAMESPACE, "--wait=false")
            s.until("another leads", lambda: s.name_of(installed.operator()) != leader)
            record_property("another_leads_seconds", round(seconds(), 1))
            s.until(
                "the counts are those of the service",
                lambda: s.counts(cluster, NAMESPACE, GROUP) == (1, 3, 3),
            )
            s.wait_settled(cluster, NAMESPACE, GROUP)
            record_property("change_ended_seconds", round(seconds(), 1))
        traffic.wait_more(4)
    assert traffic.failed == [], "a planned change, and an operator's end, cost no request"
    found = check_groups(cluster, NAMESPACE, GROUP)
    assert len(found) == len(s.pods(cluster, NAMESPACE)) == 6, "nothing was made twice"
    after = {s.name_of(p): p["metadata"]["uid"] for p in found}
    assert before.items() <= after.items(), "what served before serves still"
    s.until("two operators again", lambda: len(installed.operators()) == 2)
